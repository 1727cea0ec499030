"""Calls of tools in an answer, where the model has a way to write them that mlx-lm knows."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from mlx_ft.engine.text import overlap


class Calls:
    """The text of one answer with its calls taken out. What cannot be read stays text."""

    def __init__(self, tokenizer: Any, tools: Sequence[dict[str, Any]]) -> None:
        self._tools = [*tools]
        self._start: str | None = getattr(tokenizer, "tool_call_start", None) if tools else None
        self._end: str = getattr(tokenizer, "tool_call_end", None) or ""
        self._parse: Callable[..., Any] | None = getattr(tokenizer, "tool_parser", None)
        self._held = ""
        self._inside = False
        self.found = 0

    def add(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """(what can be shown, calls that are whole now)."""
        if self._start is None or self._parse is None:
            return text, []
        self._held += text
        shown, calls = "", list[dict[str, Any]]()
        while True:
            if not self._inside:
                before, mark, rest = self._held.partition(self._start)
                if not mark:
                    keep = overlap(self._held, self._start)
                    shown += self._held[: len(self._held) - keep]
                    self._held = self._held[len(self._held) - keep :]
                    return shown, calls
                shown, self._held, self._inside = shown + before, rest, True
            inner, mark, rest = self._held.partition(self._end) if self._end else ("", "", "")
            if not mark:
                return shown, calls
            self._inside, self._held = False, rest
            read = self._read(inner)
            shown += "" if read else f"{self._start}{inner}{self._end}"
            calls += read

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """What was held back."""
        held, self._held = self._held, ""
        if not self._inside:
            return held, []
        self._inside = False
        read = self._read(held)
        return ("" if read else f"{self._start}{held}"), read

    def _read(self, text: str) -> list[dict[str, Any]]:
        """As OpenAI has them; empty where the text is no call."""
        assert self._parse is not None
        try:
            parsed = self._parse(text, self._tools)
        except Exception:  # whatever a half-written call makes a parser raise
            return []
        calls = parsed if isinstance(parsed, list) else [parsed]
        named = [call for call in calls
                 if isinstance(call, dict) and isinstance(call.get("name"), str)]  # fmt: skip
        if len(named) != len(calls):
            return []
        return [self._call(call["name"], call.get("arguments", {})) for call in named]

    def _call(self, name: str, arguments: Any) -> dict[str, Any]:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        self.found += 1
        return {
            "index": self.found - 1,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": name, "arguments": text},
        }
