"""Stopping what is hopeless: each trial holds its validation losses against the other trials'.

The rules are functions of curves. The curves are read from the trials' own folders, so that they
hold across processes, machines with a common disk, and a sweep that was killed and goes on.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ft.config.schema_sweep import SweepConfig
from mlx_ft.runfolder import METRICS
from mlx_ft.sweeper.table import minimizes

Curve = Sequence[tuple[int, float]]
"""(step, value) of each validation of a trial, in order; the lowest value is the best."""

VALUE = "val/loss"
JUDGED = ("val_loss_after", "perplexity_after")  # metrics that go up and down with that value


@dataclass(frozen=True)
class Rule:
    """When a trial is stopped. kind: a choice of `sweep.pruner`; the rest: `sweep.pruner_*`."""

    kind: str
    warmup: int = 1
    startup: int = 3
    factor: int = 3
    patience: int = 2

    @classmethod
    def of(cls, config: SweepConfig) -> Rule:
        """The rule that a sweep asks for."""
        return cls(
            config.pruner,
            config.pruner_warmup,
            config.pruner_startup,
            config.pruner_factor,
            config.pruner_patience,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that have an effect, by their keys; none without a pruner."""
        used = {"median": "startup", "asha": "factor", "patience": "patience"}
        if self.kind not in used:
            return {}
        names = ("warmup", used[self.kind])
        return {"sweep.pruner": self.kind, **{f"sweep.pruner_{n}": getattr(self, n) for n in names}}


def best_by(curve: Curve, step: int) -> float:
    """The best value up to a step; infinity when there is none, or only NaN: the worst."""
    values = [value for at, value in curve if at <= step and not math.isnan(value)]
    return min(values, default=math.inf)


def rivals_at(others: Sequence[Curve], step: int) -> list[float]:
    """The best values up to a step of those that have come so far, whatever became of them."""
    return [best_by(curve, step) for curve in others if curve and curve[-1][0] >= step]


def verdict(rule: Rule, own: Curve, others: Sequence[Curve]) -> str | None:
    """Why a trial is to be stopped at the end of its curve; None: it goes on.

    A trial is only ever stopped while another one is, or was at this step, strictly better: so
    the best of a sweep is never stopped, and one that is leads to a better one that was not.
    """
    if len(own) < rule.warmup:
        return None
    rules = {"median": median, "asha": halving, "patience": patience}
    return rules[rule.kind](rule, own, others)


def median(rule: Rule, own: Curve, others: Sequence[Curve]) -> str | None:
    """Worse than the median of at least `startup` others, each by its best value so far.

    After Golovin et al., "Google Vizier" (2017), 3.2.1, which takes the others' running averages:
    with losses that fall from a common start those are higher, and spare most of the worse half.
    """
    step, best = own[-1][0], best_by(own, own[-1][0])
    rivals = rivals_at(others, step)
    if len(rivals) < rule.startup or not best > (middle := statistics.median(rivals)):
        return None
    return f"{_number(best)} is above the median of {len(rivals)} others, {_number(middle)}"


def halving(rule: Rule, own: Curve, others: Sequence[Curve]) -> str | None:
    """Asynchronous successive halving: at a rung the best 1/factor of all so far go on.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2018), in its form without
    pausing: nobody waits at a rung, and who comes first goes on. Rung k is a trial's validation
    number warmup * factor**k; with fewer than `factor` trials there the best one goes on.
    """
    if not _is_rung(len(own), rule.warmup, rule.factor):
        return None
    step, best = own[-1][0], best_by(own, own[-1][0])
    rivals = rivals_at(others, step)
    places = max(1, (len(rivals) + 1) // rule.factor)
    if (ahead := sum(rival < best for rival in rivals)) < places:
        return None
    return f"{_number(best)} is number {ahead + 1} of {len(rivals) + 1}, of which {places} went on"


def _is_rung(count: int, first: int, factor: int) -> bool:
    while count > first and count % factor == 0:
        count //= factor
    return count == first


def patience(rule: Rule, own: Curve, others: Sequence[Curve]) -> str | None:
    """No gain in `patience` validations, while another trial was ahead at this step."""
    if len(own) <= rule.patience:
        return None
    step = own[-1][0]
    best, before = best_by(own, step), best_by(own, own[-1 - rule.patience][0])
    ahead = min(rivals_at(others, step), default=math.inf)
    if best < before or not ahead < best:
        return None
    return f"no gain in {rule.patience} validations; another one had {_number(ahead)}"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "none that is finite"


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """A trial's validations as its `metrics.jsonl` tells them, without the base model's.

    A loss that was not finite is NaN. What cannot be read is not there.
    """
    found: dict[int, float] = {}
    mark = f'"{VALUE}"'.encode()
    with suppress(OSError):
        for line in (folder / METRICS).read_bytes().splitlines():
            if mark not in line:
                continue
            with suppress(ValueError, KeyError, TypeError):  # a line that is being written
                row = json.loads(line)
                value = row[VALUE]
                found[int(row["step"])] = math.nan if value is None else float(value)
    return sorted((step, value) for step, value in found.items() if step > 0)


def siblings(folder: Path, sweep: Path) -> list[Path]:
    """The folders of the other trials: those that lie as deep in the sweep's as this one."""
    folder, sweep = folder.absolute(), sweep.absolute()
    if not folder.is_relative_to(sweep):
        return []
    depth = len(folder.relative_to(sweep).parts)
    found = sweep.glob("/".join(["*"] * depth + [METRICS]))
    return sorted(path.parent for path in found if path.parent != folder)


def pruner(
    config: SweepConfig, folder: Path, sweep: Path
) -> Callable[[int, float], str | None] | None:
    """What a trial in this folder of a sweep asks at each validation; None without a pruner."""
    if config.pruner == "none":
        return None
    rule, sign = Rule.of(config), -1 if is_reversed(config) else 1

    def ask(step: int, loss: float) -> str | None:
        own = [pair for pair in read_curve(folder) if pair[0] < step] + [(step, loss)]
        curves = [_times(sign, read_curve(other)) for other in siblings(folder, sweep)]
        return verdict(rule, _times(sign, own), curves)

    return ask


def is_reversed(config: SweepConfig) -> bool:
    """Whether the highest validation loss is asked for, which only a test of a sweep wants."""
    return config.metric in JUDGED and not minimizes(config)


def _times(sign: int, curve: Curve) -> list[tuple[int, float]]:
    return [(step, sign * value) for step, value in curve]


def said_of_saved(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """How much pruning has saved: "5 of 9 trials were pruned: 412 of 900 steps not taken"."""
    pruned = [row for row in rows if row["status"] == "PRUNED"]
    if not pruned:
        return None
    taken = sum(row.get("steps") or 0 for row in rows)
    saved = sum((row.get("planned_steps") or 0) - (row.get("steps") or 0) for row in pruned)
    are = "was" if len(pruned) == 1 else "were"
    return (
        f"{len(pruned)} of {len(rows)} trials {are} pruned: {saved:,} of {taken + saved:,} steps "
        "not taken"
    )
