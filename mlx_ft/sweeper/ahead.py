"""What a sweep will take: said before it begins, by the estimates of its trials."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.errors import MlxFtError
from mlx_ft.runtime import GIB

# What neither time nor memory depends on: of trials that differ in nothing else, one is estimated.
INDIFFERENT = ("seed", "learning_rate", "alpha", "run_name", "weight_decay", "warmup")


def said_of_work(configs: Sequence[Config], together: int) -> str:
    """One line, of trials that are to be run. together: as many at the same time in one process."""
    from mlx_ft.outlook import outlook  # MLX, which a sweep that has nothing to do never needs

    known: dict[str, tuple[float, int, int]] = {}
    found = []
    try:
        for config in configs:
            key = json.dumps(_bare(asdict(config)), sort_keys=True, default=str)
            if key not in known:
                with _silence():  # what is said of a run's data and memory each trial will say
                    ahead = outlook(config)
                held = ahead.job.estimate.held()
                needed = held + together * (ahead.needed - held)
                known[key] = ahead.seconds, needed, ahead.room.size
            found.append(known[key])
    except Exception as error:  # it is a courtesy: the trials will say what is wrong
        what = str(error) if isinstance(error, MlxFtError) else repr(error)
        return f"How long it takes cannot be estimated: {what.splitlines()[0]}"
    seconds, needs, rooms = zip(*found, strict=True)
    needed, room = max(zip(needs, rooms, strict=True), key=lambda pair: pair[0] / pair[1])
    ends = dict.fromkeys([_duration(min(seconds)), _duration(max(seconds))])
    return (
        f"Estimated: {_duration(sum(seconds))} of training, one after another, "
        f"{' to '.join(ends)} a trial, evaluation not counted; up to "
        f"{needed / GIB:.1f} GB of {room / GIB:.1f} GB{': TOO MUCH' if needed > room else ''}"
    )


@contextmanager
def _silence() -> Iterator[None]:
    logger = logging.getLogger("mlx_ft")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _bare(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _bare(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in INDIFFERENT
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
