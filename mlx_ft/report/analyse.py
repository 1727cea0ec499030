"""What follows from the rows: which setting is best, whether that is luck, and what it hangs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_ft.errors import UserError
from mlx_ft.plural import counted
from mlx_ft.report.collect import Collection
from mlx_ft.report.importance import Importance, importance
from mlx_ft.report.labels import (
    FIGURES,
    figure_label,
    figure_text,
    name_of,
    p_text,
    step_text,
)
from mlx_ft.report.read import Row, told_apart
from mlx_ft.report.statistics import Difference, Estimate, difference, estimate, pareto

FINISHED = "FINISHED"
DEFAULT = "val_loss_after"
COSTS = ("wall_seconds", "peak_memory_gb")
TOP = 3  # points that are shown in colour, and whose answers are


@dataclass(frozen=True)
class Goal:
    """What runs are compared by. low: whether the lowest figure is the best."""

    metric: str
    low: bool

    def of(self, row: Row) -> float | None:
        """The figure of a run that finished; one that did not cannot be compared."""
        return row.figures.get(self.metric) if row.status == FINISHED else None

    def cost(self, value: float) -> float:
        """The figure such that less of it is better."""
        return value if self.low else -value


@dataclass(frozen=True, eq=False)
class Point:
    """One setting, with a run for each seed. values: seed -> figure of those that finished."""

    name: str
    rows: Sequence[Row]
    values: Mapping[str, float]
    estimate: Estimate
    best: Row

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of its runs; those that vary are alike."""
        return self.best.settings


@dataclass(frozen=True, eq=False)
class Analysis:
    """points: the best first, of those with a run that finished. front: a cost -> the rows that no
    other one beats in it and in the goal alike. gap: of the two best, positive for the first.
    """

    collection: Collection
    goal: Goal
    points: Sequence[Point]
    importance: Importance | None
    front: Mapping[str, Sequence[Row]]
    gap: Difference | None

    @property
    def best(self) -> Row | None:
        """The best run of the best point."""
        return self.points[0].best if self.points else None

    @property
    def top(self) -> list[Row]:
        """The best run of each of the best points."""
        return [point.best for point in self.points[:TOP]]

    @property
    def repeated(self) -> bool:
        """Whether any point was run with several seeds."""
        return any(point.estimate.n > 1 for point in self.points)

    @property
    def seeded(self) -> bool:
        """Whether the runs have different seeds."""
        return len({row.seed for row in self.collection.rows} - {""}) > 1

    def name(self, row: Row) -> str:
        """What tells a row from the others but for its seed."""
        return name_of(row, self.collection.keys)

    @property
    def verdict(self) -> str:
        """Which is best, by how much, and whether that is more than luck."""
        return _verdict(self)


def analyse(collection: Collection, goal: Goal) -> Analysis:
    """Compare the rows; those without the goal's figure are left out of the comparison alone."""
    points = _points(collection, goal)
    judged = [row for row in collection.rows if goal.of(row) is not None]
    return Analysis(
        collection, goal, points, _importance(collection.keys, judged, goal, points),
        {cost: _front(judged, cost, goal) for cost in COSTS},
        _gap(points, goal),
    )  # fmt: skip


def goal_of(rows: Sequence[Row], metric: str | None = None, direction: str = "auto") -> Goal:
    """What to compare by: what the user says, else what the newest sweep among them was told.

    Raises UserError when no run has the metric, or nobody knows which direction is better.
    """
    told = next((r.settings for r in reversed(rows) if "sweep.metric" in r.settings), {})
    wanted = metric or str(told.get("sweep.metric", DEFAULT))
    known = sorted({key for row in rows for key in row.figures})
    if metric and metric not in known:
        raise UserError(f"--metric {metric}: no run has such a figure. Figures that there are: "
                        f"{', '.join(known) or 'none'}")  # fmt: skip
    if direction == "auto" and wanted == told.get("sweep.metric"):
        direction = str(told.get("sweep.direction", "auto"))
    if direction == "auto" and wanted not in FIGURES:
        raise UserError(f"--metric {wanted}: is low or high better? Add --direction minimize or "
                        "--direction maximize")  # fmt: skip
    return Goal(wanted, FIGURES[wanted].low if direction == "auto" else direction == "minimize")


def _points(collection: Collection, goal: Goal) -> list[Point]:
    groups: dict[str, list[Row]] = {}
    for row in collection.rows:
        place = repr([told_apart(row.settings.get(key)) for key in collection.keys])
        groups.setdefault(place, []).append(row)
    found = []
    for rows in groups.values():
        judged = [(row, value) for row in rows if (value := goal.of(row)) is not None]
        if judged:
            # A seed that was run twice is no second witness.
            seeds = {row.seed: estimate([v for r, v in judged if r.seed == row.seed]).mean
                     for row, _ in judged}  # fmt: skip
            best = min(judged, key=lambda pair: goal.cost(pair[1]))[0]
            one = len(rows) == 1 or collection.keys
            name = name_of(rows[0], collection.keys) if one else "all runs"
            found.append(Point(name, rows, seeds, estimate([*seeds.values()]), best))
    return sorted(found, key=lambda point: goal.cost(point.estimate.mean))


def _importance(
    keys: Sequence[str], judged: Sequence[Row], goal: Goal, points: Sequence[Point]
) -> Importance | None:
    if len(keys) < 2 and len(judged) == len(points):
        return None  # one parameter, each value once: it is all there is
    settings = {key: [row.settings.get(key) for row in judged] for key in keys}
    return importance(settings, [row.figures[goal.metric] for row in judged])


def _front(judged: Sequence[Row], cost: str, goal: Goal) -> list[Row]:
    rows = [row for row in judged if cost in row.figures]
    points = [(row.figures[cost], goal.cost(row.figures[goal.metric])) for row in rows]
    return [row for row, kept in zip(rows, pareto(points), strict=True) if kept]


def _gap(points: Sequence[Point], goal: Goal) -> Difference | None:
    if len(points) < 2:
        return None
    first, second = points[0].values, points[1].values
    return difference(second, first) if goal.low else difference(first, second)


def _verdict(analysis: Analysis) -> str:
    points, key = analysis.points, analysis.goal.metric
    if not points:
        return f"No run has finished with a {figure_label(key)}."
    best = points[0]
    if len(points) == 1:
        return f"{best.name} is the only setting with a result."
    following, gap = points[1], analysis.gap
    first, second = (f"{point.name} ({figure_text(key, point.estimate.mean)})"
                     for point in (best, following))  # fmt: skip
    if gap is None:
        return (
            f"{first} is ahead of the next best, {second}, but from one seed nobody can tell "
            "whether that is luck: sweep.seeds=3 runs each setting three times."
        )
    how = "paired by seed" if gap.paired else "Welch's test"
    one, other = gap.n
    seeds = counted(one, "seed") if one == other else f"{one} and {other} seeds"
    low, high = (step_text(key, end) for end in gap.interval)
    told = f"95% interval {low} to {high}, {how}, {seeds}, {p_text(gap.p)}"
    if gap.is_real:
        return (
            f"{first} is better than the next best, {second}, by {step_text(key, gap.mean)}: the "
            f"difference is real ({told})."
        )
    return (
        f"{first} and the next best, {second}, are not told apart: their difference of "
        f"{step_text(key, gap.mean)} may be luck ({told})."
    )
