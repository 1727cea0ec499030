"""Conversations to token ids and the mask of the tokens to learn."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mlx_ft.data import mask, overlong
from mlx_ft.data.mask import Layout, Sample, Stage
from mlx_ft.data.overlong import OVERLONG, Part
from mlx_ft.data.render import PLAIN_TEMPLATE, Renderer, as_turn, template_text
from mlx_ft.data.rows import Conversation, CutOff, Fault, Message, Record, RowError
from mlx_ft.data.tokens import Encoder, Tokenizer
from mlx_ft.errors import DataError

__all__ = ["OVERLONG", "PLAIN_TEMPLATE", "TRAIN_ON", "EncodeOptions", "EncodedRow", "Example",
           "Tokenizer", "encode", "encode_rows", "generation_prompt",
           "prompt_tokens", "remark_notes"]  # fmt: skip

S = TypeVar("S")
T = TypeVar("T")

TRAIN_ON = ("assistant", "last", "all")
# What `EncodedRow.remarks` may hold, as sentences about a number of rows.
REMARKS = {
    "system_folded": "the chat template takes no system turn: its text stands at the head of the "
    "{place} user turn, as the models' authors do it",
    "answers_apart": "the chat template shows earlier turns differently once others follow, so "
    "each answer is an example of its own, as it is when the model generates it",
}


@dataclass(frozen=True)
class Example:
    """A row as tokens. targets[i]: token i is to be predicted; position 0 never is.

    tokens: (T,) int32. targets: (T,) bool. truncated: tokens cut off.
    endless: learned turns that the template ends with no control token to stop at.
    """

    tokens: np.ndarray
    targets: np.ndarray
    truncated: int
    endless: int
    label: str | None
    record: Record
    system: str | None = None  # the system message, if the row begins with one


@dataclass(frozen=True)
class EncodeOptions:
    """train_on: one of `TRAIN_ON`. overlong: one of `OVERLONG`."""

    max_seq_length: int
    train_on: str = "assistant"
    overlong: str = "truncate_right"


@dataclass(frozen=True)
class EncodedRow:
    """A row that can be used, or (`rejected`, with its code) was dropped because it was asked for.

    status: `kept`, `truncated` or `rejected`. cut_tokens: tokens that are in no example.
    remarks: keys of `REMARKS`.
    """

    examples: tuple[Example, ...]
    status: str
    cut_tokens: int = 0
    code: str | None = None
    remarks: tuple[str, ...] = ()


def encode_rows(
    rows: Sequence[Conversation], tokenizer: Tokenizer, options: EncodeOptions
) -> list[EncodedRow | RowError]:
    """Every row's examples, or why it cannot be used; some 500 rows at a time are fastest.

    The error's codes: `template_refused`, `mask_in_doubt`, `no_assistant`, `no_target`, `cut_off`,
    `overlong`.
    """
    chat = _chat(tokenizer)
    plans = [_caught(chat.plan, row, options) for row in rows]
    planned = [plan for plan in plans if not isinstance(plan, RowError)]
    chat.encoder.prefetch(text for plan in planned for text in plan.texts())
    return [
        plan if isinstance(plan, RowError) else _caught(chat.finish, plan, options)
        for plan in plans
    ]


def encode(conversation: Conversation, tokenizer: Tokenizer, max_seq_length: int) -> Example:
    """A conversation's tokens and targets, cut on the right to `max_seq_length` tokens.

    Targets are every assistant turn with its end-of-turn token, or all of a raw text. Raises
    DataError as `encode_rows` does, and for a row that gives several examples.
    """
    chat, options = _chat(tokenizer), EncodeOptions(max_seq_length)
    row = _said(lambda: chat.finish(chat.plan(conversation, options), options))
    if len(row.examples) != 1:
        raise DataError(
            "the model's chat template renders a turn differently once others follow, so the row "
            f"gives {len(row.examples)} examples, one for each answer"
        )
    return row.examples[0]


def prompt_tokens(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """The tokens before the last assistant turn's: training and evaluation start from the same."""
    turns = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not turns:
        raise DataError("the row has no assistant turn, so there is no prompt to answer")
    return generation_prompt(
        conversation.messages[: turns[-1]], tokenizer, tools=conversation.tools
    )


def generation_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, *, tools: Sequence[dict[str, object]] = ()
) -> list[int]:
    """The tokens from which the answer to these turns is generated. Raises DataError."""
    chat = _chat(tokenizer)
    turns = [as_turn(message) for message in messages]
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]

    def tokens() -> list[int]:
        stages = mask.prompted(chat.renderer, turns, tools, answers)
        prompt = chat.renderer.text(turns, tools, prompt=True)
        return mask.last_prompt([*stages, Stage(prompt, "prompt", len(turns))], chat.encoder)

    return _said(tokens)


def remark_notes(counts: Mapping[str, int], tokenizer: Tokenizer) -> list[str]:
    """Sentences on the remarks of a dataset. counts: rows for each key of `REMARKS`."""
    place = _chat(tokenizer).renderer.folding if counts.get("system_folded") else ""
    return [
        f"{counts[key]} rows: {sentence.format(place=place)}."
        for key, sentence in REMARKS.items()
        if counts.get(key)
    ]


@dataclass(frozen=True)
class _Plan:
    conversation: Conversation
    samples: list[Sample]
    folded: bool

    def texts(self) -> Iterable[str]:
        return (stage.text for sample in self.samples for stage in sample.stages)


class _Chat:
    """A tokenizer with its template, and what has been found out about both."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.renderer = Renderer(tokenizer)
        self.encoder = Encoder(tokenizer, self.renderer.shown())

    def plan(self, conversation: Conversation, options: EncodeOptions) -> _Plan:
        """All texts of a row. Raises RowError."""
        system = conversation.messages[:1] and conversation.messages[0].role == "system"
        return _Plan(
            conversation,
            mask.samples(self.renderer, conversation, options.train_on),
            bool(system) and self.renderer.folding != "no",
        )

    def finish(self, plan: _Plan, options: EncodeOptions) -> EncodedRow:
        """A row's examples from its texts. Raises RowError."""
        layouts = [mask.layout(sample, self.encoder) for sample in plan.samples]
        examples, cut = [], 0
        for sample, layout in zip(plan.samples, layouts, strict=True):
            parts = self._parts(plan.conversation, sample, layout, options)
            kept = [part for part in parts if part.targets.any()]
            cut += sum(p.cut if p.targets.any() else p.cut + len(p.tokens) for p in parts)
            examples += [
                _example(plan.conversation, part, layout.endless if part is kept[-1] else 0)
                for part in kept
            ]
        remarks = [*(["system_folded"] if plan.folded else [])]
        if len(layouts) > 1:
            remarks.append("answers_apart")
        if examples:
            return EncodedRow(
                tuple(examples), "truncated" if cut else "kept", cut, None, tuple(remarks)
            )
        if options.overlong == "drop" and cut:
            return EncodedRow((), "rejected", cut, "overlong", tuple(remarks))
        raise _nothing_left(layouts, options)

    def _parts(
        self, conversation: Conversation, sample: Sample, layout: Layout, options: EncodeOptions
    ) -> list[Part]:
        size, total = options.max_seq_length, len(layout.tokens)
        if total <= size or options.overlong == "truncate_right":
            return [overlong.right(layout, size)]
        if options.overlong == "truncate_left":
            return [self._left(conversation, sample, layout, options)]
        if options.overlong == "split":
            bos = overlong.first_token(layout, self.encoder.bos)
            return overlong.split(layout, size, bos, context=conversation.text is None)
        if options.overlong == "drop":
            return [Part(np.zeros(0, np.int32), np.zeros(0, bool), total)]
        reason = f"the row has {total} tokens, memory_profile.max_seq_length is {size}"
        raise RowError(Fault("overlong", reason))

    def _left(
        self, conversation: Conversation, sample: Sample, layout: Layout, options: EncodeOptions
    ) -> Part:
        """The oldest turns left out; then the oldest tokens of an exchange that is too long."""
        train_on, size = options.train_on, options.max_seq_length
        if sample.learned is not None and len(sample.learned) == 1:
            messages = conversation.messages[: max(sample.learned) + 1]
            conversation, train_on = dataclasses.replace(conversation, messages=messages), "last"

        def laid(less: Conversation) -> Layout:
            return mask.layout(mask.samples(self.renderer, less, train_on)[-1], self.encoder)

        ends = overlong.ends(conversation)  # each shorter than the one before
        place = bisect.bisect_left(ends, True, key=lambda end: len(laid(end).tokens) <= size)
        shorter = laid(ends[min(place, len(ends) - 1)]) if ends else layout
        part = overlong.left(shorter, size, overlong.first_token(shorter, self.encoder.bos))
        return part._replace(cut=len(layout.tokens) - len(part.tokens))


def _chat(tokenizer: Tokenizer) -> _Chat:
    return _chat_of(tokenizer, template_text(tokenizer))


@functools.lru_cache(maxsize=4)
def _chat_of(tokenizer: Tokenizer, _template: str) -> _Chat:
    return _Chat(tokenizer)


def _example(conversation: Conversation, part: Part, endless: int) -> Example:
    first = conversation.messages[:1]
    return Example(
        part.tokens,
        part.targets,
        part.cut,
        endless,
        conversation.label,
        conversation.record,
        first[0].content if first and first[0].role == "system" else None,
    )


def _nothing_left(layouts: Sequence[Layout], options: EncodeOptions) -> RowError:
    """Why a row has no target in what is kept of it."""
    size, longest = options.max_seq_length, max(len(one.tokens) for one in layouts)
    begins = [int(one.targets.argmax()) for one in layouts if one.targets.any()]
    if longest <= size or not begins:
        return RowError(Fault("no_target", "nothing in the row is to be learned"))
    if options.overlong == "truncate_left":
        where = f"no answer lies within the last {size} of its {longest} tokens"
    else:
        where = f"what is to be learned begins after {min(begins)} of its {longest} tokens"
    fault = (
        f"nothing to learn is left of the row: {where}; memory_profile.max_seq_length is {size} "
        f"(data.overlong={options.overlong})"
    )
    return CutOff(Fault("cut_off", fault), longest)


def _caught(work: Callable[[S, EncodeOptions], T], of: S, options: EncodeOptions) -> T | RowError:
    try:
        return work(of, options)
    except RowError as error:
        return error


def _said(work: Callable[[], T]) -> T:
    """The fault of a single row as the message of its error."""
    try:
        return work()
    except RowError as error:
        raise DataError("; ".join(error.faults)) from error
