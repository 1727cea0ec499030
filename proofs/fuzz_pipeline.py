"""Damaged files through the whole pipeline: nothing but DataError, and every row accounted for.

python proofs/fuzz_pipeline.py [count=10000] [seed=0]

Each file is one of `fuzz_data`'s, damaged at random, or has rows of every format with values
replaced at random; it is read, parsed, encoded and reported on with options chosen at random.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlx_ft.config.schema import DataConfig
from mlx_ft.data.prepare import prepare
from mlx_ft.data.rows import FAULTS
from mlx_ft.errors import DataError
from proofs.fuzz_data import SEEDS, mutate
from tests.data.conftest import chatml

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
FORMATS = ("auto",) * 30 + ("messages", "sharegpt", "alpaca", "prompt_completion", "text",
                           "preference", "wikisql")  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"},
                  {"role": "assistant", "content": "Blue.", "weight": 0},
                  {"role": "user", "content": "Why?"},
                  {"role": "assistant", "content": "Light. " * 20}], "label": "desirable"},
    {"messages": [{"role": "user", "content": "Find."},
                  {"role": "assistant", "content": None, "tool_calls": [CALL]},
                  {"role": "tool", "tool_call_id": "c1", "content": "4"},
                  {"role": "assistant", "content": "It is 4."}],
     "tools": [{"type": "function", "function": {"name": "find", "parameters": {}}}]},
    {"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}],
     "system": "Be brief.", "label": "undesirable"},
    {"instruction": "Translate.", "input": "bleu", "output": "blue", "history": [["a", "b"]]},
    {"prompt": "Sky?", "completion": [{"role": "assistant", "content": "Blue."}], "label": True},
    {"text": "The sky is blue. " * 30},
    {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    {"question": "How old is Ann?", "table": {"header": ["Name", "Age"]},
     "sql": {"human_readable": "SELECT Age FROM table"}},
]  # fmt: skip
ODD: list[Any] = [None, "", " \n", 0, 1, -1.5, True, [], {}, "x", ["a", "b"], [[]],
                  {"role": "user"}, "<|im_end|>", "<|im_start|>assistant\n", "\u2028é😀",
                  "{{ 7 * 7 }}", "w " * 300, 10**30]  # fmt: skip


def replace_some(value: Any, rng: random.Random) -> Any:
    """A JSON value with some of what is in it replaced, left out or doubled."""
    if rng.random() < 0.01:
        return rng.choice(ODD)
    if isinstance(value, dict):
        items = [(key, replace_some(item, rng)) for key, item in value.items()]
        return dict(item for item in items if rng.random() > 0.005)
    if isinstance(value, list):
        items = [replace_some(item, rng) for item in value if rng.random() > 0.005]
        return items + items[-1:] * (rng.random() < 0.02)
    return value


def content(number: int, rng: random.Random) -> tuple[str, bytes]:
    """The name and the bytes of a file."""
    kinds = sorted(SEEDS)
    if number % 2:
        name, data = SEEDS[kinds[number // 2 % len(kinds)]]
        return name, mutate(data, rng)
    rows = [replace_some(row, rng) for row in rng.choices(ROWS, k=rng.randint(1, 12))]
    data = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode()
    return "rows.jsonl", mutate(data, rng) if rng.random() < 0.3 else data


def options(rng: random.Random) -> dict[str, Any]:
    """What a configuration might say."""
    return {
        "format": rng.choice(FORMATS),
        "overlong": rng.choice(("error", "drop", "truncate_left", "truncate_right", "split")),
        "train_on": rng.choice(("assistant", "last", "all")),
        "template": rng.choice((None, None, "chatml", "alpaca", "llama2", "llama3", "mistral")),
        "valid_fraction": rng.choice((0.0, 0.0, 0.1, 0.5)),
        "metric": rng.choice(("none", "none", "exact_match")),
        "max_errors": rng.choice((0, 3, "5%")),
    }


def check(report: dict[str, Any]) -> None:
    """Raise AssertionError where the counts of a report contradict each other."""
    for counts in (report["rows"], *report["files"]):
        assert counts["kept"] + counts["truncated"] + counts["rejected"] == counts["rows"]
    total, splits = report["rows"], report["splits"].values()
    assert total["rows"] == sum(file["rows"] for file in report["files"]) > 0
    assert sum(split["rows"] for split in splits) == total["kept"] + total["truncated"]
    assert sum(split["set_aside"] for split in splits) == total["set_aside"]
    assert sum(split["truncated_rows"] for split in splits) == total["truncated"]
    assert all(fault["code"] in FAULTS for fault in report["faults"])
    assert bool(report["faults"]) == (total["rejected"] > total["dropped"])
    json.dumps(report, allow_nan=False)


def main(count: int = 10_000, seed: int = 0) -> None:
    """Fuzz `count` files and print what became of them."""
    logging.getLogger("mlx_ft").setLevel(logging.CRITICAL)
    warnings.simplefilter("error")
    tokenizer = chatml()
    own = tokenizer.chat_template
    total, codes, refused = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            rng = random.Random(f"{seed}-{number}")  # noqa: S311 (repeatable, not secret)
            name, data = content(number, rng)
            path, config = Path(folder) / name, options(rng)
            path.write_bytes(data)
            tokenizer.chat_template = own
            length = rng.choice((2, 24, 64, 512, 512))
            try:
                config = {"path": str(path), "cache": False, **config}
                report = prepare(
                    DataConfig(**config), tokenizer, length, seed, path.parent, accept_faults=True
                ).report
                check(report)
            except DataError as error:
                refused[str(error).partition("\n")[0][:60]] += 1
            except BaseException:
                print(f"file {number} of seed {seed}: {length=} {config} {data[:3000]!r}")
                raise
            else:
                total.update(report["rows"])
                codes.update({fault["code"]: fault["count"] for fault in report["faults"]})
            path.unlink()
    rows = f"{total['rows']:,} rows = {total['kept']:,} kept + {total['truncated']:,} truncated"
    print(f"{count:,} files, seed {seed}: no exception but {refused.total():,} DataErrors")
    print(f"{rows} + {total['rejected']:,} rejected, in every file")
    for counts in (codes, refused):
        print(*(f"{number:>9,}  {name}" for name, number in counts.most_common()), sep="\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
