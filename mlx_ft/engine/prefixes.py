"""What the model has read already, kept for prompts that begin alike."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

COUNT = 64


@dataclass(frozen=True, eq=False)
class Known:
    """The cache of these tokens, read for `owner`."""

    owner: str
    tokens: np.ndarray
    cache: list[Any]
    nbytes: int

    def usable(self, prompt: np.ndarray) -> int:
        """How many tokens of a prompt need not be read again: all but one at most."""
        most = min(len(self.tokens), len(prompt))
        differ = np.flatnonzero(self.tokens[:most] != prompt[:most])
        common = min(int(differ[0]) if len(differ) else most, len(prompt) - 1)
        whole = common == len(self.tokens)
        return common if whole or can_trim_prompt_cache(self.cache) else 0


class Prefixes:
    """Caches by owner (an adapter) and tokens, within a budget of bytes; what was used longest ago
    goes first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: list[Known] = []  # the last one was used last

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return sum(one.nbytes for one in self._known)

    def find(self, owner: str, prompt: Sequence[int]) -> tuple[list[Any] | None, int]:
        """A copy of the cache of the longest known beginning, and its number of tokens.

        One token of the prompt is always left, whose logits are the first answer's.
        """
        wanted = np.array(prompt, np.int64)
        found = [(one.usable(wanted), one) for one in self._known if one.owner == owner]
        usable, best = max(found, key=lambda pair: pair[0], default=(0, None))
        if best is None or not usable:
            return None, 0
        self._known.remove(best)
        self._known.append(best)
        cache = copy.deepcopy(best.cache)
        if usable < len(best.tokens):
            trim_prompt_cache(cache, len(best.tokens) - usable)
        return cache, usable

    def keep(self, owner: str, tokens: Sequence[int], cache: list[Any]) -> None:
        """Take over the cache of these tokens; it stands for what it begins with, too."""
        nbytes = sum(one.nbytes for one in cache)
        if nbytes > self._limit:
            return
        new = Known(owner, np.array(tokens, np.int64), cache, nbytes)
        whole = can_trim_prompt_cache(cache)
        self._known = [one for one in self._known if not _covers(new, one, shorter=whole)]
        self._known.append(new)
        while len(self._known) > COUNT or self.nbytes > self._limit:
            del self._known[0]

    def forget(self, owners: Collection[str]) -> None:
        """Let go of what was read for them."""
        self._known = [one for one in self._known if one.owner not in owners]

    def clear(self) -> None:
        """Let go of all."""
        self._known = []


def _covers(new: Known, old: Known, *, shorter: bool) -> bool:
    """Whether the new one makes the old one needless. shorter: it can be cut to a beginning."""
    if new.owner != old.owner or len(old.tokens) > len(new.tokens):
        return False
    if len(old.tokens) < len(new.tokens) and not shorter:
        return False
    return bool((new.tokens[: len(old.tokens)] == old.tokens).all())
