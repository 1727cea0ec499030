"""Files of every kind, damaged at random: reading them never raises, and the rows add up.

python proofs/fuzz_data.py [count=10000] [seed=0]
"""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow as pa
import zstandard
from pyarrow import parquet

from mlx_ft.data.read import ReadStats, read
from mlx_ft.data.rows import FAULTS, BadRow, Record

ROWS = [
    {"messages": [{"role": "user", "content": f"{i} é"}, {"role": "assistant", "content": "😀\n"}]}
    for i in range(8)
]


def _lines() -> bytes:
    lines = (json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(ROWS))
    return "".join(lines).encode()


def _csv() -> bytes:
    cells = (json.dumps(row["messages"]).replace('"', '""') for row in ROWS)
    return "".join(["id,text,messages\n", *(f'1,"a\nb","{cell}"\n' for cell in cells)]).encode()


def _parquet() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS * 20), file, row_group_size=50)
    return file.getvalue()


SEEDS = {
    "jsonl": ("a.jsonl", _lines()),
    "list": ("a.json", json.dumps(ROWS).encode()),
    "printed": ("b.json", json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
    "object": ("c.json", json.dumps({"version": 1, "data": ROWS, "n": 1}, indent=1).encode()),
    "objects": ("d.json", "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()),
    "csv": ("a.csv", _csv()),
    "tsv": ("a.tsv", _csv().replace(b",", b"\t")),
    "parquet": ("a.parquet", _parquet()),
    "utf16": ("b.jsonl", _lines().decode().encode("utf-16")),
    "utf32": ("c.jsonl", _lines().decode().encode("utf-32-be")),
    "gzip": ("a.jsonl.gz", gzip.compress(_lines(), mtime=0)),
    "zstd": ("a.json.zst", zstandard.compress(json.dumps(ROWS).encode())),
    "parquet.gz": ("a.parquet.gz", gzip.compress(_parquet(), mtime=0)),
}
MARKS = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"\n", b"\r", b"\0", b"\xff", b"\xed\xa0\x80",
         b"NaN", b"1e999", b"\\ud800", b"\\u0000", b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf",
         b"[" * 3000, b"9" * 5000]  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Some bit flips, cuts, splices, duplicated and deleted pieces."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        near = a + rng.randrange(20)
        kind = rng.randrange(7)
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[b:]
        elif kind == 2:
            data[a:near] = rng.choice(MARKS)
        elif kind == 3:
            data[a:a] = data[a:b]
        elif kind == 4:
            del data[a:near]
        elif kind == 5:
            other = rng.choice(list(SEEDS.values()))[1]
            start = rng.randrange(len(other))
            data[a:near] = other[start : start + rng.randrange(200)]
        else:
            data[a:a] = rng.randbytes(rng.randrange(1, 20))
    return bytes(data)


def check(path: Path) -> Counter[str]:
    """Read a file; how often each code came. Raises AssertionError where the rows do not add up."""
    stats, codes, last = ReadStats(), Counter[str](), 1
    good = 0
    for row in read(path, stats):
        assert row.line >= last, f"line {row.line} after {last}"
        last = row.line
        if isinstance(row, Record):
            good += 1
            assert isinstance(row.fields, dict)
            json.dumps(row.fields, allow_nan=False).encode()
            json.dumps(row.fields, ensure_ascii=False).encode()  # no lone surrogates
        else:
            assert isinstance(row, BadRow)
            assert row.code in FAULTS, row.code
            assert row.sentence
            codes[row.code] += 1
    assert (stats.rows, stats.bad) == (good, codes.total())
    assert good + codes.total() > 0, "nothing was said about the file"
    codes["(good)"] = good
    return codes


def main(count: int = 10_000, seed: int = 0) -> None:
    """Fuzz `count` files and print what became of them."""
    total = Counter[str]()
    kinds = sorted(SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            rng = random.Random(f"{seed}-{number}")  # noqa: S311 (repeatable, not secret)
            name, content = SEEDS[kinds[number % len(kinds)]]
            path = Path(folder) / name
            path.write_bytes(mutate(content, rng))
            try:
                total += check(path)
            except BaseException:
                print(f"file {number} of seed {seed} ({name}): {path.read_bytes()!r}")
                raise
    print(f"{count:,} files, seed {seed}: no exception, every row accounted for")
    for code, rows in total.most_common():
        print(f"{rows:>9,}  {code}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
