"""From texts and chats to the tokens that a model answers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_ft.data import template
from mlx_ft.data.chat import generation_prompt
from mlx_ft.data.parse_tools import read_tools
from mlx_ft.data.parse_turns import ROLES, Dialect, read_turns
from mlx_ft.data.render import Renderer, as_turn, check_tools, template_text
from mlx_ft.data.rows import Conversation, Fault, Message, Record, RowError
from mlx_ft.data.tokens import Encoder
from mlx_ft.errors import DataError
from mlx_ft.serve.errors import Refused

OPENAI = Dialect(ROLES)
SHOWN = 5  # faults of one request


class Prompts:
    """A tokenizer with its chat template. stop: a token that ends answers by that template.

    One text at a time: a tokenizer keeps notes.
    """

    def __init__(self, tokenizer: Any, vocabulary: int | None, stop: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None

    @property
    def template(self) -> str:
        """The chat template's text."""
        return template_text(self.tokenizer)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        """The tokens from which the answer to these turns is generated. Raises Refused."""
        faults: list[Fault] = []
        turns = read_turns([*messages], "messages", OPENAI, faults)
        shown = read_tools([*tools], "tools", faults)
        faults = [fault for fault in faults if fault.code != "empty_turn"]
        if faults:
            raise Refused(_said(faults), param="messages", code="invalid_value")
        try:
            with self._lock:
                if shown:
                    self._check_tools(turns, shown)
                tokens = generation_prompt(turns, self.tokenizer, tools=shown)
        except DataError as error:
            raise _refused(error, "messages") from error
        return self.known(tokens)

    def text(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that is gone on with, as one that is trained on begins."""
        with self._lock:
            if self._encoder is None:
                self._encoder = Encoder(self.tokenizer)
            try:
                tokens = self._encoder.encode(text)
            except DataError as error:
                raise _refused(error, "prompt") from error
        bos = self.tokenizer.bos_token_id
        return self.known(tokens if tokens or bos is None else [bos])

    def known(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Tokens, all of which the model has: others would be read from beside its own.

        Raises Refused.
        """
        size = self._vocabulary or len(self.tokenizer)
        if wrong := [token for token in tokens if not 0 <= token < size]:
            raise Refused(
                f"prompt: found token {wrong[0]}; expected 0 to {size - 1}",
                param="prompt",
                code="invalid_value",
            )
        return tuple(tokens)

    def _check_tools(self, turns: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> None:
        """Refuse tools that the template would leave out without a word."""
        asked = Conversation(turns, None, None, Record({}, Path("request"), 1), tools=tools)
        renderer = Renderer(self.tokenizer)
        text = renderer.text([as_turn(turn) for turn in turns], tools)
        check_tools(renderer, asked, text)


def with_template(folder: Path, eos: Any, vocabulary: int | None, text: str) -> Prompts:
    """A model's tokenizer with another chat template, as an adapter was trained with it."""
    from mlx_ft.models.read import read_tokenizer

    tokenizer: Any = read_tokenizer(folder, eos)
    chosen = template.install(tokenizer, text)
    stop = None if chosen.stop is None else tokenizer.convert_tokens_to_ids(chosen.stop)
    return Prompts(tokenizer, vocabulary, stop)


def _refused(error: DataError, param: str) -> Refused:
    text = _said(error.found) if isinstance(error, RowError) else str(error)
    return Refused(text, param=param, code="invalid_value")


def _said(faults: Sequence[Fault]) -> str:
    lines = [fault.sentence for fault in faults[:SHOWN]]
    more = len(faults) - len(lines)
    return "; ".join([*lines, *([f"and {more} more"] if more else [])])
