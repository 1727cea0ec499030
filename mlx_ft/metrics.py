"""Scores of generated answers: is this prediction right, given the reference?"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from mlx_ft.code_tests.run import bad_tests, extract_code, run_tests
from mlx_ft.errors import ConfigError
from mlx_ft.metrics_text import (
    NO_FIELDS,
    Contains,
    ContainsAnswer,
    ExactMatch,
    Fields,
    JsonValid,
    NormalisedMatch,
)

SqlValue = str | int | float | bytes | None
SqlRow = tuple[SqlValue, ...]

MAX_ROWS = 10_000
MAX_BYTES = 8_000_000  # of one result
RELATIVE_TOLERANCE = 1e-6
# Checked every so many steps of SQLite's virtual machine.
PROGRESS_STEPS = 1_000
# A prediction may only read. Pragmas, ATTACH, writes and transactions have codes of their own.
ALLOWED_ACTIONS = frozenset({
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
})  # fmt: skip
DENIED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer"})
# One step of the machine is not interrupted, so a single value must stay small.
LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: 100_000, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100}

_FENCE = re.compile(r"```(?:sql(?:ite)?\b)?(.*?)(?:```)?", re.DOTALL | re.IGNORECASE)
_QUOTED = re.compile(  # what SQLite takes for quotes, and comments
    r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL
)
_ORDER_BY = re.compile(r"[()]|\border\s+by\b", re.IGNORECASE)


class Case(NamedTuple):
    """What a metric judges. fields: the row as it was read, for what is not in the reference."""

    prediction: str
    reference: str
    fields: Fields = NO_FIELDS


class Scorer(Protocol):
    """Says how good a prediction is.

    workers: how many judgements may go on at once, in threads; 1: only in the caller's own.
    """

    name: str
    workers: int

    def __call__(
        self, prediction: str, reference: str, fields: Fields = NO_FIELDS, /
    ) -> bool | float:
        """Whether the prediction is right, or how good it is, by the reference and the fields.

        Raises ValueError when the reference or the row's fields cannot be judged by.
        """
        ...


class Metric(Scorer, Protocol):
    """Decides whether a prediction counts as right."""

    def __call__(self, prediction: str, reference: str, fields: Fields = NO_FIELDS, /) -> bool:
        """Whether the prediction is right."""
        ...


def judge_all(metric: Scorer, cases: Iterable[Case]) -> Iterator[tuple[Case, bool | float]]:
    """Each case with its verdict, in order; up to `metric.workers` are judged at once."""
    if metric.workers == 1:
        yield from ((case, metric(*case)) for case in cases)
        return
    with ThreadPoolExecutor(metric.workers) as pool:
        pending: deque[tuple[Case, Future[bool | float]]] = deque()
        for case in cases:
            pending.append((case, pool.submit(metric, *case)))
            if len(pending) > metric.workers:
                first, verdict = pending.popleft()
                yield first, verdict.result()
        yield from ((case, verdict.result()) for case, verdict in pending)


class PythonTests:
    """Right when the predicted code passes the row's `tests`: statements that call and assert.

    The code, fenced or not, runs after the row's `setup`, if there is one, in a confined process
    (`code_tests.run`); the tests run where it cannot reach them.
    """

    name = "python_tests"

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1

    def __call__(self, prediction: str, _reference: str, fields: Fields = NO_FIELDS, /) -> bool:
        """Whether every test runs through. Raises ValueError when the tests are none."""
        tests = fields.get("tests")
        if faults := bad_tests(tests):
            raise ValueError("; ".join(faults))
        assert isinstance(tests, list)
        setup = fields.get("setup", "")
        if not isinstance(setup, str):
            raise ValueError(f"the row's `setup` is {setup!r}; expected Python code")
        return run_tests(f"{setup}\n{extract_code(prediction)}", tests).passed


class SqlExecution:
    """Right when the predicted query gives the same result as the reference query.

    Results are compared as multisets of rows; in order only where the reference orders more
    than one row. Column names do not count, the number of columns does. Numbers may differ
    by a relative 1e-6. connection: used from the caller's thread, never written to.
    time_limit: seconds for one query.
    """

    name = "sql_execution"
    workers = 1

    def __init__(self, connection: sqlite3.Connection, time_limit: float = 1.0) -> None:
        self.connection = connection
        self.time_limit = time_limit

    def __call__(self, prediction: str, reference: str, _fields: Fields = NO_FIELDS, /) -> bool:
        """Whether both queries give the same result; False for any query that does not run.

        Raises ValueError when it is the reference that does not run.
        """
        try:
            expected = self._run(reference, MAX_ROWS)
        except ValueError as error:
            raise ValueError(f"The reference query {reference!r} does not run: {error}") from error
        try:
            found = self._run(prediction, len(expected[1]))
        except ValueError:
            return False
        return same_result(found, expected, ordered=has_order(reference))

    def _run(self, query: str, max_rows: int) -> tuple[int, list[SqlRow]]:
        """The number of columns and the rows of a query.

        Raises ValueError for any failure, and for more rows than `max_rows` or MAX_BYTES.
        """
        try:
            with (
                _read_only(self.connection, self.time_limit),
                contextlib.closing(self.connection.cursor()) as cursor,
            ):
                cursor.row_factory = None
                cursor.execute(strip_query(query))
                rows = _fetch(cursor, max_rows)
                columns = len(cursor.description or ())
        # sqlite3.Warning: two statements, before Python 3.12; ValueError: a NUL or a surrogate.
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(str(error)) from error
        if not columns:
            raise ValueError("not a query")
        return columns, rows


def _fetch(cursor: sqlite3.Cursor, max_rows: int) -> list[SqlRow]:
    rows: list[SqlRow] = []
    size = 0
    for row in cursor:
        size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if len(rows) == max_rows or size > MAX_BYTES:
            raise ValueError(f"more than {max_rows} rows or {MAX_BYTES} bytes")
        rows.append(row)
    return rows


def strip_query(text: str) -> str:
    """Remove a Markdown fence around the whole text and a semicolon at its end."""
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    return (fenced.group(1) if fenced else text).strip().removesuffix(";").rstrip()


def has_order(query: str) -> bool:
    """Whether the query orders its own rows: not in a subquery, a window, quotes or a comment."""
    depth = 0
    for found in _ORDER_BY.finditer(_QUOTED.sub(" ", strip_query(query))):
        if found[0] not in "()":
            if depth == 0:
                return True
        else:
            depth += 1 if found[0] == "(" else -1
    return False


def same_result(
    found: tuple[int, list[SqlRow]], expected: tuple[int, list[SqlRow]], ordered: bool
) -> bool:
    """Whether two results hold the same rows. Each is (number of columns, rows)."""
    (found_columns, found_rows), (expected_columns, expected_rows) = found, expected
    if found_columns != expected_columns or len(found_rows) != len(expected_rows):
        return False
    if ordered:
        return all(map(same_row, found_rows, expected_rows))
    # Equal rows cancel out; what is left can match only within the tolerance.
    found_left = sorted((Counter(found_rows) - Counter(expected_rows)).elements(), key=_sort_key)
    for row in (Counter(expected_rows) - Counter(found_rows)).elements():
        match = next((i for i, other in enumerate(found_left) if same_row(other, row)), None)
        if match is None:
            return False
        del found_left[match]
    return True


def same_row(left: SqlRow, right: SqlRow) -> bool:
    """Whether two rows hold the same values, numbers within the tolerance."""
    return all(map(_same_value, left, right))


def _same_value(left: SqlValue, right: SqlValue) -> bool:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE)
    return left == right


def _sort_key(row: SqlRow) -> list[tuple[str, str]]:
    return [(type(value).__name__, repr(value)) for value in row]


@contextlib.contextmanager
def _read_only(connection: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Allow only reading, for so many seconds; afterwards the connection is unrestricted."""
    deadline = time.monotonic() + seconds
    limits = {limit: connection.setlimit(limit, value) for limit, value in LIMITS.items()}
    connection.set_authorizer(_authorize)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, PROGRESS_STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)
        for limit, value in limits.items():
            connection.setlimit(limit, value)


def _authorize(
    action: int, _first: str | None, second: str | None, _database: str | None, _view: str | None
) -> int:
    """SQLite's question for every action while it compiles a query; functions come as `second`."""
    if action not in ALLOWED_ACTIONS:
        return sqlite3.SQLITE_DENY
    denied = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in DENIED_FUNCTIONS
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK


def build_metric(name: str, database: Callable[[], sqlite3.Connection] | None = None) -> Metric:
    """Build the metric of that name. database: what `sql_execution` runs its queries on.

    Raises ConfigError for an unknown name, or where the database is missing.
    """
    simple: dict[str, Callable[[], Metric]] = {
        ExactMatch.name: ExactMatch,
        NormalisedMatch.name: NormalisedMatch,
        Contains.name: Contains,
        ContainsAnswer.name: ContainsAnswer,
        JsonValid.name: JsonValid,
        PythonTests.name: PythonTests,
    }
    if name in simple:
        return simple[name]()
    if name != SqlExecution.name:
        known = ", ".join([*simple, SqlExecution.name])
        raise ConfigError(f"Unknown metric {name!r}. Use one of: {known}.")
    if database is None:
        raise ConfigError(
            f"The metric {name!r} needs a database, and this data set brings none. "
            f"Use {ExactMatch.name!r}, or a data set with a database."
        )
    return SqlExecution(database())
