"""Rendered text to token ids: in batches on all cores, and exactly as one call per text gives."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from mlx_ft.data import seams
from mlx_ft.data.rows import Fault, RowError

LONG = 2 * seams.PART  # characters: longer pieces are encoded in parts
TOGETHER = 2_000_000  # characters encoded in one call, at about 150 bytes of memory for each
LOOKED_AT = 20_000  # characters of the longest text, to see whether cutting changes nothing
PROBE = "a b\nc é {0}a b\n c {0} d{0}\n"


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer, plain or in mlx-lm's wrapper."""

    chat_template: Any
    bos_token_id: int | None
    eos_token_id: int | None
    all_special_tokens: list[str]
    special_tokens_map: dict[str, Any]

    def __hash__(self) -> int: ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any:
        """The rendered text (`tokenize=False`), or token ids."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; control tokens written out in the text become themselves."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        ...


class Encoder:
    """A tokenizer with what is known of its tokens.

    A text is cut before control tokens, where every tokenizer cuts it too, so that what rows and
    their prompts share is encoded once; `prefetch` encodes the pieces of many texts together.
    """

    def __init__(self, tokenizer: Tokenizer, rendered: str = "") -> None:
        """rendered: a conversation in the template, which shows the control tokens that it uses."""
        self.tokenizer = tokenizer
        self._backend = _backend(tokenizer)
        self._cut = self._cutter(rendered)
        self._seams = None if self._backend is None else seams.find(self._backend)
        self._known: dict[str, list[int]] = {}
        self._split: dict[str, list[str]] = {}
        self._control: dict[int, bool] = {}
        self._blank: dict[int, bool] = {}
        plain = tokenizer.encode("", add_special_tokens=True)
        self.bos = tokenizer.bos_token_id
        self.adds_bos = self.bos is not None and plain[:1] == [self.bos]

    def prefetch(self, texts: Iterable[str]) -> None:
        """Encode the pieces of `texts` together, and forget those of the call before."""
        texts = list(texts)
        self._known, self._split = {}, {}
        if self._backend is None or not texts:
            return
        self._known = self._batch(self._all_pieces(texts))
        longest = max(texts, key=len)[:LOOKED_AT]
        whole = self._backend.encode(longest, add_special_tokens=False).ids
        if self.plain(longest) != whole:  # cutting does change something after all
            self._cut = None
            self._known = self._batch(self._all_pieces(texts))

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text, with exactly one BOS if the tokenizer or it has one."""
        tokens = self.plain(text)
        if self.bos is None:
            return tokens
        if tokens[:2] == [self.bos, self.bos]:
            raise RowError(
                Fault(
                    "mask_in_doubt",
                    f"two BOS tokens at the start: {text[:60]!r} is read as "
                    f"{self.tokenizer.decode(tokens[:12])!r}; take one out of the template",
                )
            )
        return [self.bos, *tokens] if self.adds_bos and tokens[:1] != [self.bos] else tokens

    def raw(self, text: str) -> list[int]:
        """Token ids of a text that is learned whole: BOS as before any text, EOS at its end."""
        tokens = self.encode(text)
        eos = self.tokenizer.eos_token_id
        return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]

    def plain(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        pieces = self._pieces(text)
        try:
            known = [self._known[piece] for piece in pieces]
        except KeyError:
            known = [self._ids(piece) for piece in pieces]
        return list(itertools.chain.from_iterable(known))

    def marked(self, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """The tokens that spans of characters cover; None when the tokenizer does not tell."""
        if self._backend is None:
            return None
        encoding = self._backend.encode(text, add_special_tokens=False)
        found = []
        for start, end in spans:
            if end > start:
                first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
                if first is None or last is None:
                    return None
                found.append((first, last + 1))
        return found

    def is_control(self, token: int) -> bool:
        """Whether a token is no text: EOS or another one that decoding can skip."""
        if token not in self._control:
            decode = self.tokenizer.decode
            self._control[token] = token == self.tokenizer.eos_token_id or (
                decode([token]) != "" and decode([token], skip_special_tokens=True) == ""
            )
        return self._control[token]

    def is_blank(self, token: int) -> bool:
        """Whether a token is nothing but white space."""
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token]).strip()
        return self._blank[token]

    def _ids(self, piece: str) -> list[int]:
        known = self._known.get(piece)
        if known is not None:
            return known
        if self._seams is not None and len(piece) > LONG:
            return self._batch([piece])[piece]
        return self.tokenizer.encode(piece, add_special_tokens=False)

    def _pieces(self, text: str) -> list[str]:
        if self._cut is None:
            return [text]
        known = self._split.get(text)
        return known or [piece for piece in self._cut.split(text) if piece] or [text]

    def _all_pieces(self, texts: Iterable[str]) -> list[str]:
        self._split = {}
        self._split = {text: self._pieces(text) for text in texts}
        return list({piece: None for split in self._split.values() for piece in split})

    def _cutter(self, rendered: str) -> re.Pattern[str] | None:
        """Matches before the control tokens of `rendered`, if cutting there changes nothing."""
        if self._backend is None:
            return None
        added = list(self._backend.get_added_tokens_decoder().values())
        plain = self._backend.normalizer is None
        controls = [
            token.content
            for token in added
            if token.special
            and token.content in rendered
            and not (token.lstrip or token.rstrip or token.single_word)
            and (plain or not token.normalized)
            and not any(_overlap(token.content, other.content) for other in added)
        ]
        if not controls:
            return None
        return re.compile(f"(?={'|'.join(map(re.escape, controls))})")

    def _batch(self, pieces: Iterable[str]) -> dict[str, list[int]]:
        """The tokens of each piece. Long ones go in parts, no more than `TOGETHER` at a time."""
        found: dict[str, list[int]] = {piece: [] for piece in pieces}
        held: list[tuple[str, str]] = []  # the piece, and a part of it
        size = 0
        for piece in found:
            for part in self._parts(piece):
                held.append((piece, part))
                size += len(part)
                if size >= TOGETHER:
                    self._encode(held, found)
                    held, size = [], 0
        self._encode(held, found)
        return found

    def _parts(self, piece: str) -> Iterable[str]:
        if self._seams is None or len(piece) <= LONG:
            return [piece]
        return seams.parts(piece, self._seams)

    def _encode(self, held: Sequence[tuple[str, str]], found: dict[str, list[int]]) -> None:
        parts = [part for _, part in held]
        encodings = self._backend.encode_batch_fast(parts, add_special_tokens=False)
        for (piece, _), encoding in zip(held, encodings, strict=True):
            found[piece] += encoding.ids


def _backend(tokenizer: Tokenizer) -> Any:
    """The Rust tokenizer inside, if it alone decides on the tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "encode_batch_fast"):
        return None
    probe = PROBE.format(next(iter(tokenizer.all_special_tokens), ""))
    theirs = backend.encode(probe, add_special_tokens=False).ids
    return backend if tokenizer.encode(probe, add_special_tokens=False) == theirs else None


def _overlap(control: str, other: str) -> bool:
    """Whether a text can hold both so that the tokenizer would not take `control`."""
    if control == other:
        return False
    return control in other or any(
        other.endswith(control[:size]) for size in range(1, len(control))
    )
