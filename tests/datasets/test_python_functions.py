"""The functions: files, answers and tests, judged by running them. All of it: `make --check`."""

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_ft.code_tests.run import bad_tests, run_tests
from mlx_ft.datasets.python_functions import DESCRIPTION, families, make

FOLDER = Path(make.__file__).parent
SIZES = {"train": 400, "valid": 50, "test": 50}
Rows = dict[str, list[dict[str, Any]]]


def read(split: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def splits() -> Rows:
    return {split: read(split) for split in SIZES}


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[families.Task]]:
    return make.split_tasks()


def answer(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def shape(code: str) -> str:
    """The code with its own names replaced: what is left is what it does."""
    tree = ast.parse(code)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    names = {function.name: "f"} | {arg.arg: f"a{at}" for at, arg in enumerate(function.args.args)}
    function.name = "f"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg = names.get(node.arg, node.arg)
    return ast.dump(tree)


def test_files_are_what_the_generator_writes(
    splits: Rows, tasks: dict[str, list[families.Task]]
) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == SIZES == DESCRIPTION.rows
    for split, rows in splits.items():
        found = make.ask(split, tasks[split])
        assert [
            {**row, "tests": given["tests"]} for row, given in zip(found, rows, strict=True)
        ] == rows
        sample = range(0, len(rows), 25)
        assert [make.write_tests(tasks[split][at]) for at in sample] == [
            rows[at]["tests"] for at in sample
        ]


def test_rows_have_one_shape(splits: Rows) -> None:
    for row in (row for rows in splits.values() for row in rows):
        assert set(row) == {"messages", "kind", "tests"}
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
        assert 4 <= len(row["tests"]) <= 8
        assert not bad_tests(row["tests"])
        name, arguments = re.findall(r"`(\w+)\((.*?)\)`", row["messages"][1]["content"])[0]
        assert answer(row).startswith(f"def {name}({arguments}):\n    ")
        assert 2 <= len(answer(row).splitlines()) <= 8
        assert len(answer(row)) + len(row["messages"][1]["content"]) < 420


def test_families(splits: Rows) -> None:
    counts = {split: Counter(row["kind"] for row in rows) for split, rows in splits.items()}
    assert len(counts["train"]) >= 60
    assert min(counts["train"].values()) >= 4
    assert set(counts["valid"]) | set(counts["test"]) == set(counts["train"])


def test_nothing_leaks(splits: Rows) -> None:
    """The rule: no function of one split, whatever its names, and no request is in another."""
    shapes = {split: {shape(answer(row)) for row in rows} for split, rows in splits.items()}
    assert {split: len(found) for split, found in shapes.items()} == SIZES
    assert len(set().union(*shapes.values())) == 500
    assert set(make.REQUESTS["train"]).isdisjoint(make.REQUESTS["valid"] + make.REQUESTS["test"])
    requests = [row["messages"][1]["content"] for rows in splits.values() for row in rows]
    assert len(set(requests)) == 500


@pytest.mark.slow
def test_answers_pass_and_wrong_ones_fail(
    splits: Rows, tasks: dict[str, list[families.Task]]
) -> None:
    pairs = list(zip(tasks["test"], splits["test"], strict=True))
    assert list(make.faults(pairs[::3])) == []
    assert all(len(task.wrong) >= 4 for found in tasks.values() for task in found)


def test_faults_are_found(tasks: dict[str, list[families.Task]]) -> None:
    task = tasks["test"][0]
    name = task.signature.split("(")[0]
    toothless = [f"assert {name} is not None"]
    found = list(make.faults([(task, {"tests": toothless})]))
    assert len(found) == len(task.wrong)
    (first, *_) = make.faults([(task, {"tests": [f"assert {name} is None"]})])
    assert "the answer fails" in first


def test_tests_come_from_another_solution_than_the_answer(
    tasks: dict[str, list[families.Task]],
) -> None:
    for task in tasks["test"]:
        check = task.check.split("return ", 1)[1].strip()
        assert f"return {check}" not in task.code
        assert run_tests(task.check, ["assert expected"]).passed


def test_edits_must_fit() -> None:
    assert list(families.edits("a => b\nc =>\n", "a c")) == ["b c", "a "]
    with pytest.raises(ValueError, match="is not in"):
        list(families.edits("x => y", "a"))


def test_fillings() -> None:
    slots: dict[str, list[Any]] = {"n": [1, 2], "way": [{"side": "left", "sign": ""}]}
    assert families.fillings(slots) == [
        {"n": "1", "side": "left", "sign": ""},
        {"n": "2", "side": "left", "sign": ""},
    ]
    assert families.fill("${side}_$n", families.fillings(slots)[1]) == "left_2"


def test_readme_counts_the_families(splits: Rows) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    kinds = {row["kind"] for row in splits["train"]}
    assert f"{len(kinds)} families" in readme
