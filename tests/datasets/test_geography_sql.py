"""The default data set: its files, its facts and its split, read from the files themselves."""

import contextlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_ft.datasets.geography_sql import build_database, make
from mlx_ft.datasets.geography_sql.database import read_facts
from mlx_ft.metrics import SqlExecution

FOLDER = Path(make.__file__).parent
SIZES = {"train": 1200, "valid": 150, "test": 150}
CONTINENTS = {"Africa", "Asia", "Europe", "North America", "South America", "Oceania"}


def read_split(split: str) -> list[tuple[str, str, str]]:
    """(question, SQL, kind) of every row."""
    result = []
    for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) == {"messages", "kind"}
        system, user, assistant = row["messages"]
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
        assert system["content"] == "Answer with one SQL query."
        result.append((user["content"], assistant["content"], row["kind"]))
    return result


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(build_database()) as connection:
        yield connection


@pytest.fixture(scope="module")
def splits() -> dict[str, list[tuple[str, str, str]]]:
    return {split: read_split(split) for split in SIZES}


@pytest.fixture(scope="module")
def names(database: sqlite3.Connection) -> list[str]:
    """Every name in the facts, longest first."""
    columns = [
        "country.name",
        "country.continent",
        "city.name",
        "currency.name",
        "language.language",
    ]
    found: set[str] = set()
    for column in columns:
        table, field = column.split(".")
        found |= {row[0] for row in database.execute(f"SELECT {field} FROM {table}")}
    return sorted(found, key=lambda name: (-len(name), name))


def literals(sql: str) -> set[str]:
    return {text.replace("''", "'") for text in re.findall(r"'((?:[^']|'')*)'", sql)}


def masked(question: str, pattern: re.Pattern[str]) -> str:
    text = re.sub(r"\b[Tt]he (?=_)", "", pattern.sub("_", question))
    return " ".join(re.findall(r"[a-z0-9_']+", text.lower()))


# The files


def test_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    assert make.main(["--check"]) == 0
    assert make.main(["--out", str(tmp_path)]) == 0
    for split in SIZES:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    (tmp_path / "test.jsonl").write_text("{}\n")
    assert make.main(["--check", "--out", str(tmp_path)]) == 1


def test_sizes_and_no_duplicates(splits: dict[str, list[tuple[str, str, str]]]) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    questions = Counter(question.casefold() for rows in splits.values() for question, _, _ in rows)
    assert max(questions.values()) == 1


def test_every_query_has_an_answer(
    database: sqlite3.Connection, splits: dict[str, list[tuple[str, str, str]]]
) -> None:
    metric = SqlExecution(database)
    for question, sql, _ in (row for rows in splits.values() for row in rows):
        rows = database.execute(sql).fetchall()
        assert rows, question
        assert all(value is not None for row in rows for value in row), question
        assert metric(sql, sql), question


def test_order_by_has_no_ties(
    database: sqlite3.Connection, splits: dict[str, list[tuple[str, str, str]]]
) -> None:
    for _, sql, _ in (row for rows in splits.values() for row in rows):
        if " ORDER BY " not in sql:
            continue
        select, order = sql.split(" ORDER BY ")
        key, limit = order.split()[0], int(order.split()[-1])
        ranked = database.execute(select.replace("name", key, 1) + f" ORDER BY {key}").fetchall()
        values = sorted((row[0] for row in ranked), reverse=" DESC " in order)[: limit + 1]
        assert len(set(values)) == len(values), sql


def test_kinds_are_in_every_split(splits: dict[str, list[tuple[str, str, str]]]) -> None:
    counts = {split: Counter(kind for _, _, kind in rows) for split, rows in splits.items()}
    assert set(counts["train"]) == set(counts["valid"]) == set(counts["test"])
    assert 24 <= len(counts["train"]) <= 28
    assert min(counts["train"].values()) >= 30
    assert min(counts["valid"].values()) >= 5
    assert min(counts["test"].values()) >= 5


def test_one_kind_has_one_shape_of_sql(splits: dict[str, list[tuple[str, str, str]]]) -> None:
    shapes: dict[str, set[str]] = {}
    for _, sql, kind in (row for rows in splits.values() for row in rows):
        shapes.setdefault(kind, set()).add(re.sub(r"'(?:[^']|'')*'", "?", sql))
        assert ";" not in sql
    assert all(len(found) == 1 for found in shapes.values())
    assert len(set.union(*shapes.values())) == len(shapes)


@pytest.mark.parametrize("split", SIZES)
def test_joins_and_aggregates_are_a_minority(
    splits: dict[str, list[tuple[str, str, str]]], split: str
) -> None:
    hard = [sql for _, sql, _ in splits[split] if re.search(r"COUNT|SUM|\(SELECT", sql)]
    assert 0.35 <= len(hard) / len(splits[split]) <= 0.46


def test_rows_are_short(splits: dict[str, list[tuple[str, str, str]]]) -> None:
    rows = [row for rows in splits.values() for row in rows]
    tokens = [len(question) / 3.6 + len(sql) / 3 + 16 + 7 for question, sql, _ in rows]
    assert sum(tokens) / len(tokens) < 70


def test_readme_counts_the_kinds(splits: dict[str, list[tuple[str, str, str]]]) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    counts = {split: Counter(kind for _, _, kind in rows) for split, rows in splits.items()}
    for kind in counts["train"]:
        cells = " | ".join(str(counts[split][kind]) for split in SIZES)
        assert re.search(rf"^\| {kind} \| .* \| {re.escape(cells)} \|$", readme, re.MULTILINE), kind


# The split


def test_held_out_names_are_not_in_training(
    splits: dict[str, list[tuple[str, str, str]]], names: list[str]
) -> None:
    used = {
        split: set().union(*(literals(sql) for _, sql, _ in rows)) for split, rows in splits.items()
    }
    assert used["train"].isdisjoint(used["valid"] | used["test"])
    assert (used["valid"] & used["test"]) <= CONTINENTS
    assert used["train"] | used["valid"] | used["test"] <= set(names)
    # Nor inside a longer name, in any question or query: whole words, whatever the case.
    training = " ".join(
        " ".join(re.findall(r"\w+", f"{question} {sql}".casefold()))
        for question, sql, _ in splits["train"]
    )
    for name in used["valid"] | used["test"]:
        words = " ".join(re.findall(r"\w+", name.casefold()))
        assert not re.search(rf"\b{words}\b", training), name


def test_names_are_in_question_and_query(
    splits: dict[str, list[tuple[str, str, str]]],
) -> None:
    for question, sql, _ in (row for rows in splits.values() for row in rows):
        assert literals(sql)
        assert all(name in question for name in literals(sql)), question


def test_phrasings_are_disjoint(
    splits: dict[str, list[tuple[str, str, str]]], names: list[str]
) -> None:
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")(?!\w)")
    phrasings = {
        split: {masked(question, pattern) for question, _, _ in rows}
        for split, rows in splits.items()
    }
    assert phrasings["train"].isdisjoint(phrasings["valid"] | phrasings["test"])
    assert phrasings["valid"].isdisjoint(phrasings["test"])
    by_kind = {kind: set[str]() for _, _, kind in splits["train"]}
    for question, _, kind in splits["train"]:
        by_kind[kind].add(masked(question, pattern))
    assert min(map(len, by_kind.values())) >= 10


def test_held_out_words_are_learnt_in_training(
    splits: dict[str, list[tuple[str, str, str]]], names: list[str]
) -> None:
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")(?!\w)")
    words = {
        split: Counter(word for q, _, _ in rows for word in masked(q, pattern).split())
        for split, rows in splits.items()
    }
    for split in ("valid", "test"):
        new = set(words[split]) - set(words["train"])
        assert sum(words[split][word] for word in new) < 0.02 * words[split].total(), new


# The facts


def test_tables_refer_to_each_other(database: sqlite3.Connection) -> None:
    def missing(query: str) -> list[tuple[str, ...]]:
        return database.execute(query).fetchall()

    countries = "(SELECT name FROM country)"
    assert not missing(f"SELECT country FROM city WHERE country NOT IN {countries}")
    assert not missing(f"SELECT country FROM language WHERE country NOT IN {countries}")
    assert not missing(f"SELECT country FROM border WHERE country NOT IN {countries}")
    assert not missing("SELECT currency FROM country EXCEPT SELECT name FROM currency")
    assert not missing("SELECT name FROM currency EXCEPT SELECT currency FROM country")
    assert not missing("SELECT capital, name FROM country EXCEPT SELECT name, country FROM city")
    assert not missing("SELECT name FROM country EXCEPT SELECT country FROM language")
    assert not missing(
        "SELECT country, neighbor FROM border EXCEPT SELECT neighbor, country FROM border"
    )
    assert not missing("SELECT country FROM border WHERE country = neighbor")


def test_values_are_plausible(database: sqlite3.Connection) -> None:
    continents = dict(
        database.execute("SELECT continent, COUNT(*) FROM country GROUP BY continent")
    )
    # The 193 members of the United Nations, Kosovo, Palestine, Taiwan and Vatican City.
    assert continents == {
        "Africa": 54, "Asia": 49, "Europe": 45, "North America": 23, "Oceania": 14,
        "South America": 12,
    }  # fmt: skip
    ((world,),) = database.execute("SELECT SUM(population) FROM country")
    assert 7.9e9 < world < 8.3e9
    ((land,),) = database.execute("SELECT SUM(area) FROM country")
    assert 1.30e8 < land < 1.37e8
    crowded = "SELECT country, SUM(population) AS people FROM city GROUP BY country"
    assert not database.execute(
        f"SELECT name FROM country JOIN ({crowded}) ON name = country WHERE people > population"
    ).fetchall()
    assert all(
        re.fullmatch("[A-Z]{3}", code) for (code,) in database.execute("SELECT code FROM currency")
    )


@pytest.mark.parametrize("table", ["country", "city", "language", "currency", "border"])
def test_fact_files_are_sorted_ascii_without_repeats(table: str) -> None:
    rows = [tuple(row.values()) for row in read_facts(table)]
    keys = [row[:2] if table in {"city", "language", "border"} else row[:1] for row in rows]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert all(value and value.isascii() for row in rows for value in row)


def test_every_call_builds_its_own_database(database: sqlite3.Connection) -> None:
    with contextlib.closing(build_database()) as other:
        other.execute("DELETE FROM country")
    assert database.execute("SELECT COUNT(*) FROM country").fetchone() == (197,)
