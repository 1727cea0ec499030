"""Faults, repeats and leaks planted among 50,000 rows are found: each at its line, nothing else.

python proofs/planted_data.py [rows=50000] [seed=0]

A fault of every code is planted in 1% of the rows (of the files, where a code is about files),
through the same pass that training starts with and the embedded model's tokenizer. Exits 1 when
something is missed, or reported where nothing is wrong.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import random
import re
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from mlx_ft import runtime
from mlx_ft.config.schema import DataConfig, ModelConfig
from mlx_ft.data import duplicates, formats
from mlx_ft.data.prepare import Dataset, prepare
from mlx_ft.data.rows import FAULTS, Record
from mlx_ft.models.tokenizer import fetch_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SHARE = 0.01
MAX_TOKENS = 512
LONG = 700  # words: more than MAX_TOKENS tokens
FILES = 200
HUGE = 65 << 20  # bytes of a line; the limit is 64 MiB
HUGE_SHARE = 0.1  # of the rows are enough for the run with huge lines: 50 of them are 3 GiB
Rows = list[dict[str, Any]]
Faulty = Callable[[random.Random, "Text"], bytes]
# Adjacent turns of one speaker are merged, and tools are left out: both can make rows unusable.
MERGING = (
    "{% for m in messages %}"
    "{% if loop.first or m['role'] != messages[loop.index0 - 1]['role'] %}"
    "<|im_start|>{{ m['role'] }}\n{% endif %}{{ m['content'] }}"
    "{% if loop.last or m['role'] != messages[loop.index]['role'] %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Text:
    """Chats of random words out of this project's documentation."""

    def __init__(self, rng: random.Random) -> None:
        text = " ".join(path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md")))
        self.words = sorted(set(re.findall(r"\b[a-z]{2,12}\b", text)))
        self.rng = rng

    def said(self, fewest: int = 6, most: int = 40) -> str:
        """A sentence of so many words."""
        count = self.rng.randint(fewest, most)
        return " ".join(self.rng.choices(self.words, k=count)).capitalize() + "."

    def turns(self, fewest: int = 6, most: int = 40) -> Rows:
        """One to three questions with their answers."""
        roles = ["user", "assistant"] * self.rng.choice((1, 1, 2, 3))
        return [{"role": role, "content": self.said(fewest, most)} for role in roles]

    def chat(self, **more: Any) -> dict[str, Any]:
        """A good row."""
        return {"messages": self.turns(), **more}

    def call(self, arguments: Any = "{}", **more: Any) -> dict[str, Any]:
        """A turn that calls a tool."""
        function = {"name": "web_search", "arguments": arguments}
        calls = [{"function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls, **more}


def line(fields: Any) -> bytes:
    """A row as a line of JSON Lines."""
    return json.dumps(fields, ensure_ascii=False).encode()


def replaced(old: bytes, new: bytes) -> Faulty:
    """A good row in which the first `old` is something else."""
    return lambda _, text: line(text.chat(score=0.5)).replace(old, new, 1)


def row(make: Callable[[Text], Any]) -> Faulty:
    """A way to make a row that may be any value."""
    return lambda _, text: line(make(text))


def with_turn(place: int, **turn: Any) -> Faulty:
    """A good row with one turn changed."""

    def make(text: Text) -> Any:
        chat = text.chat()
        chat["messages"][place] |= turn
        return chat

    return row(make)


def cut(rng: random.Random, text: Text) -> bytes:
    """A row that breaks off."""
    whole = line(text.chat())
    return whole[: rng.randrange(1, len(whole))]


def pair(text: Text) -> dict[str, str]:
    """A good row of two texts."""
    return {"prompt": text.said(), "completion": text.said()}


# Code -> ways for a row of JSON Lines to have it.
WAYS: dict[str, list[Faulty]] = {
    "encoding": [replaced(b'."', b'\xe9."'), replaced(b'."', b'\xff"'), replaced(b"e", b"\x80e")],
    "json_syntax": [
        cut,
        replaced(b'"messages"', b"'messages'"),
        replaced(b"}]", b"},]"),
        replaced(b"0.5", b"None"),
        lambda _, text: line(text.chat()) + line(text.chat()),
    ],
    "nan_literal": [replaced(b"0.5", value) for value in (b"NaN", b"-Infinity", b"1e999")],
    "duplicate_key": [
        replaced(b"{", b'{"messages": [], '),
        replaced(b'{"role"', b'{"content": "Twice.", "role"'),
    ],
    "not_an_object": [
        row(lambda text: text.turns()),
        row(lambda text: text.said()),
        lambda *_: b"null",
        lambda *_: b"42",
    ],
    "nesting": [
        lambda *_: b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        row(lambda text: {"messages": [*text.turns(), text.call("[" * 900 + "]" * 900)]}),
    ],
    "no_format": [
        row(lambda text: {"body": text.said(), "title": text.said()}),
        row(lambda text: {"message": text.turns()}),
        row(lambda text: {"instruction": text.said()}),
        row(lambda text: {**pair(text), "text": text.said()}),  # which of the two?
    ],
    "wrong_type": [
        with_turn(0, content=7),
        with_turn(1, content=None),
        row(lambda text: {"messages": text.said()}),
        row(lambda text: {"messages": [text.said()]}),
        row(lambda text: {"prompt": text.said(), "completion": {"is": text.said()}}),
    ],
    "unknown_role": [with_turn(0, role="narrator"), with_turn(-1, role="Assistant ")],
    "role_order": [
        row(lambda text: {"messages": text.turns()[1:] + text.turns()}),
        row(lambda text: {"messages": [*text.turns(), {"role": "system", "content": "Stop."}]}),
        row(lambda text: {"messages": [*text.turns(), {"role": "tool", "content": "4"}]}),
    ],
    "empty_turn": [with_turn(0, content=""), with_turn(-1, content=" \n\t")],
    "no_assistant": [
        row(lambda text: {"messages": text.turns()[:1]}),
        lambda *_: b'{"messages": []}',
    ],
    "label": [row(partial(Text.chat, label=label)) for label in ("desireable", [1], 0.5)],
    "no_preference": [
        row(lambda text: {"prompt": "Which?", "chosen": (same := text.said()), "rejected": same}),
    ],
    "weight": [with_turn(-1, weight=weight) for weight in (2, "all", 0.5, -1)],
    "tools": [
        row(lambda text: text.chat(tools="search")),
        row(lambda text: text.chat(tools=[{"description": "without a name"}])),
        row(lambda text: {"messages": [*text.turns(), text.call("{city: Oslo}")]}),
        row(lambda text: {"messages": [text.call(role="user"), *text.turns()]}),
    ],
    "lone_surrogate": [replaced(b'."', b'\\ud83d."'), replaced(b'."', b'\\udc00 \\ud83d."')],
    "control_character": [
        replaced(b'."', mark + b'."') for mark in (b"\x00", b"\x0b", b"\x7f", b"\\u0007")
    ],
    "overlong": [row(lambda text: {"messages": text.turns(LONG, LONG)})],
    "no_target": [
        row(lambda text: {"messages": [turn | {"weight": 0} for turn in text.turns()]})
    ],
}  # fmt: skip
# With data.template=MERGING and data.overlong=truncate_right.
RENDERED: dict[str, list[Faulty]] = {
    "template_refused": [
        row(lambda text: text.chat(tools=[{"name": "web_search", "parameters": {}}])),
        row(lambda text: {"messages": [*text.turns(), text.call()]}),
    ],
    "mask_in_doubt": [
        row(lambda text: {"messages": [
            {"role": "user", "content": text.said()},
            {"role": "assistant", "content": text.said(), "weight": 0},
            {"role": "assistant", "content": text.said()},
        ]}),
    ],
    "cut_off": [
        row(lambda text: {"prompt": text.said(LONG, LONG), "completion": text.said()}),
    ],
}  # fmt: skip
# With data.metric=exact_match.
JUDGED: dict[str, list[Faulty]] = {
    "unjudgeable": [
        row(lambda text: {"text": text.said()}),
        row(lambda text: {"messages": [*text.turns(), {"role": "user", "content": "So?"}]}),
    ]
}


class Proof:
    """Runs over made-up files, and what was found of what was planted."""

    def __init__(self, rows: int, seed: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self.rng = random.Random(seed)  # noqa: S311 (repeatable, not secret)
        self.text = Text(self.rng)
        self.tokenizer = fetch_tokenizer(ModelConfig(), runtime.default_cache_dir())
        self.own_template = self.tokenizer.chat_template
        self.wrong = 0
        self.planted_codes: set[str] = set()

    def prepared(self, **config: Any) -> Dataset:
        """The dataset of some files, rejected rows and all."""
        self.tokenizer.chat_template = self.own_template
        config = {"cache": False, "valid_fraction": 0.0, **config}
        return prepare(
            DataConfig(**config), self.tokenizer, MAX_TOKENS, 0, self.folder, accept_faults=True
        )

    def say(self, what: str, planted: int, found: int, others: int) -> None:
        """A line of the table."""
        right = planted == found and not others
        self.wrong += not right
        print(f"{what:<28}{planted:>9,}{found:>9,}{others:>9,}  {'' if right else 'WRONG'}")

    def lines(self, name: str, ways: dict[str, list[Faulty]], rows: int) -> dict[str, str]:
        """Write JSON Lines with `SHARE` of the rows of each code; the faults planted."""
        path = self.folder / name
        number = max(1, int(SHARE * rows))
        places = self.rng.sample(range(1, rows + 1), number * len(ways))
        codes = [code for code in ways for _ in range(number)]
        planted = dict(zip(places, codes, strict=True))
        with path.open("wb") as file:
            for at in range(1, rows + 1):
                if at in planted:
                    way = self.rng.choice(ways[planted[at]])
                    file.write(way(self.rng, self.text) + b"\n")
                else:
                    file.write(line(self.text.chat()) + b"\n")
        return {f"{path}:{at}": code for at, code in planted.items()}

    def compare(self, dataset: Dataset, planted: dict[str, str], rows: int) -> None:
        """Print for each code what was planted, found at its line, and reported elsewhere."""
        with (dataset.quarantine.parent / "quarantine.reasons.jsonl").open() as file:
            reasons = [json.loads(reason) for reason in file]
        said = {reason["where"]: reason for reason in reasons}
        self.planted_codes.update(planted.values())
        for code, number in Counter(planted.values()).items():
            found = {where for where, reason in said.items() if reason["code"] == code}
            right = {where for where in found if planted.get(where) == code}
            self.say(code, number, len(right), len(found) - len(right))
        for where in list({**planted, **said}):
            told = said.get(where, {"code": "nothing", "sentence": ""})
            if (code := planted.get(where, "nothing")) != told["code"]:
                found = f"{told['code']}: {told['sentence'][:150]}"
                print(f"    {where}: planted {code}, found {found}")
        counts = dataset.report["rows"]
        whole = counts["kept"] + counts["truncated"] + counts["rejected"]
        adds_up = whole == counts["rows"] == rows and len(said) == len(reasons)
        if not adds_up or counts["kept"] != rows - len(planted):
            self.wrong += 1
            print(f"    WRONG: the rows do not add up: {rows} written, {counts}")

    def likenesses(self) -> None:
        """A near-duplicate, a near leak and an exact one among rows that are all different."""
        valid = self.rows // 50
        train = [self.text.chat() for _ in range(self.rows - valid)]
        held = [self.text.chat() for _ in range(valid)]
        a, b, c, d = self.rng.sample(range(len(train)), 4)
        a, b = sorted((a, b))
        e, f = self.rng.sample(range(valid), 2)
        for place in (a, c):
            train[place] = {"messages": self.text.turns(70, 90)[:2]}
        train[b] = self.changed(train[a], 3)
        held[e], held[f] = self.changed(train[c], 3), train[d]
        files = {"train": train, "valid": held}
        for name, rows in files.items():
            (self.folder / f"{name}.jsonl").write_bytes(b"".join(line(one) + b"\n" for one in rows))
        report = self.prepared(path=str(self.folder / "train.jsonl"),
                               valid_path=str(self.folder / "valid.jsonl")).report  # fmt: skip

        def pair(one: tuple[str, int], other: tuple[str, int]) -> list[str]:
            return [f"{self.folder / name}.jsonl:{at + 1}" for name, at in (one, other)]

        splits, overlap = report["splits"], report["overlap"]["valid"]
        train_found = splits["train"]["first_repeats"]
        others = splits["valid"]["duplicates"] + splits["valid"]["near_duplicates"]
        others += splits["train"]["duplicates"] + splits["train"]["near_duplicates"] - 1
        self.say("near repeat in training", 1, pair(("train", b), ("train", a)) in train_found,
                 others)  # fmt: skip
        near, exact = pair(("valid", e), ("train", c)), pair(("valid", f), ("train", d))
        self.say("near leak", 1, near in overlap["first"], overlap["near"] - 1)
        self.say("exact leak", 1, exact in overlap["first"], overlap["exact"] - 1)
        if report["rows"]["rejected"]:
            self.wrong += 1
            print("    WRONG: good rows are rejected")

    def changed(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """The row with some words of its answer replaced."""
        *before, last = row["messages"]
        words = last["content"].split(" ")
        for place in self.rng.sample(range(len(words)), number):
            words[place] = self.rng.choice([w for w in self.text.words if w != words[place]])
        return {"messages": [*before, last | {"content": " ".join(words)}]}

    def recall(self) -> None:
        """What share of copies with so many of 100 words changed is taken for repeats."""
        print("\nwords changed of 100, and the share of 200 such copies that is found:")
        for number in (1, 2, 3, 4, 6, 8, 12):
            rows: Rows = []
            for _ in range(200):
                turns = [{"role": role, "content": self.text.said(50, 50)}
                         for role in ("user", "assistant")]  # fmt: skip
                rows += [{"messages": turns}, self.changed({"messages": turns}, number)]
            said = [formats.parse(Record(fields, Path("x"), 1)) for fields in rows]
            collected = duplicates.Signatures()
            collected.add(said)
            prints = [int(formats.fingerprint(one)[:16], 16) for one in said]
            groups = duplicates.group(collected.all(), np.array(prints, np.uint64))
            print(f"  {number:>3}  {np.mean(groups.of[::2] == groups.of[1::2]):.0%}")

    def faulty_lines(self) -> None:
        """Every code that a row of JSON Lines can have with the default template."""
        planted = self.lines("mixed.jsonl", WAYS, self.rows)
        dataset = self.prepared(path=str(self.folder / "mixed.jsonl"), overlong="error")
        self.compare(dataset, planted, self.rows)

    def huge_lines(self) -> None:
        """Lines beyond 64 MiB, packed: each is a gzip member of its own, compressed once."""
        path, rows = self.folder / "huge.jsonl.gz", int(HUGE_SHARE * self.rows)
        huge = gzip.compress(b'{"text": "' + b"a " * (HUGE // 2) + b'"}\n', 1)
        faulty = set(self.rng.sample(range(1, rows + 1), max(1, int(SHARE * rows))))
        with path.open("wb") as file:
            for at in range(1, rows + 1):
                good = gzip.compress(line(self.text.chat()) + b"\n")
                file.write(huge if at in faulty else good)
        planted = dict.fromkeys((f"{path}:{at}" for at in faulty), "huge_line")
        self.compare(self.prepared(path=str(path)), planted, rows)

    def rendered(self) -> None:
        """Codes that a chat template brings up."""
        planted = self.lines("rendered.jsonl", RENDERED, self.rows)
        path = str(self.folder / "rendered.jsonl")
        self.compare(self.prepared(path=path, template=MERGING), planted, self.rows)

    def judged(self) -> None:
        """Validation rows without an answer that a metric could judge."""
        planted = self.lines("judged.jsonl", JUDGED, self.rows - 100)
        (self.folder / "some.jsonl").write_bytes(
            b"".join(line(self.text.chat()) + b"\n" for _ in range(100))
        )
        config = {"path": str(self.folder / "some.jsonl"), "metric": "exact_match"}
        dataset = self.prepared(valid_path=str(self.folder / "judged.jsonl"), **config)
        self.compare(dataset, planted, self.rows)

    def table(self) -> None:
        """Rows of CSV, some over several lines, with a cell too many or too few or open quotes."""
        path = self.folder / "table.csv"
        number = max(1, int(SHARE * self.rows))
        faulty = set(self.rng.sample(range(self.rows), number))
        planted, at = {}, 2
        with path.open("w", newline="") as file:
            file.write("prompt,completion,id\n")
            for i in range(self.rows):
                cells = [self.text.said().replace(" ", self.rng.choice((" ", ", ", "\n")), 1)
                         for _ in range(2)]  # fmt: skip
                record = self._record([*cells, str(i)])
                if i in faulty:
                    record = self.rng.choice((
                        self._record([*cells, str(i), "more"]),
                        self._record(cells),
                        f'"Open,{self.text.said()},{i}\n',
                        f'"Closed" and on,{self.text.said()},{i}\n',
                    ))  # fmt: skip
                    planted[f"{path}:{at}"] = "columns"
                file.write(record)
                at += record.count("\n")
        self.compare(self.prepared(path=str(path)), planted, self.rows)

    def _record(self, cells: Iterable[str]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue()

    def files(self) -> None:
        """Packed files, 1% of them cut off and 1% no data at all."""
        faulty = self.rng.sample(range(FILES), 2 * max(1, int(SHARE * FILES)))
        folder = self.folder / "files"
        folder.mkdir()
        planted, rows = {}, 0
        for i in range(FILES):
            path = folder / f"part-{i:03}.jsonl.gz"
            content = [line(self.text.chat()) + b"\n" for _ in range(self.rows // FILES)]
            data = gzip.compress(b"".join(content), mtime=0)
            rows += len(content)
            if i in faulty[::2]:
                data = data[: self.rng.randrange(len(data) // 4, len(data) - 20)]
                whole = zlib.decompressobj(31).decompress(data).count(b"\n")
                planted[f"{path}:{whole + 1}"] = "archive_damaged"
                rows += whole + 1 - len(content)
            elif i in faulty:
                data = self.rng.choice((b"", b"%PDF-1.7\n", b"<!DOCTYPE html><html>", b"\n \n"))
                planted[f"{path}:1"] = "file_unreadable"
                rows += 1 - len(content)
            path.write_bytes(data)
        self.compare(self.prepared(path=f"{folder}/*.jsonl.gz"), planted, rows)


def main(rows: int = 50_000, seed: int = 0) -> int:
    """Run every part; 1 when something was missed."""
    runtime.prepare()
    logging.getLogger("mlx_ft").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(rows, seed, Path(folder))
        print(f"{rows:,} rows, seed {seed}\n{'':<28}{'planted':>9}{'found':>9}{'others':>9}")
        for part in (proof.likenesses, proof.faulty_lines, proof.huge_lines, proof.rendered,
                     proof.judged, proof.table, proof.files):  # fmt: skip
            start = time.monotonic()
            part()
            print(f"  -- {part.__name__}: {time.monotonic() - start:.0f} s", flush=True)
        proof.recall()
    missing = sorted(FAULTS.keys() - proof.planted_codes)
    print(f"\ncodes: {len(proof.planted_codes)} of {len(FAULTS)} planted; not: {missing or 'none'}")
    print("WRONG" if proof.wrong or missing else "every planted thing found, and nothing else")
    return 1 if proof.wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
