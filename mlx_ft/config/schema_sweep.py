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
    dry_run: bool = option(
        False,
        "Print the trials and what became of them so far, run none; ends with 1 where some are "
        "impossible.",
    )
    together: int = option(
        1,
        "Trials that train at the same time in one process, as one batch over one base model: "
        "each with its own adapter, rows and learning rate.",
        minimum=1,
        maximum=64,
    )
    sampler: str = option(
        "grid",
        "`grid`: every combination of the values. A search takes ranges, too: `tpe` learns from "
        "the points before (needs Optuna: the extra `search`), `spread` covers the ranges evenly, "
        "`random` draws from them.",
        choices=("grid", "tpe", "spread", "random"),
    )
    trials: int | None = option(
        None,
        "Points of a search in all, each run `sweep.seeds` times; with more, the same command "
        "goes on.",
        minimum=1,
        maximum=1000,
    )
    sampler_seed: int | None = option(
        None, "What the points of a search follow from; `null`: `seed`.", minimum=0
    )
    pruner: str = option(
        "none",
        "Stops a trial that its validation losses show to be hopeless. `median`: it is worse than "
        "half of the others were at its step; `asha`: it is not in the best part of them, "
        "`1/pruner_factor`; `patience`: it no longer gains, and another one is ahead of it.",
        choices=("none", "median", "asha", "patience"),
    )
    pruner_warmup: int = option(
        1, "Validations of a trial up to the first at which it may be stopped.", minimum=1
    )
    pruner_startup: int = option(
        3,
        "Other trials that must have come as far before `median` stops one.",
        minimum=1,
    )
    pruner_factor: int = option(
        3,
        "`asha`: asked at validations `pruner_warmup` times 1, factor, factor², ...; of `n` "
        "trials there the best `n/factor` go on.",
        minimum=2,
    )
    pruner_patience: int = option(2, "`patience`: validations in a row without a gain.", minimum=1)
