import contextlib
import sqlite3
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from mlx_ft.errors import ConfigError
from mlx_ft.metrics import (
    Case,
    ContainsAnswer,
    ExactMatch,
    SqlExecution,
    build_metric,
    has_order,
    judge_all,
    strip_query,
)

NAMES = "SELECT name FROM item"
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
ENDLESS = f"{NUMBERS}) SELECT COUNT(*) FROM n"


def make_database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE item (name TEXT, price REAL, stock INTEGER)")
    rows = [("ant", 1.5, 3), ("bee", 2.5, 3), ("cat", None, 1), ("bee", 0.1, 2)]
    connection.executemany("INSERT INTO item VALUES (?, ?, ?)", rows)
    connection.commit()
    return connection


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(make_database()) as connection:
        yield connection


@pytest.fixture
def metric(database: sqlite3.Connection) -> SqlExecution:
    return SqlExecution(database, time_limit=0.2)


def test_exact_match_ignores_only_whitespace() -> None:
    metric = ExactMatch()
    assert metric("  a\n b ", "a b")
    assert not metric("A b", "a b")
    assert not metric("", "a")


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("select NAME as x from item;", NAMES),
        ("```sql\nSELECT name FROM item;\n```", NAMES),
        ("```SQL SELECT name FROM item```", NAMES),
        ("```\nSELECT name FROM item", NAMES),
        ("SELECT name FROM item -- all of them", NAMES),
        ("SELECT name FROM item ORDER BY price", NAMES),
        ("SELECT price FROM item ORDER BY stock", "SELECT price FROM item"),
        (
            "SELECT name FROM item WHERE stock = 3 ORDER BY name DESC",
            "SELECT name FROM (SELECT name FROM item ORDER BY stock DESC LIMIT 2)",
        ),
        ("SELECT 0.1 + 0.2", "SELECT 0.3"),
        ("SELECT price + 1e-9 FROM item ORDER BY 1", "SELECT price FROM item"),
        ("SELECT 3", "SELECT 3.0"),
        ("SELECT NULL", "SELECT price FROM item WHERE name = 'cat'"),
        ("SELECT stock FROM item WHERE 0", "SELECT name FROM item WHERE 0"),
        ("SELECT 'ORDER BY', 'ü'", "SELECT 'ORDER BY', 'ü'"),
        (
            f"{NUMBERS} LIMIT 3) SELECT i FROM n",
            "SELECT stock FROM item WHERE price > 1 AND 0 UNION VALUES (1), (2), (3)",
        ),
    ],
)
def test_same_results_count_as_right(metric: SqlExecution, prediction: str, reference: str) -> None:
    assert metric(prediction, reference)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("SELECT DISTINCT name FROM item", NAMES),
        ("SELECT name, stock FROM item", NAMES),
        ("SELECT name FROM item WHERE 0", NAMES),
        (
            "SELECT 'ant' UNION ALL SELECT 'ant' UNION ALL SELECT 'bee' UNION ALL SELECT 'cat'",
            NAMES,
        ),
        ("SELECT name FROM item ORDER BY name DESC", "SELECT name FROM item ORDER BY name"),
        ("SELECT '3'", "SELECT 3"),
        ("SELECT 1.00001", "SELECT 1"),
        ("SELECT 0", "SELECT NULL"),
        ("SELECT ''", "SELECT NULL"),
        ("SELECT 1, 2 WHERE 0", "SELECT 1 WHERE 0"),
    ],
)
def test_other_results_count_as_wrong(
    metric: SqlExecution, prediction: str, reference: str
) -> None:
    assert not metric(prediction, reference)


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        ";",
        "-- nothing",
        "The answer is Paris.",
        "SELECT",
        "SELECT nothing FROM item",
        "SELECT ?",
        "SELECT '\ud800'",
        "SELECT '\x00'",
        "SELECT 'ünïcödé' FROM 表",
        "SELECT CAST(x'ff' AS TEXT)",
        "DROP TABLE item",
        "DELETE FROM item",
        "INSERT INTO item VALUES ('dog', 1, 1)",
        "CREATE TABLE other (a)",
        "PRAGMA query_only = 1",
        "PRAGMA user_version",
        "SELECT * FROM pragma_table_info('item')",
        "ATTACH DATABASE ':memory:' AS other",
        "VACUUM",
        "BEGIN",
        "SELECT load_extension('x')",
        "SELECT name FROM item; DROP TABLE item",
        "SELECT name FROM item; SELECT name FROM item",
        "SELECT a.name FROM item a, item b, item c, item d, item e, item f, item g, item h",
        "SELECT zeroblob(1000000000)",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT '" + "a" * 200_000 + "'",
    ],
)
def test_bad_predictions_are_wrong_and_change_nothing(
    metric: SqlExecution, prediction: str
) -> None:
    before = list(metric.connection.iterdump())
    assert not metric(prediction, NAMES)
    assert list(metric.connection.iterdump()) == before
    assert not metric.connection.in_transaction
    assert metric(NAMES, NAMES)


@pytest.mark.parametrize(
    "prediction", [ENDLESS, "SELECT COUNT(*) FROM " + ", ".join(f"item a{i}" for i in range(20))]
)
def test_time_limit_stops_a_prediction(metric: SqlExecution, prediction: str) -> None:
    start = time.monotonic()
    assert not metric(prediction, NAMES)
    assert time.monotonic() - start < 2.0
    # The limit is of one query: the connection serves slow ones again.
    slow = f"{NUMBERS} LIMIT 50000) SELECT i FROM n"
    assert len(metric.connection.execute(slow).fetchall()) == 50_000


@pytest.mark.parametrize("rows", [4, 10_000])
def test_a_result_is_not_read_further_than_it_can_matter(rows: int) -> None:
    """The prediction's rows are 100 kB each: 1 GB in all, within a time limit that is generous."""
    tables = ", ".join(f"item a{i}" for i in range(7))
    reference = f"{NUMBERS} LIMIT {rows}) SELECT i FROM n"
    with contextlib.closing(make_database()) as connection:
        metric = SqlExecution(connection, time_limit=60)
        tracemalloc.start()
        try:
            right = metric(f"SELECT hex(randomblob(49999)) FROM {tables} LIMIT 10000", reference)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert not right
    assert peak < 20e6


def test_a_large_result_may_be_right(metric: SqlExecution) -> None:
    large = f"{NUMBERS} LIMIT 10000) SELECT i, 'some text' FROM n"
    assert metric(large, large)


def test_connection_is_unrestricted_afterwards(metric: SqlExecution) -> None:
    limit = metric.connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    assert not metric("DROP TABLE item", NAMES)
    assert metric.connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) == limit
    metric.connection.execute("DROP TABLE item")


def test_row_factory_does_not_matter(database: sqlite3.Connection) -> None:
    database.row_factory = sqlite3.Row
    assert SqlExecution(database)("SELECT name AS x FROM item", NAMES)


@pytest.mark.parametrize("reference", ["SELECT nothing", "DROP TABLE item", "", ENDLESS])
def test_bad_reference_is_named(metric: SqlExecution, reference: str) -> None:
    with pytest.raises(ValueError, match="reference query") as caught:
        metric(NAMES, reference)
    assert repr(reference) in str(caught.value)


def test_strip_query_leaves_plain_text() -> None:
    assert strip_query(" SELECT 'a;' ; ") == "SELECT 'a;'"
    assert strip_query("```sql\nSELECT 1;\n```\n") == "SELECT 1"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT a FROM t order\n by a",
        "SELECT a FROM t ORDER/* so */BY a",
        "SELECT max(a), '(' FROM t -- (\nORDER BY a",
        "WITH s AS (SELECT a FROM t) SELECT a FROM s ORDER BY a",
        'SELECT "(", `(`, [(] FROM t ORDER BY a',
        "```sql\nSELECT a FROM t ORDER BY a\n```",
    ],
)
def test_a_query_that_orders_its_rows(query: str) -> None:
    assert has_order(query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 'it''s ORDER BY' FROM t",
        "SELECT a FROM t -- ORDER BY a",
        "SELECT a FROM t /* ORDER BY a */",
        "SELECT a FROM t /* ORDER BY a",
        "SELECT a AS `ORDER BY`, b AS [ORDER BY] FROM t",
        "SELECT a FROM (SELECT a FROM t ORDER BY b LIMIT 3)",
        "WITH s AS (SELECT a FROM t ORDER BY b LIMIT (1 + 1)) SELECT a FROM s",
        "SELECT a, rank() OVER (ORDER BY b) FROM t",
    ],
)
def test_a_query_that_does_not(query: str) -> None:
    assert not has_order(query)


def test_build_metric(database: sqlite3.Connection) -> None:
    assert build_metric("exact_match", None)("a", "a")
    assert build_metric("sql_execution", lambda: database)(NAMES, NAMES)
    with pytest.raises(ConfigError, match="bleu"):
        build_metric("bleu", None)
    with pytest.raises(ConfigError, match="database"):
        build_metric("sql_execution", None)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("The capital is Paris.", "Paris"),
        ("PARIS", "paris"),
        ("It is N'Djamena!", "N'Djamena"),
        ("ndjamena", "N’Djamena"),
        ("Paris is France's capital.", "France"),
        ("São Tomé and Príncipe", "Sao Tome"),
        ("Sao Tome", "São Tomé"),
        ("in Łódź, Poland", "Lodz"),
        ("Papua New Guinea", "New Guinea"),
        ("Guinea-Bissau", "Guinea Bissau"),
        ("1,234,567 people", "1234567"),
        ("an area of 2.5 km", "2.5"),
        ("**Rome**\n", "Rome"),
        ("東京", "東京"),
    ],
)
def test_answers_that_are_said(prediction: str, answer: str) -> None:
    assert ContainsAnswer()(prediction, "", {"answer": [answer]})
    assert ContainsAnswer()(prediction, "", {"answer": answer})
    assert not ContainsAnswer()(prediction, "", {"answer": "Paris", "not": [answer]})


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("", "Paris"),
        ("Parisian", "Paris"),
        ("Guinea", "New Guinea"),
        ("New York, Guinea", "New Guinea"),
        ("25", "2.5"),
        ("2.5", "5"),
        ("12345", "1234"),
        ("1,23", "123"),
        ("Frances", "France"),
    ],
)
def test_answers_that_are_not_said(prediction: str, answer: str) -> None:
    assert not ContainsAnswer()(prediction, "", {"answer": [answer]})


def test_one_accepted_answer_is_enough_and_none_refused_may_be_said() -> None:
    metric = build_metric("contains_answer")
    row = {"answer": ["Pretoria", "Cape Town"], "not": ["Johannesburg"]}
    assert metric("Cape Town", "", row)
    assert not metric("Cape Town or Johannesburg", "", row)


@pytest.mark.parametrize(
    "row", [{}, {"answer": []}, {"answer": ["!"]}, {"answer": [1]}, {"answer": "a", "not": [""]}]
)
def test_rows_without_an_answer_are_named(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the row"):
        ContainsAnswer()("a", "a", row)


def test_one_worker_judges_one_by_one(metric: SqlExecution) -> None:
    """The connection is the caller's thread's, so nothing may go on elsewhere or ahead."""
    seen: list[str] = []

    def cases() -> Iterator[Case]:
        for query in (NAMES, "SELECT 1", NAMES):
            seen.append(query)
            yield Case(query, NAMES)

    judged = judge_all(metric, cases())
    assert next(judged) == (Case(NAMES, NAMES), True)
    assert len(seen) == 1
    assert [right for _, right in judged] == [False, True]
