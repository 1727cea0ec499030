"""`### Instruction:` texts, as other servers' clients send them, to prompt and completion."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# A heading is a line of its own; `### Input:` belongs to the prompt, as Alpaca has it.
_HEADING = re.compile(r"^###\s*(Instruction|Input|Response)\s*:[ \t]*\n?", re.MULTILINE | re.I)
_INTRO = re.compile(r"(?si)\s*below is an instruction.*?\n\s*")  # Alpaca's first sentences


@dataclass
class Parsed:
    """rows: as `data.format=auto` reads them. plain: how many stayed texts; empty: left out."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    plain: int = 0
    empty: int = 0

    @property
    def said(self) -> str:
        """What was made of them."""
        pairs = len(self.rows) - self.plain
        parts = []
        if pairs:
            parts.append(f"{pairs} texts are trained as a question and its answer")
        if self.plain:
            parts.append(
                f"{self.plain} texts are trained as they are, since they have no "
                "'### Instruction:' and '### Response:'"
            )
        if self.empty:
            parts.append(f"{self.empty} empty texts were left out")
        return "; ".join(parts)


def parse(texts: Iterable[str]) -> Parsed:
    """Each text as prompt and completion, or as a text where it is of another form.

    The prompt is then put into the model's chat template, as a question in a chat will be.
    """
    found = Parsed()
    for text in texts:
        if not text.strip():
            found.empty += 1
        elif (pair := _pair(text)) is not None:
            found.rows.append({"prompt": pair[0], "completion": pair[1]})
        else:
            found.plain += 1
            found.rows.append({"text": text})
    return found


def _pair(text: str) -> tuple[str, str] | None:
    """(prompt, completion); None unless there is one instruction, with one answer at the end."""
    marks = [*_HEADING.finditer(text)]
    names = [mark.group(1).lower() for mark in marks]
    if names not in (["instruction", "response"], ["instruction", "input", "response"]):
        return None
    before = text[: marks[0].start()]
    if before.strip() and not _INTRO.fullmatch(before):
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    parts = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    prompt = "\n\n".join(part for part in parts[:-1] if part)
    return (prompt, parts[-1]) if prompt and parts[-1] else None
