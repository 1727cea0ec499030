"""How much of what differs between trials each parameter explains, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlx_ft.report.read import told_apart

Floats: TypeAlias = npt.NDArray[np.float64]

REPEATS = 2000  # of the bootstrap
MOST_BINS = 4
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Share:
    """The share of the objective's variance that lies between a parameter's values.

    interval: 95%, None where there is nothing left to judge it by. by_chance: what a parameter
    without any effect would get on average, with so many values for so many trials. bins: the
    number of ranges that a parameter with many values was cut into, 0 for none.
    """

    name: str
    share: float
    interval: tuple[float, float] | None
    by_chance: float
    bins: int = 0


@dataclass(frozen=True)
class Importance:
    """shares: the most important first. together: what lies between points beyond the single
    parameters; None where the grid has holes, so that the shares overlap. seeds: what lies within
    points, that is between seeds; None when no point was repeated.
    """

    shares: Sequence[Share]
    together: float | None
    seeds: float | None
    trials: int


def importance(
    settings: Mapping[str, Sequence[Any]], objective: Sequence[float], seed: int = 0
) -> Importance | None:
    """Main effects: the sum of squares between a parameter's values, by the total.

    settings: a parameter -> its value in each trial. On a full grid this is the functional
    analysis of variance (Hutter, Hoos and Leyton-Brown, ICML 2014) of the trials themselves. The
    interval is a bootstrap of the residuals of the additive model, which keeps the grid as it
    is: percentiles less the bootstrap's bias, cut to 0..1. None when there is nothing to explain:
    fewer than three trials, or all alike.
    """
    y = np.array(objective, np.float64)
    if len(y) < 3 or not math.isfinite(y.var()) or y.var() <= (1e-12 * abs(y.mean())) ** 2:
        return None
    levels, bins = dict[str, list[int]](), dict[str, int]()
    for name, values in settings.items():
        levels[name], bins[name] = _levels(values)
    levels = {name: codes for name, codes in levels.items() if 1 < max(codes) + 1 < len(y)}
    drawn = _redrawn([*levels.values()], y, seed)
    shares = []
    for name, codes in levels.items():
        share = float(between(codes, y[None])[0])
        interval = None if drawn is None else _interval(share, between(codes, drawn))
        shares.append(Share(name, share, interval, max(codes) / (len(y) - 1), bins[name]))
    shares.sort(key=lambda one: -one.share)
    points = _codes([*zip(*settings.values(), strict=True)])
    explained = float(between(points, y[None])[0])
    counts = np.unique(np.array(points), return_counts=True)[1]
    whole = not any(bins.values()) and _is_full_grid(levels, points, counts)
    together = max(0.0, explained - sum(one.share for one in shares)) if whole else None
    return Importance(shares, together, 1 - explained if counts.max() > 1 else None, len(y))


def between(codes: Sequence[int], y: Floats) -> Floats:
    """The sum of squares between levels by the total, of each row of y: (B, N) -> (B,).

    codes: (N,) the level of each trial, 0 to L - 1; each has a trial.
    """
    members = np.eye(max(codes) + 1)[np.array(codes)]  # (N, L)
    centred = y - y.mean(axis=1, keepdims=True)
    sums = centred @ members
    total = (centred**2).sum(axis=1)
    return np.asarray((sums**2 / members.sum(axis=0)).sum(axis=1) / np.where(total > 0, total, 1))


def _redrawn(levels: Sequence[Sequence[int]], y: Floats, seed: int) -> Floats | None:
    """Objectives as they might have been: the additive fit and residuals drawn anew, (B, N).

    Residuals are scaled up by the freedom that the fit took, and by what a chi-square of the rest
    makes of their spread: of a few runs it is itself uncertain, and without that 95% intervals of
    3 x 4 runs hold 7 times in 10. None when the fit took all freedom.
    """
    columns = [np.eye(max(codes) + 1)[np.array(codes)][:, 1:] for codes in levels]
    design = np.column_stack([np.ones(len(y)), *columns])
    weights, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - int(rank)
    if not levels or freedom < 1:
        return None
    fitted = design @ weights
    residuals = (y - fitted) * math.sqrt(len(y) / freedom)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(y), (REPEATS, len(y)))
    spread = np.sqrt(freedom / rng.chisquare(freedom, (REPEATS, 1)))
    return np.asarray(fitted + spread * residuals[chosen])


def _interval(share: float, drawn: Floats) -> tuple[float, float]:
    low, high = np.percentile(drawn, INTERVAL) - (drawn.mean() - share)
    return max(0.0, float(low)), min(1.0, float(high))


def _levels(values: Sequence[Any]) -> tuple[list[int], int]:
    """The level of each trial, and the number of ranges if the values were cut into these.

    A search hardly takes a number twice: then equally many trials make a level.
    """
    codes = _codes(values)
    if 2 * (max(codes) + 1) <= len(values) or not all(_is_number(value) for value in values):
        return codes, 0
    if max(codes) + 1 <= MOST_BINS:
        return codes, 0
    bins = max(2, min(MOST_BINS, len(values) // 4))
    edges = np.quantile(np.array(values, np.float64), np.linspace(0, 1, bins + 1)[1:-1])
    return _codes(np.searchsorted(edges, np.array(values, np.float64)).tolist()), bins


def _codes(values: Sequence[Any]) -> list[int]:
    seen: dict[str, int] = {}
    return [seen.setdefault(told_apart(value), len(seen)) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_full_grid(
    levels: Mapping[str, Sequence[int]], points: Sequence[int], counts: npt.NDArray[np.intp]
) -> bool:
    """Whether every combination is there, equally often: only then do shares not overlap."""
    cells = math.prod(max(codes) + 1 for codes in levels.values())
    return bool(levels) and cells == max(points) + 1 and len(set(counts.tolist())) == 1
