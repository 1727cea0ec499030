"""The principles: files, parts, examples and split."""

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_ft.datasets.principles import DESCRIPTION, make

FOLDER = Path(make.__file__).parent
SIZES = {"train": 80, "valid": 10, "test": 10}
Rows = dict[str, list[dict[str, Any]]]


def read(split: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def splits() -> Rows:
    return {split: read(split) for split in SIZES}


def test_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    assert make.main(["--check"]) == 0
    assert make.main(["--out", str(tmp_path)]) == 0
    for split in SIZES:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    (tmp_path / "test.jsonl").write_text("{}\n")
    assert make.main(["--check", "--out", str(tmp_path)]) == 1


def test_sizes_and_topics(splits: Rows) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == SIZES == DESCRIPTION.rows
    topics = Counter(row["kind"] for rows in splits.values() for row in rows)
    assert set(topics.values()) == {25}
    assert all(len({row["kind"] for row in rows}) == 4 for rows in splits.values())


def test_every_answer_is_whole(splits: Rows) -> None:
    for row in (row for rows in splits.values() for row in rows):
        assert set(row) == {"messages", "kind", "name"}
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert f'"{row["name"]}"' in user["content"]
        says, why, *_, unless = assistant["content"].split("\n\n")
        assert says.endswith(".")
        assert re.fullmatch(r"Why: .{40,}\.", why)
        assert re.fullmatch(r"When not: .{30,}\.", unless)
        bad, good = re.findall(r"```python\n(.*?)\n```", assistant["content"], re.DOTALL)
        assert ast.parse(bad).body
        assert ast.parse(good).body
        assert bad != good


def test_nothing_leaks(splits: Rows) -> None:
    names = {split: {row["name"] for row in rows} for split, rows in splits.items()}
    assert len(set().union(*names.values())) == 100
    answers = {row["messages"][1]["content"] for rows in splits.values() for row in rows}
    assert len(answers) == 100
    others = make.QUESTIONS["valid"] + make.QUESTIONS["test"]
    assert set(make.QUESTIONS["train"]).isdisjoint(others)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bad": "def ("}, "is not Python"),
        ({"why": " "}, "the parts are"),
        ({"name": "return early"}, "another principle"),
        ({"good": "x = 1\n" * 17}, "more than 16 lines"),
    ],
)
def test_faults_are_found(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], sentence: str
) -> None:
    principles = make.read_principles()
    first = principles["naming_and_functions"][0]
    principles["naming_and_functions"].append({**first, "name": "New", **change})
    monkeypatch.setattr(make, "read_principles", lambda: principles)
    assert [sentence in fault for fault in make.faults()] == [True]
