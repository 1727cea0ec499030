"""The next point of a search. It follows from the seed, its number and the points before alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlx_ft.config.compose import refusal
from mlx_ft.sweeper.space import Dimension, Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ATTEMPTS = 20  # to come to a point that is new, before the ones that are left are looked up
MOST_LEFT = 10**6  # points of a space among which they are


@dataclass(frozen=True)
class Outcome:
    """What came of a point.

    state: FINISHED, PRUNED, FAILED, or OPEN when that is not known yet. value: of a finished one,
    the lowest is the best. last: step and value of the last validation of a pruned one.
    """

    point: Point
    state: str = "OPEN"
    value: float | None = None
    last: tuple[int, float] | None = None


def check_installed(sampler: str) -> None:
    """Raise ConfigError where a sampler's package is missing; imports nothing."""
    if sampler == "tpe" and find_spec("optuna") is None:
        raise refusal(
            "the sweep",
            ["sweep.sampler=tpe needs Optuna: pip install 'mlx-ft[search]'. Without it: "
             "sweep.sampler=spread"],
        )  # fmt: skip


def startup(space: Space) -> int:
    """Points that are spread evenly before `tpe` has something to learn from."""
    return 2 * (len(space.dimensions) + 1)


def ask(space: Space, sampler: str, seed: int, past: Sequence[Outcome]) -> Point | None:
    """The point that comes after these; None when a space that has an end has no other.

    A point is asked for once: trained again, it would only give the same.
    """
    asked = {outcome.point for outcome in past}
    for attempt in range(ATTEMPTS):
        point = _proposed(space, sampler, seed, past, attempt)
        if point not in asked:
            return point
    if space.size > MOST_LEFT:
        return None
    left = [point for point in space.all_points() if point not in asked]
    return _random(seed, len(past), ATTEMPTS).choice(left) if left else None


def _proposed(
    space: Space, sampler: str, seed: int, past: Sequence[Outcome], attempt: int
) -> Point:
    chance = _random(seed, len(past), attempt)
    ended = sum(outcome.state != "OPEN" for outcome in past)
    if sampler == "tpe" and ended >= startup(space) and attempt < ATTEMPTS // 2:
        return _tpe(space, chance.getrandbits(32), past)
    if sampler == "random" or attempt:
        shares = [chance.random() for _ in space.dimensions]
    else:
        shares = spread(len(past), len(space.dimensions), seed)
    return tuple(d.at(share) for d, share in zip(space.dimensions, shares, strict=True))


def _random(*key: int) -> random.Random:
    """A generator of its own for every point: nothing but the key has to be known again."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311


def spread(number: int, dimensions: int, seed: int) -> list[float]:
    """Point `number` of a sequence that fills the unit cube evenly, however soon it ends.

    Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences" (2018): multiples of the
    powers of 1/phi, where phi**(d+1) = phi + 1; the seed shifts the whole sequence.
    """
    phi = 2.0
    for _ in range(64):
        phi = (1 + phi) ** (1 / (dimensions + 1))
    shift = _random(seed)
    return [(shift.random() + number / phi ** (d + 1)) % 1 for d in range(dimensions)]


def _tpe(space: Space, seed: int, past: Sequence[Outcome]) -> Point:
    """A point by the tree-structured Parzen estimator of Optuna, from a study made anew."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True)
    study = optuna.create_study(sampler=sampler)
    known = {dimension.axis.key: _distribution(dimension) for dimension in space.dimensions}
    for outcome in past:
        study.add_trial(_trial(space, known, outcome))
    found = study.ask(known).params
    return tuple(_text(dimension, found[dimension.axis.key]) for dimension in space.dimensions)


def _trial(space: Space, known: dict[str, BaseDistribution], outcome: Outcome) -> Any:
    """A point as Optuna has it.

    One that failed counts as pruned before its first value, which is the worst there is: as a
    failure Optuna would forget it, and ask for the likes of it again.
    """
    from optuna.trial import TrialState, create_trial

    state = {"FINISHED": TrialState.COMPLETE, "OPEN": TrialState.RUNNING}
    values = zip(space.dimensions, outcome.point, strict=True)
    return create_trial(
        state=state.get(outcome.state, TrialState.PRUNED),
        value=outcome.value if outcome.state == "FINISHED" else None,
        params={dimension.axis.key: _parameter(dimension, text) for dimension, text in values},
        distributions=known,
        intermediate_values=dict([outcome.last] if outcome.last else []),
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna import distributions

    interval, count = dimension.interval, len(dimension.texts)
    if interval is not None and interval.integer:
        return distributions.IntDistribution(int(interval.low), int(interval.high), interval.log)
    if interval is not None:
        return distributions.FloatDistribution(interval.low, interval.high, interval.log)
    if dimension.ordered:  # numbers of a list have neighbours, words have none
        return distributions.IntDistribution(0, count - 1)
    return distributions.CategoricalDistribution(tuple(range(count)))


def _parameter(dimension: Dimension, text: str) -> float:
    if dimension.interval is None:
        return dimension.texts.index(text)
    return int(text) if dimension.interval.integer else float(text)


def _text(dimension: Dimension, value: Any) -> str:
    if dimension.interval is None:
        return dimension.texts[int(value)]
    return dimension.interval.text(value)
