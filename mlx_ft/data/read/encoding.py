"""Text in any Unicode encoding becomes UTF-8 with one kind of line end."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from mlx_ft.data.read.blocks import peek

MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
LOOK = 1 << 16
BROKEN = b"\xff"  # no UTF-8 text holds it: the row that it stands in is rejected


def utf8(data: Iterator[bytes]) -> tuple[str, Iterator[bytes]]:
    """The encoding that was found, and the blocks as UTF-8 without a byte order mark.

    UTF-16 and UTF-32 are known by their mark, or by the NULs beside the first two characters.
    Bytes that are not UTF-8 are left as they are; units that are not UTF-16 or UTF-32 become
    0xFF. Text whose first 64 KiB have carriage returns and no line feed gets line feeds.
    """
    head, data = peek(data, LOOK)
    encoding, mark = _encoding(head)
    data = _without(data, mark)
    if encoding != "utf-8":
        data = _transcoded(data, encoding)
        head, data = peek(data, LOOK)
    if b"\r" in head and b"\n" not in head:
        data = (block.replace(b"\r", b"\n") for block in data)
    return encoding.upper()[:6].rstrip("-"), data


def _encoding(head: bytes) -> tuple[str, int]:
    """The codec's name and the length of the mark."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name, len(mark)
    nulls = [byte == 0 for byte in head[:4]]
    found: dict[tuple[bool, ...], str] = {
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
    }
    return found.get(tuple(nulls), "utf-8"), 0


def _without(data: Iterator[bytes], length: int) -> Iterator[bytes]:
    for block in data:
        yield block[length:]
        length = max(0, length - len(block))


def _transcoded(data: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    unit = 4 if "32" in encoding else 2
    held = b""
    for block in data:
        held += block
        whole = len(held) - len(held) % unit
        if whole and encoding == "utf-16-le" and 0xD8 <= held[whole - 1] <= 0xDB:
            whole -= unit  # the first half of a pair waits for the second
        elif whole and encoding == "utf-16-be" and 0xD8 <= held[whole - 2] <= 0xDB:
            whole -= unit
        yield b"".join(_pieces(held[:whole], encoding))
        held = held[whole:]
    if held:
        yield b"".join(_pieces(held, encoding))


def _pieces(data: bytes, encoding: str) -> Iterator[bytes]:
    while data:
        try:
            yield data.decode(encoding).encode()
            return
        except UnicodeDecodeError as error:
            yield data[: error.start].decode(encoding).encode() + BROKEN
            data = data[error.end :]
