"""Update rules and schedules against their formulas, in NumPy."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft import optim
from mlx_ft.config.schema import OptimizerConfig
from tests.fakes import relative

RATES = (0.1, 0.05, 0.02)
Rule = Callable[[OptimizerConfig, np.ndarray, list[np.ndarray]], np.ndarray]


def adam(config: OptimizerConfig, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Kingma and Ba 2015, algorithm 1."""
    return _adam(config, p, gradients, decay=0.0)


def adamw(config: OptimizerConfig, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Loshchilov and Hutter 2019: the decay is taken from the weights, by the learning rate."""
    return _adam(config, p, gradients, decay=config.weight_decay)


def _adam(
    config: OptimizerConfig, p: np.ndarray, gradients: list[np.ndarray], decay: float
) -> np.ndarray:
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), start=1):
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g**2
        corrected = m / (1 - config.beta1**t), v / (1 - config.beta2**t)
        p = p - rate * decay * p - rate * corrected[0] / (np.sqrt(corrected[1]) + config.eps)
    return p


def sgd(config: OptimizerConfig, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Momentum as in Sutskever et al. 2013 with an L2 penalty."""
    v = np.zeros_like(p)
    for rate, g in zip(RATES, gradients, strict=True):
        v = config.momentum * v + g + config.weight_decay * p
        p = p - rate * v
    return p


def lion(config: OptimizerConfig, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(p)
    for rate, g in zip(RATES, gradients, strict=True):
        c = config.beta1 * m + (1 - config.beta1) * g
        p = p - rate * (np.sign(c) + config.weight_decay * p)
        m = config.beta2 * m + (1 - config.beta2) * g
    return p


def adafactor(config: OptimizerConfig, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Shazeer and Stern 2018, algorithm 4, the given rate as the step size, d = 1."""
    row, column = np.zeros(p.shape[0]), np.zeros(p.shape[1])
    for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), start=1):
        beta = 1 - t**-0.8
        row = beta * row + (1 - beta) * (g**2 + 1e-30).mean(1)
        column = beta * column + (1 - beta) * (g**2 + 1e-30).mean(0)
        u = g / np.sqrt(np.outer(row, column) / row.mean())
        u = u / max(1.0, np.sqrt((u**2).mean()))
        p = p - rate * config.weight_decay * p - rate * u
    return p


def muon(config: OptimizerConfig, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Jordan et al. 2024: Nesterov momentum, five Newton-Schulz steps; the penalty is L2."""
    v = np.zeros_like(p)
    for rate, g in zip(RATES, gradients, strict=True):
        g = g + config.weight_decay * p
        v = config.momentum * v + (1 - config.momentum) * g
        x = (1 - config.momentum) * g + config.momentum * v
        x = x.T if p.shape[0] > p.shape[1] else x
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if p.shape[0] > p.shape[1] else x
        p = p - rate * math.sqrt(max(1.0, p.shape[0] / p.shape[1])) * x
    return p


RULES: dict[str, Rule] = {
    "adam": adam,
    "adamw": adamw,
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
    "sgd": sgd,
}


@pytest.mark.parametrize("shape", [(12, 4), (4, 12)], ids=["A", "B"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", RULES)
def test_update_rule_is_its_formula(name: str, decay: float, shape: tuple[int, int]) -> None:
    """Three steps with three learning rates, betas and momentum off their defaults."""
    config = OptimizerConfig(
        name=name, weight_decay=decay, beta1=0.8, beta2=0.95, momentum=0.7, eps=1e-6
    )
    random = np.random.RandomState(0)
    start = random.standard_normal(shape).astype(np.float32)
    gradients = [random.standard_normal(shape).astype(np.float32) for _ in RATES]
    rule = optim.build_optimizer(config)
    parameters = {"w": mx.array(start)}
    rule.init(parameters)
    for rate, gradient in zip(RATES, gradients, strict=True):
        rule.learning_rate = rate
        parameters = rule.apply_gradients({"w": mx.array(gradient)}, parameters)
    wide = [g.astype(np.float64) for g in gradients]
    expected = RULES[name](config, start.astype(np.float64), wide)
    assert np.abs(expected - start).max() > 0.02
    assert relative(parameters["w"], expected) < 1e-5


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    return [optim.learning_rate(config, step, steps) for step in range(steps)]


PEAK = 2.0
BASE = OptimizerConfig(learning_rate=PEAK, warmup_steps=0, min_lr_ratio=0.1)


def test_cosine() -> None:
    found = rates(replace(BASE, schedule="cosine"), 11)
    expected = [0.2 + 1.8 * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(11)]
    assert found == pytest.approx(expected)
    assert (found[0], found[5], found[10]) == pytest.approx((PEAK, 1.1, 0.2))


def test_linear() -> None:
    assert rates(replace(BASE, schedule="linear"), 4) == pytest.approx([2.0, 1.4, 0.8, 0.2])


def test_constant() -> None:
    assert rates(replace(BASE, schedule="constant"), 3) == [2.0] * 3


def test_warmup_stable_decay() -> None:
    config = replace(BASE, schedule="wsd", decay_ratio=0.3, warmup_steps=2)
    found = rates(config, 10)
    assert found == pytest.approx([2 / 3, 4 / 3, 2, 2, 2, 2, 2, 1.4, 0.8, 0.2])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_warmup_reaches_the_peak_and_the_end_its_floor(schedule: str) -> None:
    found = rates(replace(BASE, schedule=schedule, warmup_steps=4), 20)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[-1] == pytest.approx(PEAK if schedule == "constant" else 0.2)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found[4:]))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 100])
@pytest.mark.parametrize("decay", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_runs_stay_in_bounds_and_reach_the_peak(
    schedule: str, warmup: int, decay: float, steps: int
) -> None:
    found = rates(replace(BASE, schedule=schedule, warmup_steps=warmup, decay_ratio=decay), steps)
    assert max(found) == pytest.approx(PEAK)
    assert min(found) > 0
    assert optim.warmup_steps(replace(BASE, warmup_steps=warmup), steps) == min(warmup, steps - 1)


def test_warmup_ratio() -> None:
    config = replace(BASE, warmup_steps=None, warmup_ratio=0.05)
    assert [optim.warmup_steps(config, n) for n in (1, 9, 60, 1000)] == [0, 0, 3, 50]
    assert optim.warmup_steps(replace(config, warmup_ratio=1.0), 60) == 59
    assert optim.warmup_steps(replace(config, warmup_steps=7), 60) == 7
