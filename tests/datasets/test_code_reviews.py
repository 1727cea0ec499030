"""The reviews: files, lines, faults and mended code, judged by running them."""

import ast
import difflib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_ft.code_tests.run import bad_tests, extract_code
from mlx_ft.datasets.code_reviews import DESCRIPTION, make
from mlx_ft.datasets.code_reviews.faults import Fault, place, unmark
from mlx_ft.metrics import PythonTests

FOLDER = Path(make.__file__).parent
SIZES = {"train": 160, "valid": 20, "test": 20}
# The line that goes wrong is not the one that has to change.
MENDED_ELSEWHERE = {"local_counter"}
Rows = dict[str, list[dict[str, Any]]]


def read(split: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def splits() -> Rows:
    return {split: read(split) for split in SIZES}


@pytest.fixture(scope="module")
def rows(splits: Rows) -> list[dict[str, Any]]:
    return [row for rows in splits.values() for row in rows]


def codes(row: dict[str, Any]) -> tuple[str, str]:
    """The faulty and the mended code."""
    return extract_code(row["messages"][1]["content"]), extract_code(row["messages"][2]["content"])


def test_files_are_what_the_generator_writes(splits: Rows, tmp_path: Path) -> None:
    assert splits == make.make_splits()
    assert {split: len(rows) for split, rows in splits.items()} == SIZES == DESCRIPTION.rows
    assert make.main(["--out", str(tmp_path)]) == 0
    for split in SIZES:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_rows_have_one_shape(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert set(row) - {"setup"} == {"messages", "kind", "line", "tests"}
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
        assert not bad_tests(row["tests"])
        for code in codes(row):
            names = [node.name for node in ast.parse(code).body if hasattr(node, "name")]
            assert len(names) == len(set(names))
        assert 5 <= len(codes(row)[0].splitlines()) <= 25


def test_the_line_is_the_one_that_is_mended(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        faulty, mended = (code.splitlines() for code in codes(row))
        number, quoted = re.findall(r"^Line (\d+): `(.*)`$", row["messages"][2]["content"], re.M)[0]
        assert int(number) == row["line"]
        assert faulty[row["line"] - 1].strip() == quoted
        steps = difflib.SequenceMatcher(None, faulty, mended, autojunk=False).get_opcodes()
        changed = {
            at + 1
            for kind, start, end, _, _ in steps
            if kind != "equal"
            for at in range(start, max(end, start + 1))
        }
        assert row["line"] in changed or row["kind"] in MENDED_ELSEWHERE, row["messages"][2]


def test_families(splits: Rows) -> None:
    counts = {split: Counter(row["kind"] for row in rows) for split, rows in splits.items()}
    assert len(counts["train"]) >= 25
    assert min(counts["train"].values()) >= 4
    assert set(counts["valid"]) | set(counts["test"]) == set(counts["train"])
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{len(counts['train'])} families" in readme
    assert all(re.search(rf"\b{kind}\b", readme) for kind in counts["train"])


def test_nothing_leaks(splits: Rows) -> None:
    seen = {split: {codes(row)[0] for row in rows} for split, rows in splits.items()}
    assert {split: len(found) for split, found in seen.items()} == SIZES
    assert len(set().union(*seen.values())) == 200
    requests = make.REQUESTS["valid"] + make.REQUESTS["test"]
    assert set(make.REQUESTS["train"]).isdisjoint(requests)


@pytest.mark.slow
def test_faults_show_and_mended_code_passes(splits: Rows) -> None:
    """All 200: `make --check`."""
    assert list(make.wrong(splits["test"] + splits["valid"])) == []


def test_what_is_not_a_fault_is_found(splits: Rows) -> None:
    row = splits["test"][0]
    system, user, assistant = row["messages"]
    both = {**row, "messages": [system, {**user, "content": assistant["content"]}, assistant]}
    neither = {**row, "messages": [system, user, {**assistant, "content": user["content"]}]}
    (found,) = make.wrong([both])
    assert "passes" in found
    (found,) = make.wrong([neither])
    assert "the mended code" in found
    unloadable = {**user, "content": "```python\ndef (\n```"}
    (found,) = make.wrong([{**row, "messages": [system, unloadable, assistant]}])
    assert "SyntaxError" in found


def test_the_metric_judges_the_mended_code(splits: Rows) -> None:
    row = next(row for row in splits["train"] if "setup" in row)
    metric = PythonTests()
    assert metric(row["messages"][2]["content"], "", row)
    assert not metric(row["messages"][1]["content"], "", row)
    with pytest.raises(ValueError, match="`setup`"):
        metric("", "", {**row, "setup": 1})


def test_marks() -> None:
    assert unmark("a\n  b  #!\nc") == ("a\n  b\nc", 2)
    with pytest.raises(ValueError, match="2 lines"):
        unmark("a #!\nb #!")


def test_place() -> None:
    fault = Fault("k", "x = 1\ny = 2", 2, "x = 2", "what", "why", "", ())
    placed = place(fault, ["a = 1\nb = 2"], ["c = 3"])
    assert placed.faulty.splitlines()[placed.line - 1] == "y = 2"
    assert placed.mended == "a = 1\nb = 2\n\n\nx = 2\n\n\nc = 3"
