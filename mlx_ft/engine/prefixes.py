"""What the model has read already, kept for prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_lm.models.cache import LRUPromptCache, can_trim_prompt_cache, trim_prompt_cache


class Prefixes:
    """Caches by adapter and tokens, within a budget; what was used longest ago goes first."""

    def __init__(self, limit: int, count: int = 64) -> None:
        self._limit = limit
        self._kept = LRUPromptCache(max_size=count, max_bytes=limit)

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return int(self._kept.nbytes)

    def find(self, owner: str, prompt: Sequence[int]) -> tuple[list[Any] | None, int]:
        """A copy of the cache of the longest known beginning, and its number of tokens.

        One token of the prompt is always left, whose logits are the first answer's.
        """
        cache, left = self._kept.fetch_nearest_cache(owner, [*prompt])
        if cache is None:
            return None, 0
        if not left:
            if not can_trim_prompt_cache(cache):
                return None, 0
            trim_prompt_cache(cache, 1)
        return cache, len(prompt) - max(1, len(left))

    def keep(self, owner: str, tokens: Sequence[int], cache: list[Any]) -> None:
        """Take over the cache of these tokens."""
        if sum(one.nbytes for one in cache) <= self._limit:
            self._kept.insert_cache(owner, [*tokens], cache)

    def clear(self) -> None:
        """Let go of all."""
        self._kept.trim_to(n_sequences=0)
