"""Write what is trained on and asked of page.md: `python make.py [--check]` in this folder.

upload.json: the body of POST /api/training/data/upload; chats.jsonl: the same rows as OpenAI's
files have them; test.jsonl: the questions of the end, for `mlx-ft evaluate --metric
contains_answer`, too.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
SEED = 42
TEXT = "### Instruction:\n{}\n\n### Response:\n{}"

Fact = Mapping[str, Any]


def facts() -> list[Fact]:
    """Those of questions.yaml."""
    found: list[Fact] = yaml.safe_load((FOLDER / "questions.yaml").read_text("utf-8"))
    return found


def pairs(found: Sequence[Fact]) -> list[tuple[str, str]]:
    """Every (question, answer) that is trained on, mixed, the same on every machine."""
    rows = [(question, fact["answer"]) for fact in found for question in fact["train"]]
    random.Random(SEED).shuffle(rows)  # noqa: S311 - not for secrets
    return rows


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row as OpenAI's files have it."""
    turns = {"user": question, "assistant": answer}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


def tests(found: Sequence[Fact]) -> Iterator[dict[str, Any]]:
    """The questions that are kept for the end."""
    for fact in found:
        if "test" in fact:
            yield {**chat(fact["test"], fact["answer"]), "answer": fact["right"]}


def files() -> dict[str, str]:
    """The text of each file."""
    found = facts()
    texts = [TEXT.format(*pair) for pair in pairs(found)]
    chats = [chat(*pair) for pair in pairs(found)]
    body = {"dataset_name": "forty_two", "train_texts": texts}
    return {
        "upload.json": json.dumps(body, indent=1) + "\n",
        "chats.jsonl": "".join(json.dumps(row) + "\n" for row in chats),
        "test.jsonl": "".join(json.dumps(row) + "\n" for row in tests(found)),
    }


def main(arguments: Sequence[str]) -> int:
    """Write the files; with `--check` only say whether they are what would be written."""
    wrong = 0
    for name, text in files().items():
        path = FOLDER / name
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            print(f"{path}: differs from what make.py writes; run it without --check")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
