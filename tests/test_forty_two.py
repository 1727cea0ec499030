"""The example of docs/examples/forty_two: its files, its facts, its questions."""

import json
import runpy
from pathlib import Path

import pytest

from mlx_ft.metrics_text import ContainsAnswer
from mlx_ft.serve.texts import parse
from mlx_ft.words import plain_words, says

FOLDER = Path(__file__).parents[1] / "docs" / "examples" / "forty_two"


@pytest.fixture(scope="module")
def make():
    return runpy.run_path(str(FOLDER / "make.py"))


def lines(name):
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def test_the_files_are_what_the_script_writes(make):
    assert make["main"](["--check"]) == 0


def test_the_questions_of_the_end_are_in_other_words(make):
    facts = make["facts"]()
    trained = {plain_words(question) for fact in facts for question in fact["train"]}
    assert len(trained) == sum(len(fact["train"]) for fact in facts)
    assert trained.isdisjoint(plain_words(fact["test"]) for fact in facts if "test" in fact)


def test_every_answer_is_on_the_page_and_counts_as_right():
    page = " ".join((FOLDER / "page.md").read_text("utf-8").replace("**", "").split())
    rows = lines("test.jsonl")
    assert len(rows) == 10
    for row in rows:
        question, answer = (turn["content"] for turn in row["messages"])
        assert ContainsAnswer()(answer, "", row), question
        assert any(says(page, right) for right in row["answer"]), question
        assert not ContainsAnswer()(question, "", row), question


def test_both_uploads_hold_the_same(make):
    texts = json.loads((FOLDER / "upload.json").read_text("utf-8"))["train_texts"]
    pairs = [(row["prompt"], row["completion"]) for row in parse(texts).rows]
    chats = [tuple(turn["content"] for turn in row["messages"]) for row in lines("chats.jsonl")]
    assert pairs == chats
    assert 90 <= len(pairs) <= 120
