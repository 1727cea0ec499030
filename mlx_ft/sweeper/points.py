"""The points of a search: each is written down before it is tried, so that a search goes on."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlx_ft import durable
from mlx_ft.config.compose import refusal
from mlx_ft.errors import ConfigError
from mlx_ft.runfolder import read_json
from mlx_ft.sweeper.accept import accept, look_at, own_folders
from mlx_ft.sweeper.book import DONE
from mlx_ft.sweeper.grid import Trial
from mlx_ft.sweeper.prune import Rule, is_reversed, read_curve
from mlx_ft.sweeper.search import Outcome, ask, check_installed
from mlx_ft.sweeper.settings import Settings
from mlx_ft.sweeper.space import Point, Space
from mlx_ft.sweeper.table import minimizes

POINTS = "points.json"

Row = Callable[[Trial], Mapping[str, Any]]
"""What a sweep knows of a trial: its status, and figures if it has any."""


class Search:
    """A search in its sweep's folder. points: those asked for so far, the first one first.

    accepted: with the trials of these points; it grows. Raises ConfigError when nothing can be
    searched; writes nothing until it asks for a point.
    """

    def __init__(
        self, arguments: Sequence[str], settings: Settings, cfg: DictConfig, loader: Any
    ) -> None:
        self.config = settings.sweep
        check_installed(self.config.sampler)
        if own_folders(cfg):
            fault = "hydra.sweep.subdir: a search names its trials' folders itself. Leave it out"
            raise refusal("the sweep", [fault])
        self.space = Space(arguments, settings.seeds, loader)
        own = self.config.sampler_seed
        self.seed = settings.seed if own is None else own
        probed = accept(self.space.probes(), cfg, loader, self._identity())
        self.accepted = replace(probed, trials=[], refused={})
        self.points: list[Point] = []
        self._exhausted = False  # no point is left that was not asked for
        self._trials: dict[Point, list[Trial]] = {}
        self._cfg, self._loader = cfg, loader
        self._place = self.accepted.book.folder / POINTS
        self._add(self._kept())

    def _identity(self) -> dict[str, Any]:
        """What makes it this search, whatever its points are."""
        return {
            "sweep.space": [str(dimension) for dimension in self.space.dimensions],
            "sweep.sampler": self.config.sampler,
            "sweep.sampler_seed": self.seed,
            "sweep.metric": self.config.metric,
            "sweep.direction": "minimize" if minimizes(self.config) else "maximize",
            **Rule.of(self.config).identity(),
        }

    @property
    def wanted(self) -> int:
        """Points in all; a space may have fewer than were asked for."""
        asked = self.config.trials or 0
        return asked if self.space.size == math.inf else min(asked, int(self.space.size))

    @property
    def count(self) -> int:
        """Trials in all."""
        return max(self.wanted, len(self.points)) * len(self.space.trials(self._some_point()))

    def _some_point(self) -> Point:
        return tuple(dimension.texts[0] for dimension in self.space.dimensions)

    @property
    def is_whole(self) -> bool:
        """Whether all points have been asked for."""
        return self._exhausted or len(self.points) >= self.wanted

    def said(self) -> str:
        """What is searched, and how far it is."""
        sampler, pruner = self.config.sampler, self.config.pruner
        how = f"{sampler}, seed {self.seed}" + f", pruned by {pruner}" * (pruner != "none")
        lines = [f"Search of {self.wanted} points ({how}) in {self.accepted.book.folder}"]
        lines += [f"  {dimension}" for dimension in self.space.dimensions]
        if self.wanted < (self.config.trials or 0):
            lines.append(f"There are no more than {self.wanted} points: all of them are tried")
        if self.points:
            lines.append(f"{len(self.points)} points were asked for before")
        return "\n".join(lines)

    def batches(self, row: Row) -> Iterator[list[Trial]]:
        """The trials of further points, as many as are run at once; each batch asks what is known.

        Ends with the last point, or when a trial was not run: the hours are over. The trials that
        cannot be run are in `accepted.refused` by then.
        """
        width = _at_once(self._cfg)
        while not self.is_whole and not any(
            row(trial)["status"] not in DONE for trial in self.accepted.trials
        ):
            fresh = self._next(row, min(width, self.wanted - len(self.points)))
            if not fresh:
                return
            self._keep(fresh)
            self._add(fresh)
            batch = [trial for point in fresh for trial in self._trials[point]]
            yield batch
            for trial in batch:
                self._say_if_unjudged(row(trial))

    def _say_if_unjudged(self, row: Mapping[str, Any]) -> None:
        if row["status"] == "FINISHED" and not _is_finite(row.get("objective")):
            print(
                f"Trial {row['trial']} has no {self.config.metric}: the search counts it as failed",
                file=sys.stderr,
                flush=True,
            )

    def _next(self, row: Row, count: int) -> list[Point]:
        past = [self._outcome(point, row) for point in self.points]
        fresh = []
        for _ in range(count):
            point = ask(self.space, self.config.sampler, self.seed, past)
            if point is None:
                self._exhausted = True
                break
            past.append(Outcome(point))
            fresh.append(point)
        return fresh

    def _outcome(self, point: Point, row: Row) -> Outcome:
        """A point is as good as its trials' mean; if one failed or was pruned, it did so, too."""
        found = {trial: row(trial) for trial in self._trials[point]}
        states = [one["status"] for one in found.values()]
        values: list[Any] = [one.get("objective") for one in found.values()]
        if any(state not in DONE for state in states):
            return Outcome(point)
        if "FAILED" in states:
            return Outcome(point, "FAILED")
        if "PRUNED" in states:
            trial = next(trial for trial, one in found.items() if one["status"] == "PRUNED")
            return Outcome(point, "PRUNED", last=self._last(trial))
        if not all(map(_is_finite, values)):
            return Outcome(point, "FAILED")
        sign = 1 if minimizes(self.config) else -1
        return Outcome(point, "FINISHED", sign * sum(map(float, values)) / len(values))

    def _last(self, trial: Trial) -> tuple[int, float] | None:
        curve = read_curve(self.accepted.book.place(trial))
        sign = -1 if is_reversed(self.config) else 1
        return (curve[-1][0], sign * curve[-1][1]) if curve else None

    def _add(self, points: Sequence[Point]) -> None:
        """Take points in, with their trials and what is wrong with these."""
        for point in points:
            self._trials[point] = self.space.trials(point)
        fresh = [trial for point in points for trial in self._trials[point]]
        self.points += points
        self.accepted.trials.extend(fresh)
        self.accepted.refused.update(look_at(fresh, self._cfg, self._loader, self.accepted))

    def _keep(self, fresh: Sequence[Point]) -> None:
        keys = [dimension.axis.key for dimension in self.space.dimensions]
        kept = [dict(zip(keys, point, strict=True)) for point in [*self.points, *fresh]]
        durable.write(self._place, (json.dumps({"points": kept}, indent=1) + "\n").encode())

    def _kept(self) -> list[Point]:
        """The points that were asked for before. Raises ConfigError when they are no such."""
        if not self._place.exists():
            return []
        kept = read_json(self._place).get("points")
        dimensions = {dimension.axis.key: dimension for dimension in self.space.dimensions}
        points = [
            tuple(point.values())
            for point in (kept if isinstance(kept, list) else [None])
            if isinstance(point, dict)
            and [*point] == [*dimensions]
            and all(dimensions[key].holds(text) for key, text in point.items())
        ]
        if not isinstance(kept, list) or len(set(points)) < len(kept):
            raise ConfigError(
                f"{self._place} is not as it was written. Remove it: the points are asked for "
                "again, and what is finished is not run again"
            )
        return points


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _at_once(cfg: DictConfig) -> int:
    """How many trials the launcher runs at the same time, as far as it says: joblib does."""
    jobs = OmegaConf.select(cfg, "hydra.launcher.n_jobs")
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs == 0:
        return 1
    return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)
