"""Geography as chat: its files and its split, read from the files themselves."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from mlx_ft import datasets
from mlx_ft.datasets.geography_chat import DESCRIPTION, make
from mlx_ft.datasets.geography_chat.facts import World, close_to, in_words, listed
from mlx_ft.datasets.geography_chat.phrasings import FOLLOW_UPS, QUESTIONS
from mlx_ft.datasets.geography_sql.database import build_database, read_facts
from mlx_ft.datasets.geography_sql.make import WITH_ARTICLE
from mlx_ft.metrics import ContainsAnswer

FOLDER = Path(make.__file__).parent
SIZES = {"train": 1000, "valid": 120, "test": 120}
HELD_OUT = ("valid", "test")
YES_NO = ("in_continent", "border")
TWO_COUNTRIES = ("larger", "more_people")
COUNTRIES = [row["name"] for row in read_facts("country")]


@pytest.fixture(scope="module")
def splits():
    return {
        split: [
            json.loads(line)
            for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for split in SIZES
    }


def said(row, role):
    return [turn["content"] for turn in row["messages"] if turn["role"] == role]


def words(text):
    """Lower-case words without accents and apostrophes, between spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold()).replace("'", "")
    return f" {' '.join(re.findall(r'[a-z0-9]+', plain))} "


def subject(row):
    """The real countries that the last answer names."""
    text = words(said(row, "assistant")[-1])
    found = {name for name in COUNTRIES if words(name) in text}
    # South Sudan names Sudan only within itself.
    return {n for n in found if not any(n != m and words(n) in words(m) for m in found)}


# The files


def test_files_are_what_the_generator_writes(tmp_path):
    assert make.main(["--check"]) == 0
    assert make.main(["--out", str(tmp_path)]) == 0
    for split in SIZES:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    (tmp_path / "test.jsonl").write_text("{}\n")
    assert make.main(["--check", "--out", str(tmp_path)]) == 1


def test_rows_are_conversations(splits):
    for row in (row for rows in splits.values() for row in rows):
        assert {"messages", "kind", "answer"} <= set(row) <= {"messages", "kind", "answer", "not"}
        roles = [turn["role"] for turn in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 1 <= len(roles) // 2 <= 3
        assert row["answer"]
        assert all(isinstance(text, str) and text for text in row["answer"])


def test_sizes_and_no_duplicates(splits):
    assert {split: len(rows) for split, rows in splits.items()} == SIZES == DESCRIPTION.rows
    rows = [json.dumps(row["messages"]) for rows in splits.values() for row in rows]
    assert len(set(rows)) == len(rows)


def test_every_kind_is_in_every_split_and_most_rows_have_several_turns(splits):
    counts = {split: Counter(row["kind"] for row in rows) for split, rows in splits.items()}
    assert set(counts["train"]) == set(counts["valid"]) == set(counts["test"])
    assert all(0.03 <= rows["unknown"] / rows.total() <= 0.06 for rows in counts.values())
    for rows in splits.values():
        assert 0.5 <= sum(len(row["messages"]) > 2 for row in rows) / len(rows) <= 0.9


def test_readme_counts_the_kinds(splits):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    counts = {split: Counter(row["kind"] for row in rows) for split, rows in splits.items()}
    for kind in counts["train"]:
        cells = " | ".join(str(counts[split][kind]) for split in SIZES)
        assert re.search(rf"^\| {kind} \| .* \| {re.escape(cells)} \|$", readme, re.MULTILINE), kind


# The answers


def test_references_are_right_by_their_own_row(splits):
    metric = ContainsAnswer()
    for row in (row for rows in splits.values() for row in rows):
        assert metric(said(row, "assistant")[-1], "", row), row


def test_answers_are_whole_sentences(splits):
    answers = [text for rows in splits.values() for row in rows for text in said(row, "assistant")]
    for text in answers:
        assert re.fullmatch(r"[A-Z].*[.?]", text), text
        assert 4 <= len(text.split()) <= 20, text
        assert "  " not in text
        assert "{" not in text
    assert len({re.sub(r"[A-Z][\w']+|\d+", "_", text) for text in answers}) > 60


def test_articles_are_where_they_belong(splits):
    texts = [t["content"] for rows in splits.values() for row in rows for t in row["messages"]]
    for text in texts:
        for name in WITH_ARTICLE:
            for match in re.finditer(rf"\b{name}\b", text):
                assert text[: match.start()].lower().endswith("the "), text
        assert "the the" not in text.lower()
        assert "s's" not in text
    for name in ("Chad", "Kenya", "Ivory Coast", "France"):
        assert not any(re.search(rf"\b[Tt]he {name}\b", text) for text in texts)


def test_every_answer_agrees_with_the_database(splits):
    database = build_database()
    continents = dict(database.execute("SELECT name, continent FROM country"))
    sizes = {
        name: values
        for name, *values in database.execute("SELECT name, area, population FROM country")
    }
    borders = set(database.execute("SELECT country, neighbor FROM border"))
    capitals = {words(c): n for n, c in database.execute("SELECT name, capital FROM country")}
    database.close()
    checked = Counter()
    for row in (row for rows in splits.values() for row in rows):
        kind, answer = row["kind"], said(row, "assistant")[-1]
        found = sorted(subject(row))
        if kind in ("capital", "country_of_capital"):
            right = any(city in words(answer) and n in found for city, n in capitals.items())
        elif kind == "continent":
            right = continents[found[0]] in answer
        elif kind == "in_continent":
            asked = said(row, "user")[-1].replace(found[0], "")
            right = (continents[found[0]] in asked) == answer.startswith("Yes")
        elif kind == "border":
            right = (tuple(found) in borders) == answer.startswith("Yes")
        elif kind in TWO_COUNTRIES and len(found) == 2:
            column = TWO_COUNTRIES.index(kind)
            winner = max(found, key=lambda name: sizes[name][column])
            right = row["answer"][0] == winner
        else:
            continue
        checked[kind] += 1
        assert right, row
    assert min(checked.values()) > 20
    assert len(checked) == 7


# The split


def test_no_held_out_question_is_in_training(splits):
    questions = {
        split: {words(text) for row in rows for text in said(row, "user")}
        for split, rows in splits.items()
    }
    assert questions["train"].isdisjoint(questions["valid"] | questions["test"])
    assert questions["valid"].isdisjoint(questions["test"])


def test_phrasings_are_disjoint(splits):
    names = {
        row[column]
        for row in read_facts("country")
        for column in ("name", "capital", "continent", "currency")
    }
    pattern = re.compile(
        r"\b(?:[Tt]he )?(?:"
        + "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        + r")\b"
    )
    phrasings = {
        split: {
            words(pattern.sub("_", text))
            for row in rows
            if row["kind"] != "unknown"
            for text in said(row, "user")
        }
        for split, rows in splits.items()
    }
    assert phrasings["train"].isdisjoint(phrasings["valid"] | phrasings["test"])
    assert phrasings["valid"].isdisjoint(phrasings["test"])
    assert len(phrasings["train"]) > 12 * 12


def test_kinds_have_twelve_phrasings_and_eight_for_later_questions(splits):
    assert all(len(set(one["train"])) >= 12 for one in QUESTIONS.values())
    assert all(len(set(one["train"])) >= 8 for one in FOLLOW_UPS.values())
    assert {row["kind"] for row in splits["train"]} == {*QUESTIONS, "unknown"}


def test_conversations_of_several_turns_are_new(splits):
    def order(row):
        return tuple(sorted(said(row, "assistant")))

    known = {order(row) for row in splits["train"] if len(row["messages"]) > 2}
    for split in HELD_OUT:
        several = [order(row) for row in splits[split] if len(row["messages"]) > 2]
        assert several
        assert known.isdisjoint(several)


@pytest.mark.parametrize("split", HELD_OUT)
def test_held_out_facts_are_stated_in_training(splits, split):
    stated = [words(text) for row in splits["train"] for text in said(row, "assistant")]
    for row in splits[split]:
        if row["kind"] == "unknown":
            continue
        countries = [words(name) for name in subject(row)]
        if row["kind"] in (*YES_NO, *TWO_COUNTRIES):
            # The same two names were compared, the same continent was said.
            needed = countries
        else:
            needed = [*countries, words(row["answer"][0])]
        assert any(all(name in text for name in needed) for text in stated), row


def test_made_up_countries_are_nowhere_and_in_one_split(splits):
    names = {}
    for split, rows in splits.items():
        asked = [said(row, "user")[-1] for row in rows if row["kind"] == "unknown"]
        answers = [said(row, "assistant")[-1] for row in rows if row["kind"] == "unknown"]
        names[split] = {
            name
            for text, answer in zip(asked, answers, strict=True)
            for name in set(re.findall(r"[A-Z]\w+", text)) & set(re.findall(r"[A-Z]\w+", answer))
        } - {"I", "Could"}
        assert names[split]
        assert names[split].isdisjoint(COUNTRIES)
    assert names["train"].isdisjoint(names["valid"] | names["test"])
    assert names["valid"].isdisjoint(names["test"])


# The facts in words


def test_numbers_in_words():
    assert in_words(42_600_000) == "43 million"
    assert in_words(1_450_900_000) == "1.5 billion"
    assert in_words(652_860) == "650,000"
    assert in_words(999_999) == "1 million"
    assert close_to(46_800_000)[0] == "47 million"
    assert {"46.8 million", "43 million", "51 million"} <= set(close_to(46_800_000))
    assert not {"41 million", "52 million", "47,000"} & set(close_to(46_800_000))


def test_lists_in_words():
    assert listed(["Chad"]) == "Chad"
    assert listed(["Chad", "Libya"]) == "Chad and Libya"
    assert listed(["Chad", "Libya", "Niger"]) == "Chad, Libya and Niger"


def test_disputed_facts_are_not_asked():
    facts = [fact for known in World().facts.values() for fact in known]
    kinds = {(fact.country, fact.kind) for fact in facts}
    assert ("Russia", "continent") not in kinds
    assert ("Turkey", "in_continent") not in kinds
    assert ("South Africa", "capital") not in kinds
    assert ("Morocco", "neighbors") not in kinds
    assert not {"Taiwan", "Israel"} & {fact.country for fact in facts}


# The descriptions of all built-in data sets


def test_every_built_in_data_set_is_described_with_its_rows():
    found = datasets.descriptions()
    folders = {path.parent.name for path in Path(datasets.__file__).parent.glob("*/train.jsonl")}
    assert set(found) == folders >= {"geography_chat", "geography_sql"}
    for name, description in found.items():
        assert description.title
        assert description.source
        assert description.licence
        for split, count in description.rows.items():
            path = Path(datasets.__file__).parent / name / f"{split}.jsonl"
            assert len(path.read_text(encoding="utf-8").splitlines()) == count, path
