"""Lines of a journal on the disk: whole ones are read, damage is noticed, torn ends are mended."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

SEAL = ', "crc": '
MEND_BLOCK = 1 << 16  # bytes


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without a torn last one; none where there is no file."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or _is_whole(line):
                    yield line
    except FileNotFoundError:
        return


def mend(descriptor: int) -> None:
    """End a last line that lacks only its end; cut off one that is not whole."""
    content = b""
    size = os.fstat(descriptor).st_size
    start = size
    while start and b"\n" not in content:
        start = max(0, start - MEND_BLOCK)
        content = os.pread(descriptor, size - start, start)
    tail = content[content.rfind(b"\n") + 1 :]
    if tail and _is_whole(tail):
        os.write(descriptor, b"\n")
    elif tail:
        os.ftruncate(descriptor, size - len(tail))


def sealed(body: str) -> bytes:
    """The line of a JSON object, with a checksum as its last value."""
    return f"{body[:-1]}{SEAL}{zlib.crc32(body.encode())}}}\n".encode()


def parse(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises ValueError on any damage."""
    body, _, checksum = line.decode().rpartition(SEAL)
    values = json.loads(body + "}")
    if not isinstance(values, dict) or checksum.strip() != f"{zlib.crc32(f'{body}}}'.encode())}}}":
        raise ValueError("another checksum")
    return values


def _is_whole(line: bytes) -> bool:
    try:
        parse(line)
    except (ValueError, RecursionError):
        return False
    return True


def to_ranges(numbers: list[int]) -> list[list[int]]:
    """[1, 2, 3, 7] -> [[1, 3], [7, 7]]"""
    groups = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    members = [[number for _, number in group] for _, group in groups]
    return [[group[0], group[-1]] for group in members]


def from_ranges(ranges: list[list[int]]) -> set[int]:
    """[[1, 3], [7, 7]] -> {1, 2, 3, 7}"""
    return {number for first, last in ranges for number in range(first, last + 1)}
