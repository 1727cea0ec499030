"""From logits to a word, one answer at a time: what is drawn does not hang on other answers."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mlx_ft.engine.request import Sampling


class Chooser:
    """Chooses the words of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._seen: Counter[int] = Counter()

    @property
    def needs_logits(self) -> bool:
        """Whether the likeliest word alone does not say it all."""
        own = self.sampling
        penalized = own.presence or own.frequency
        return bool(own.temperature or penalized or own.alternatives is not None)

    def take(self, token: int) -> None:
        """A word that was chosen elsewhere, as the likeliest."""
        self._seen[token] += 1

    def choose(self, logits: np.ndarray) -> tuple[int, float, tuple[tuple[int, float], ...]]:
        """(word, its log probability, the likeliest words with theirs). logits: (V,).

        Log probabilities are the model's, before temperature and what is left out.
        """
        own, logits = self.sampling, logits.astype(np.float64)
        logprobs = logits - _logsumexp(logits)
        token = self._drawn(self._penalized(logits))
        self.take(token)
        best: tuple[tuple[int, float], ...] = ()
        if own.alternatives:
            order = np.argsort(-logprobs, kind="stable")[: own.alternatives]
            best = tuple((int(at), float(logprobs[at])) for at in order)
        return token, float(logprobs[token]), best

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        own = self.sampling
        if not self._seen or not (own.presence or own.frequency):
            return logits
        words = np.fromiter(self._seen, np.int64)
        counts = np.fromiter(self._seen.values(), np.float64)
        logits = logits.copy()
        logits[words] -= own.presence + own.frequency * counts
        return logits

    def _drawn(self, logits: np.ndarray) -> int:
        own = self.sampling
        if own.temperature == 0:
            return int(logits.argmax())
        scaled = logits / own.temperature
        scaled -= scaled.max()
        order = np.argsort(-scaled, kind="stable")
        if own.top_k:
            order = order[: own.top_k]
        shares = np.exp(scaled[order])
        shares /= shares.sum()
        if own.top_p < 1:  # the fewest words that have so much together
            order = order[: int(np.searchsorted(np.cumsum(shares), own.top_p)) + 1]
        if own.min_p:
            order = order[shares[: len(order)] >= own.min_p * shares[0]]
        shares = shares[: len(order)]
        point = self._random.random() * shares.sum()
        return int(order[min(np.searchsorted(np.cumsum(shares), point, "right"), len(order) - 1)])


def _logsumexp(logits: np.ndarray) -> float:
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()))
