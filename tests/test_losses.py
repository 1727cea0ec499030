"""The loss against its formula in NumPy, in float64."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft.losses import cross_entropy
from tests.fakes import relative


def reference(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, smoothing: float
) -> float:
    """- sum over targets of q . log softmax, q the smoothed one-hot vector; float64."""
    total = 0.0
    for row, label, weight in zip(logits.astype(np.float64), labels, weights, strict=True):
        if weight:
            log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
            q = np.full(len(row), smoothing / len(row))
            q[label] += 1 - smoothing
            total -= float((q * log_p).sum())
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy_is_the_formula(smoothing: float, scale: float) -> None:
    random = np.random.RandomState(0)
    logits = (scale * random.standard_normal((12, 50))).astype(np.float32)
    labels, weights = random.randint(0, 50, 12), random.randint(0, 2, 12).astype(np.float32)
    total, count = cross_entropy(mx.array(logits), mx.array(labels), mx.array(weights), smoothing)
    assert total.dtype == count.dtype == mx.float32
    assert float(count) == weights.sum()
    assert relative(float(total), reference(logits, labels, weights, smoothing)) < 1e-6


def test_half_precision_logits_are_upcast() -> None:
    logits = mx.array(np.random.RandomState(0).standard_normal((40, 500)), mx.float32)
    rough = logits.astype(mx.float16)
    labels, weights = mx.arange(40), mx.ones(40)
    total, _ = cross_entropy(rough, labels, weights)
    exact = reference(np.array(rough), np.arange(40), np.ones(40), 0.0)
    assert total.dtype == mx.float32
    assert relative(float(total), exact) < 1e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("poison", [-np.inf, np.inf, np.nan])
def test_nothing_leaks_from_positions_that_do_not_count(poison: float, smoothing: float) -> None:
    random = np.random.RandomState(0)
    logits = random.standard_normal((6, 9)).astype(np.float32)
    labels, weights = mx.arange(6), mx.array([1.0, 0, 1, 1, 0, 1])
    clean, _ = cross_entropy(mx.array(logits), labels, weights, smoothing)
    logits[[1, 4]] = poison
    total, count = cross_entropy(mx.array(logits), labels, weights, smoothing)
    assert float(total) == float(clean)
    assert float(count) == 4


def test_gradient_is_softmax_minus_target_and_zero_elsewhere() -> None:
    random = np.random.RandomState(1)
    logits = mx.array(random.standard_normal((5, 7)), mx.float32)
    labels, weights = mx.array([3, 0, 6, 2, 2]), mx.array([1.0, 0, 1, 0, 1])

    def loss(logits: mx.array, smoothing: float) -> mx.array:
        return cross_entropy(logits, labels, weights, smoothing)[0]

    for smoothing in (0.0, 0.2):
        found = np.array(mx.grad(loss)(logits, smoothing))
        target = np.eye(7)[np.array(labels)] * (1 - smoothing) + smoothing / 7
        expected = (np.array(mx.softmax(logits, axis=-1)) - target) * np.array(weights)[:, None]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert not found[[1, 3]].any()
