"""Figures for Prometheus, in its text format 0.0.4: a few counters need no library."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # seconds
COUNTERS = {
    "mlx_ft_requests_total": "Requests for answers, by adapter, path and status.",
    "mlx_ft_prompt_tokens_total": "Tokens of prompts, by adapter.",
    "mlx_ft_cached_tokens_total": "Tokens of prompts that were known before, by adapter.",
    "mlx_ft_completion_tokens_total": "Tokens of answers, by adapter.",
}
HISTOGRAMS = {
    "mlx_ft_request_seconds": "Seconds from a request to the end of its answer, by adapter.",
    "mlx_ft_first_token_seconds": "Seconds from a request to its first token, by adapter.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms since the server began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._seconds: dict[str, dict[Labels, list[float]]] = defaultdict(dict)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """name: of `COUNTERS`."""
        assert name in COUNTERS
        with self._lock:
            self._counts[name][tuple(sorted(labels.items()))] += by

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """name: of `HISTOGRAMS`."""
        assert name in HISTOGRAMS
        key = tuple(sorted(labels.items()))
        with self._lock:
            # In each bucket how many, then all of them, then their sum.
            found = self._seconds[name].setdefault(key, [0.0] * (len(BUCKETS) + 2))
            for at, bound in enumerate(BUCKETS):
                found[at] += seconds <= bound
            found[-2] += 1
            found[-1] += seconds

    def text(self, gauges: Mapping[str, tuple[str, Sequence[tuple[Labels, float]]]]) -> str:
        """All of them. gauges: what is so now: name -> (meaning, values by labels)."""
        with self._lock:
            lines = [*self._lines(), *_gauges(gauges)]
        return "".join(line + "\n" for line in lines)

    def _lines(self) -> Iterator[str]:
        for name, meaning in COUNTERS.items():
            yield f"# HELP {name} {meaning}"
            yield f"# TYPE {name} counter"
            for labels, value in sorted(self._counts[name].items()):
                yield f"{name}{_shown(labels)} {value:.17g}"
        for name, meaning in HISTOGRAMS.items():
            yield f"# HELP {name} {meaning}"
            yield f"# TYPE {name} histogram"
            for labels, found in sorted(self._seconds[name].items()):
                for bound, value in zip((*map(str, BUCKETS), "+Inf"), found, strict=False):
                    yield f"{name}_bucket{_shown((*labels, ('le', bound)))} {value:.17g}"
                yield f"{name}_sum{_shown(labels)} {found[-1]:.17g}"
                yield f"{name}_count{_shown(labels)} {found[-2]:.17g}"


def _gauges(
    gauges: Mapping[str, tuple[str, Sequence[tuple[Labels, float]]]],
) -> Iterator[str]:
    for name, (meaning, values) in gauges.items():
        yield f"# HELP {name} {meaning}"
        yield f"# TYPE {name} gauge"
        for labels, value in values:
            yield f"{name}{_shown(labels)} {value:.17g}"


def _shown(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
