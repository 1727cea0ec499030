"""Pairs of answers to one prompt, however the three are written."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from mlx_ft.data.parse_keys import PROMPT
from mlx_ft.data.parse_rows import Fields, FormatOptions, Keys, Said, Turns, side, with_system
from mlx_ft.data.parse_turns import Dialect, check_order, read_turn, read_turns
from mlx_ft.data.parse_values import blank, quoted, string
from mlx_ft.data.rows import Fault, Message


def parse_preference(
    fields: Fields, keys: Keys, options: FormatOptions, faults: list[Fault]
) -> Said:
    """`{"prompt": ..., "chosen": ..., "rejected": ...}`: texts, turns, or lists of turns.

    All turns that the two begin with are the prompt, also where they are whole conversations;
    its answers carry no loss (weight 0). The prompt may also be a chat, in `messages` or
    `conversations`, that ends before the answers or with one of them.
    """
    key, dialect = keys.get("prompt"), _dialect(fields, keys, options)
    if key is not None and blank(fields[key]):
        key = None
    chat = key not in (None, *PROMPT)
    asked: Turns = ()
    if key is not None and chat:
        asked = read_turns(fields[key], key, dialect, faults, weight=0)
    elif key is not None:
        asked = side(fields, key, "user", dialect, faults)
    lost, before = key is not None and not asked, len(faults)
    chosen, rejected = (
        _answer(fields[name], name, dialect, faults,
                key is not None and not (chat and _is_written(fields[name])))
        for name in ("chosen", "rejected")
    )  # fmt: skip
    if key is not None and chat and not lost and len(faults) == before:
        asked = _unanswered(asked, (chosen, rejected), key, faults)
    if not lost and len(faults) == before:
        asked, chosen, rejected = _parted(asked, chosen, rejected, faults)
        if len(faults) == before:
            _check_orders(asked, chosen, rejected, faults)
    return Said(with_system(fields, keys, asked + chosen, faults), rejected=rejected)


def _dialect(fields: Fields, keys: Keys, options: FormatOptions) -> Dialect:
    """ShareGPT's where any turn of a pair is written so."""
    for key in keys.values():
        turns = fields[key] if isinstance(fields[key], list) else [fields[key]]
        for turn in turns:
            if isinstance(turn, dict) and "role" not in turn and options.from_key in turn:
                return options.conversations
    return options.messages


def _check_orders(asked: Turns, chosen: Turns, rejected: Turns, faults: list[Fault]) -> None:
    before = len(faults)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        check_order((*asked, *answer), name, faults)
        if len(faults) > before:
            break  # what is wrong with the prompt is told once


def _unanswered(asked: Turns, answers: tuple[Turns, Turns], key: str, faults: list[Fault]) -> Turns:
    """A chat without the answer that it ends with, if that is one of the two."""
    plain, *others = (
        tuple(replace(turn, weight=1) for turn in turns) for turns in (asked, *answers)
    )
    for answer in others:
        if plain[-len(answer) :] == answer:
            return asked[: -len(answer)]
    if asked[-1].role == answers[0][0].role == "assistant":
        format = "messages" if key == "messages" else "conversations"
        sentence = (
            f"{key!r} ends with an assistant turn, which chosen and rejected do not answer; "
            f"remove it, or set data.format={format} to leave the two out"
        )
        faults.append(Fault("no_preference", sentence))
    return asked


# As in Anthropic's hh-rlhf: a whole conversation in one text.
_WRITTEN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]?")


def _is_written(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:")


def _answer(value: Any, key: str, dialect: Dialect, faults: list[Fault], asked: bool) -> Turns:
    if isinstance(value, list):
        return read_turns(value, key, dialect, faults)
    if isinstance(value, dict):
        return (read_turn(value, key, dialect, faults),)
    text = string(value, key, faults)
    if asked or not text:
        return (Message("assistant", text),)
    before, *parts = _WRITTEN.split(text.lstrip("\n"))
    if before or not parts:
        sentence = f"{key} is a text, and there is no prompt that it answers"
        faults.append(Fault("role_order", sentence))
    roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
    return tuple(
        Message(role, string(said, f"{key}, turn {i}", faults))
        for i, (role, said) in enumerate(zip(roles, parts[1::2], strict=True))
    )


def _parted(
    asked: Turns, chosen: Turns, rejected: Turns, faults: list[Fault]
) -> tuple[Turns, Turns, Turns]:
    """The prompt and the two answers: all that both begin with is the prompt."""
    if chosen == rejected:
        faults.append(Fault("no_preference", "chosen and rejected are the same"))
        return asked, chosen, rejected
    if asked and chosen[0].role == rejected[0].role == "assistant":
        chosen, rejected = asked + chosen, asked + rejected
    pairs = zip(chosen, rejected, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    prompt = tuple(
        replace(turn, weight=0) if turn.role == "assistant" and turn not in asked else turn
        for turn in chosen[:shared]
    )
    said = {turn.content.strip() for turn in prompt}
    if missing := [turn for turn in asked if turn.content.strip() not in said]:
        found = quoted(missing[0].content)
        sentence = f"chosen and rejected do not both begin with the prompt {found}"
        faults.append(Fault("no_preference", sentence))
        return asked, chosen, rejected
    for name, answer in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
        if not answer or answer[0].role != "assistant":
            sentence = f"{name} has no answer of its own where the two part"
            faults.append(Fault("no_preference", sentence))
    return prompt, chosen[shared:], rejected[shared:]
