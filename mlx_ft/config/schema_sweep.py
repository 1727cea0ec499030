"""The part of the schema that says how a sweep goes."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_ft.config.option import option


@dataclass
class SweepConfig:
    """What `-m` makes of the values that are swept; a single run has none of it."""

    name: str | None = option(
        None,
        "Name of the sweep and of its folder in `paths.output_dir/sweeps`; a sweep of this name "
        "that is there goes on. `null`: made from what varies and a digest of all settings, so "
        "that the same command line goes on with its sweep.",
    )
    metric: str = option(
        "val_loss_after",
        "What trials are compared by: a figure of `summary.json`.",
        choices=("val_loss_after", "perplexity_after", "accuracy_after"),
    )
    direction: str = option(
        "auto",
        "Whether the best trial has the lowest or the highest figure; `auto`: as the metric means.",
        choices=("auto", "minimize", "maximize"),
    )
    seeds: int = option(
        1, "Times that each point is run, with `seed`, `seed` + 1, ...", minimum=1, maximum=100
    )
    retry: bool = option(
        False, "When a sweep goes on, run trials again that failed, from their last checkpoint."
    )
    max_hours: float | None = option(
        None, "No trial begins after so many hours; the same command goes on later.", above=0
    )
    dry_run: bool = option(False, "Print the trials and what became of them so far, run none.")
