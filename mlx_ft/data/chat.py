"""Conversations to token ids and the mask of the tokens to learn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mlx_ft.data.formats import Conversation, Message
from mlx_ft.data.load import Record
from mlx_ft.errors import DataError

# For models that bring no chat template: a prompt is its turns, a line each; an answer ends in EOS.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    bos_token_id: int | None
    eos_token_id: int | None
    all_special_tokens: list[str]

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """The rendered text (`tokenize=False`), or token ids."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; control tokens written out in the text become themselves."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        ...


Span = tuple[int, int]  # tokens [start, end)


@dataclass(frozen=True)
class Example:
    """A row as tokens. targets[i]: token i is to be predicted; position 0 never is.

    tokens: (T,) int32. targets: (T,) bool. truncated: tokens cut off at the end.
    endless: assistant turns that the template ends with no control token to stop at.
    """

    tokens: np.ndarray
    targets: np.ndarray
    truncated: int
    endless: int
    label: str | None
    record: Record
    system: str | None = None  # the system message, if the row begins with one


def encode(conversation: Conversation, tokenizer: Tokenizer, max_seq_length: int) -> Example:
    """A conversation's tokens and targets, cut on the right to `max_seq_length` tokens.

    Targets are every assistant turn with its end-of-turn token, or all of a raw text. Raises
    DataError when the template's output leaves the targets in doubt, or the cut leaves none.
    """
    tokens, spans, endless = tokenize(conversation, tokenizer)
    targets = np.zeros(len(tokens), dtype=bool)
    for start, end in spans:
        targets[max(start, 1) : end] = True
    if not targets[:max_seq_length].any():
        begin = next((start for start, end in spans if end > 1), len(tokens))
        raise DataError(
            f"no target token is left: the first answer begins after {begin} tokens, "
            f"memory_profile.max_seq_length is {max_seq_length}"
        )
    return Example(
        tokens=np.array(tokens[:max_seq_length], dtype=np.int32),
        targets=targets[:max_seq_length],
        truncated=max(0, len(tokens) - max_seq_length),
        endless=endless,
        label=conversation.label,
        record=conversation.record,
        system=next((m.content for m in conversation.messages[:1] if m.role == "system"), None),
    )


def tokenize(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[Span], int]:
    """All tokens, the spans of them to be learned, and the number of endless turns."""
    if conversation.text is not None:
        tokens = _encode_raw(conversation.text, tokenizer)
        return tokens, [(0, len(tokens))], int(tokenizer.eos_token_id is None)
    stages = _stages(conversation.messages, tokenizer)
    if conversation.messages[-1].role != "assistant":
        stages.append(_Stage(_render(conversation.messages, tokenizer), "rest"))
    if rewritten := _rewritten(stages):
        return _by_marks(conversation.messages, tokenizer, rewritten)
    return _by_construction(stages, tokenizer)


def prompt_tokens(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """The tokens before the last assistant turn's: training and evaluation start from the same."""
    turns = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not turns:
        raise DataError("the row has no assistant turn, so there is no prompt to answer")
    return generation_prompt(conversation.messages[: turns[-1]], tokenizer)


def generation_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The tokens from which the answer to these turns is generated."""
    prompt = _Stage(_render(messages, tokenizer, add_generation_prompt=True), "prompt")
    stages = [*_stages(messages, tokenizer), prompt]
    if _rewritten(stages):
        return _encode_rendered(prompt.text, tokenizer)
    return _by_construction(stages, tokenizer)[0]


def missing_template(tokenizer: Tokenizer) -> bool:
    """Whether the model brings no chat template, so that `PLAIN_TEMPLATE` is used."""
    return tokenizer.chat_template is None


@dataclass(frozen=True)
class _Stage:
    """A conversation rendered up to a point.

    adds: what it has beyond the stage before: a "prompt" (turns and the generation prompt), the
    "answer" to it, or the "rest" (turns that nobody answers).
    """

    text: str
    adds: str


# Targets are found by construction: each stage's text begins with the text of the stage before,
# and its tokens with the tokens before, so what an "answer" adds is exactly what the model has to
# generate. Encoding whole stages, not pieces, keeps the tokens those of the template's full text.
def _stages(messages: Sequence[Message], tokenizer: Tokenizer) -> list[_Stage]:
    stages = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = _render(messages[:i], tokenizer, add_generation_prompt=True)
            stages += [
                _Stage(prompt, "prompt"),
                _Stage(_render(messages[: i + 1], tokenizer), "answer"),
            ]
    return stages


def _rewritten(stages: Sequence[_Stage]) -> tuple[str, str] | None:
    """The first two stages' texts of which the second does not begin with the first."""
    for before, after in itertools.pairwise(stages):
        if not after.text.startswith(before.text):
            return before.text, after.text
    return None


def _by_construction(
    stages: Sequence[_Stage], tokenizer: Tokenizer
) -> tuple[list[int], list[Span], int]:
    tokens: list[int] = []
    spans: list[Span] = []
    text, settled, endless = "", 0, 0
    for stage in stages:
        if stage.adds == "answer":
            settled = len(tokens)  # the whole prompt stays as generation sees it
        tokens = _extend(tokens, settled, text, stage.text, tokenizer)
        text = stage.text
        if stage.adds == "answer":
            end, stops = _end_of_turn(tokens, settled, tokenizer)
            spans.append((settled, end))
            settled = end
            endless += not stops
    return tokens, spans, endless


def _extend(
    tokens: list[int], settled: int, text: str, longer: str, tokenizer: Tokenizer
) -> list[int]:
    """The tokens of `longer`, which begins with `text`, beginning with the settled ones of it."""
    whole = _encode_rendered(longer, tokenizer)
    if whole[:settled] == tokens[:settled]:
        return whole
    # A token reaches over the boundary, e.g. the prompt's last newline and the answer's first.
    # Generation starts from the prompt's own tokens, so the answer is encoded as a piece.
    pieces = tokens + tokenizer.encode(longer[len(text) :], add_special_tokens=False)
    if tokenizer.decode(pieces) == tokenizer.decode(whole):
        return pieces
    raise DataError(
        "the tokenizer joins text across the border of a turn, so the tokens to learn are in "
        f"doubt: ...{text[-40:]!r} goes on as {longer[len(text) :][:40]!r}...; "
        "remove white space at the start and end of the turns"
    )


def _end_of_turn(tokens: list[int], start: int, tokenizer: Tokenizer) -> tuple[int, bool]:
    """Where the turn that began at `start` ends, and whether a control token ends it.

    What a template writes after the control token, such as ChatML's newline, is never generated.
    """
    end = len(tokens)
    while end > start and not tokenizer.decode([tokens[end - 1]]).strip():
        end -= 1
    if end > start and _is_control(tokens[end - 1], tokenizer):
        return end, True
    return len(tokens), False


def _is_control(token: int, tokenizer: Tokenizer) -> bool:
    return token == tokenizer.eos_token_id or (
        tokenizer.decode([token]) != ""
        and tokenizer.decode([token], skip_special_tokens=True) == ""
    )


def _by_marks(
    messages: Sequence[Message], tokenizer: Tokenizer, rewritten: tuple[str, str]
) -> tuple[list[int], list[Span], int]:
    """For templates that rewrite earlier turns: the targets between their generation marks."""
    if not re.search(r"{%-?\s*generation\b", str(tokenizer.chat_template)):
        raise DataError(
            "the model's chat template renders a turn differently once others follow, so the "
            f"tokens to learn are in doubt: {_difference(*rewritten)}; make one row of each "
            "answer, or use a template with {% generation %} marks"
        )
    # mlx-lm's wrapper always asks for bare ids: the marks come from the tokenizer inside it.
    inner: Any = getattr(tokenizer, "_tokenizer", None)
    inner = inner if hasattr(inner, "apply_chat_template") else tokenizer
    marked = _apply(messages, inner, return_dict=True, return_assistant_tokens_mask=True)
    tokens = _with_bos(list(marked["input_ids"]), tokenizer)
    mask = [0] * (len(tokens) - len(marked["input_ids"])) + list(marked["assistant_masks"])
    edges = np.flatnonzero(np.diff([0, *mask, 0])).tolist()
    spans, endless = [], 0
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        # Some marks leave the end-of-turn token out: without it the model never learns to stop.
        if end < len(tokens) and not _is_control(tokens[end - 1], tokenizer):
            end += _is_control(tokens[end], tokenizer)
        end, stops = _end_of_turn(tokens[:end], start, tokenizer)
        spans.append((start, end))
        endless += not stops
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    prompt = generation_prompt(messages[: answers[-1]], tokenizer)
    if len(spans) != len(answers) or tokens[: spans[-1][0]] != prompt:
        raise DataError(
            f"the chat template's generation marks give {len(spans)} spans for {len(answers)} "
            "assistant turns, or the last one does not begin where generation would: "
            f"{_difference(tokenizer.decode(prompt), tokenizer.decode(tokens))}"
        )
    return tokens, spans, endless


def _render(
    messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = False
) -> str:
    return str(
        _apply(messages, tokenizer, tokenize=False, add_generation_prompt=add_generation_prompt)
    )


def _apply(messages: Sequence[Message], tokenizer: Tokenizer, **options: Any) -> Any:
    if missing_template(tokenizer):
        options["chat_template"] = PLAIN_TEMPLATE
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except Exception as error:  # a template is code of the model's author: anything may come
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"the model's chat template refuses these turns: {reason}") from error


def _encode_rendered(text: str, tokenizer: Tokenizer) -> list[int]:
    return _with_bos(tokenizer.encode(text, add_special_tokens=False), tokenizer)


def _encode_raw(text: str, tokenizer: Tokenizer) -> list[int]:
    tokens = _encode_rendered(text, tokenizer)
    eos = tokenizer.eos_token_id
    return tokens if eos is None or tokens[-1] == eos else [*tokens, eos]


def _with_bos(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """Exactly one BOS, if the tokenizer puts one before plain text or the template wrote one."""
    bos = tokenizer.bos_token_id
    if bos is not None and tokens[:2] == [bos, bos]:
        raise DataError(f"two BOS tokens at the start: {tokenizer.decode(tokens[:12])!r}")
    if bos is None or tokens[:1] == [bos]:
        return tokens
    adds_bos = tokenizer.encode("", add_special_tokens=True)[:1] == [bos]
    return [bos, *tokens] if adds_bos else tokens


def _difference(before: str, after: str) -> str:
    """Two texts from shortly before the place where they part."""
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
    begin = max(0, (min(len(before), len(after)) if same is None else same) - 30)
    return f"{before[begin : begin + 80]!r} became {after[begin : begin + 80]!r}"
