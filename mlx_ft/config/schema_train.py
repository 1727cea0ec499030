"""The schema of `train` and `checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_ft.config.option import option


@dataclass
class TrainConfig:
    """How long to train, and when to stop."""

    epochs: float = option(1.0, "Passes over the training rows.", above=0, maximum=10**6)
    max_steps: int | None = option(
        None, "Optimizer steps; wins over `epochs` when set.", minimum=1, maximum=10**9
    )
    label_smoothing: float = option(
        0.0, "Share of the target probability spread over the vocabulary.", minimum=0, below=1
    )
    skip_patience: int = option(
        5,
        "Stop after this many skipped steps in a row: those with a NaN or infinite loss or "
        "gradient, and spikes.",
        minimum=1,
    )
    spike_factor: float | None = option(
        None,
        "Skip a step whose loss is more than this many times the median of the last 20, once there "
        "are five; `null`: only what is not finite is skipped.",
        above=1,
    )
    on_spike: str = option(
        "skip",
        "`skip`: leave the step out; `rewind`: also take adapter and optimizer back to the last "
        "checkpoint.",
        choices=("skip", "rewind"),
    )
    targets_only: bool = option(
        True,
        "Compute logits and loss at target positions only, a few at a time; `false`: logits "
        "everywhere, as most trainers do. The same result.",
    )
    frozen_cache: Any = option(
        "auto",
        "Keep what the layers below the adapted ones give for each row, and compute it only once; "
        "`auto`: if there are two such layers or more (`lora.num_layers`), from 3 epochs on, with "
        "rows below 90 tokens from 7 on, in a sweep always.",
        kind="bool|'auto'",
    )
    frozen_cache_gb: float = option(
        4.0, "Disk that it may take in `paths.cache_dir`; rows beyond are computed.", minimum=0
    )
    offload_frozen: bool = option(
        False,
        "Keep the weights of those layers in a file in `paths.cache_dir` while they are not used: "
        "less memory, and the first epoch reads them at each step.",
    )
    resume: str = option(
        "never",
        "`never`: a folder that holds a run is refused; `auto`: go on with the run in "
        "`hydra.run.dir`, or begin one there; or the run to go on with: its folder, one of its "
        "checkpoints, or its id.",
    )
    resume_allow: Any = option(
        None,
        "Differences to accept when a run is resumed: a list of keys such as "
        "`[optimizer.learning_rate]`, `data`, `model`, or `all`.",
        kind="list|'all'|null",
    )
    early_stopping_patience: int | None = option(
        None, "Stop after this many validations without improvement; `null`: never.", minimum=1
    )
    early_stopping_min_delta: float = option(
        0.0, "What counts as an improvement of the validation loss, in nats.", minimum=0
    )
    log_every: int = option(5, "Steps between two log lines.", minimum=1)
    compile: Any = option(
        "auto",
        "Compile the training step (`mx.compile`); `auto`: on a GPU. On the CPU compiling costs "
        "more than it gains in a short run.",
        kind="bool|'auto'",
    )


@dataclass
class CheckpointConfig:
    """What a run that is stopped goes on from, and which adapter it ends with."""

    every: int = option(
        50,
        "Steps between two checkpoints; 0: only at the end, and when the run is stopped.",
        minimum=0,
    )
    keep_last: int = option(2, "How many checkpoints are kept.", minimum=1)
    best: bool = option(
        True, "End with the adapter of the lowest validation loss rather than the last one."
    )
