"""What a token says, alone: for log probabilities."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

SPACE = "\u0120"  # how byte-level tokenizers write a space, and no others
PIECE = "\u2581"  # how SentencePiece writes one
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Words:
    """The tokens of a tokenizer as texts and bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._by_bytes = any(SPACE in token for token in tokenizer.get_vocab())

    def word(self, token: int) -> tuple[str, list[int]]:
        """(text, bytes); half a character is a replacement mark as text, and whole as bytes."""
        content = self._content(token)
        return content.decode("utf-8", "replace"), [*content]

    def _content(self, token: int) -> bytes:
        text = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(text, str):
            return b""
        if self._by_bytes:
            table = _table()
            if all(character in table for character in text):
                return bytes(table[character] for character in text)
        elif found := BYTE.fullmatch(text):
            return bytes([int(found[1], 16)])
        return text.replace(PIECE, " ").encode()


@functools.cache
def _table() -> Mapping[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: the printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {chr(byte) if byte in plain else chr(next(others)): byte for byte in range(256)}
