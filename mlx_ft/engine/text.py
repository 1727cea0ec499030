"""From tokens to text that can be shown at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer

# These leave out a space where they have no text before it.
TRIMMING = (BPEStreamingDetokenizer, SPMStreamingDetokenizer)
BEFORE = "."


class Text:
    """The text of one answer. Held back: half a character, and what may begin a stop text.

    continues: it goes on with a text, so that a space at its beginning belongs to it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], *, continues: bool = False) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._detokenizer.reset()
        if continues and isinstance(self._detokenizer, TRIMMING):
            self._detokenizer.text, self._detokenizer.offset = BEFORE, len(BEFORE)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown of it now; after a stop text nothing more."""
        try:
            self._detokenizer.add_token(token)
        except IndexError:  # of a padded vocabulary's end, which stands for no text
            return ""
        return self._shown(self._detokenizer.last_segment, last=False)

    def end(self) -> str:
        """What was held back."""
        self._detokenizer.finalize()
        return self._shown(self._detokenizer.last_segment, last=True)

    def _shown(self, more: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + more
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
