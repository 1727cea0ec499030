"""A file as a stream of byte blocks, unpacked when it is compressed: memory stays constant."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mlx_ft.data.rows import BadRow

BLOCK = 2 << 20
# A compressed Zstandard block of 4 bytes can stand for 128 KiB, and the library has no limit for
# the output of one call: this much input stands for 8 MiB at most.
ZSTD_INPUT = 256

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # its first byte is any of 0x50 to 0x5f


class Damaged(Exception):
    """A compressed file that ends early or does not unpack."""


def open_blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, unpacked by its first bytes. Raises OSError and Damaged."""
    with path.open("rb") as file:
        yield from unpacked(iter(partial(file.read, BLOCK), b""))


def unpacked(data: Iterator[bytes], layers: int = 2) -> Iterator[bytes]:
    """The blocks without gzip or Zstandard around them (at most `layers` of these)."""
    head, data = peek(data, 4)
    if layers and head.startswith(GZIP):
        return unpacked(_gunzip(data), layers - 1)
    if layers and (head == ZSTD or (head[1:] == ZSTD_SKIPPABLE and head[0] >> 4 == 5)):
        return unpacked(_unzstd(data), layers - 1)
    return data


def peek(data: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """At least `size` first bytes where there are as many, and the whole stream again.

    What went wrong while looking is raised again by the stream, at its place.
    """
    head = bytearray()
    failure: Exception | None = None
    try:
        while len(head) < size:
            head += next(data)
    except StopIteration:
        pass
    except (Damaged, OSError) as error:
        failure = error

    def again() -> Iterator[bytes]:
        first = bytes(head)
        head.clear()  # or it would be held as long as the stream
        if first:
            yield first
        del first
        if failure is not None:
            raise failure
        yield from data

    start = bytes(head[:size])
    return start, again()


def failure_row(path: Path, line: int, error: Exception, raw: str = "") -> BadRow:
    """What a stream's failure (OSError or Damaged) at this line is to a report."""
    if isinstance(error, Damaged):
        return BadRow(path, line, "archive_damaged", f"{error}; make the file again", raw)
    reason = getattr(error, "strerror", None) or error
    sentence = f"the file cannot be read: {reason}; check that it is there and may be read"
    return BadRow(path, line, "file_unreadable", sentence, raw)


def _gunzip(data: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = before = zlib.decompressobj(31)
    begun = False  # a member is open
    rest = b""
    try:
        for block in data:
            rest = block
            while rest:
                if not begun:
                    rest = rest.lstrip(b"\0")  # padding between and after the members
                    if not rest:
                        break
                    unpacker, begun = zlib.decompressobj(31), True
                out = rest
                while out and not unpacker.eof:  # beyond its end it would take the rest twice
                    before = unpacker.copy()
                    out = unpacker.decompress(rest, BLOCK)
                    yield out
                    rest = unpacker.unconsumed_tail
                rest = unpacker.unused_data
                begun = not unpacker.eof
    except zlib.error as error:
        yield from _salvaged(before, rest)
        raise Damaged(f"the gzip data is damaged ({error})") from error
    if begun:
        raise Damaged("the gzip data is cut off")


def _salvaged(unpacker: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What stands before the place where unpacking fails: a failing call gives nothing."""
    size = BLOCK
    while size:
        trial = unpacker.copy()
        try:
            out = trial.decompress(data, size)
        except zlib.error:
            size //= 2
            continue
        if not out:
            return
        yield out
        unpacker, data = trial, trial.unconsumed_tail


def _unzstd(data: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    unpacker = None
    try:
        for block in data:
            for start in range(0, len(block), ZSTD_INPUT):
                rest = block[start : start + ZSTD_INPUT]
                while rest:
                    unpacker = unpacker or zstandard.ZstdDecompressor().decompressobj()
                    if out := unpacker.decompress(rest):
                        yield out
                    rest = unpacker.unused_data if unpacker.eof else b""
                    unpacker = None if unpacker.eof else unpacker
    except zstandard.ZstdError as error:
        raise Damaged(f"the Zstandard data is damaged ({error})") from error
    if unpacker is not None:
        raise Damaged("the Zstandard data is cut off")
