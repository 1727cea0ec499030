"""The loss against its formula in NumPy, in float64."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft import losses
from mlx_ft.losses import cross_entropy, head_loss
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


HEADS = {
    "tied": lambda: nn.Embedding(70, 32).as_linear,
    "untied": lambda: nn.Linear(32, 70, bias=True),
    "quantized": lambda: nn.QuantizedLinear(32, 70, bias=False, group_size=32, bits=4),
    "none": lambda: lambda logits: logits,
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1, 3, 100], ids="chunk-{}".format)
def test_in_chunks_loss_and_gradient_are_those_of_all_logits(
    name: str, smoothing: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx.random.seed(1)
    head, hidden = HEADS[name](), 3 * mx.random.normal((11, 32))
    labels, weights = mx.arange(11), mx.array([1.0] * 8 + [0.0] * 3)
    monkeypatch.setattr(losses, "CHUNK", chunk * head(hidden).shape[-1])

    def whole(hidden: mx.array) -> mx.array:
        return cross_entropy(head(hidden), labels, weights, smoothing)[0]

    def chunked(hidden: mx.array, train: bool = True) -> mx.array:
        return head_loss(head, hidden, labels, weights, smoothing, train=train)[0]

    expected, gradient = mx.value_and_grad(whole)(hidden)
    found, by_chunks = mx.value_and_grad(chunked)(hidden)
    assert relative(float(found), float(expected)) < 1e-6
    assert relative(float(chunked(hidden, train=False)), float(expected)) < 1e-6
    assert relative(np.array(by_chunks), np.array(gradient)) < 1e-5
    assert not np.array(by_chunks)[8:].any()


def test_in_chunks_a_position_that_does_not_count_may_hold_anything() -> None:
    head, labels = nn.Linear(8, 9, bias=False), mx.arange(4)
    hidden = mx.random.normal((4, 8))
    weights = mx.array([1.0, 0, 1, 1])
    poisoned = mx.where(weights[:, None] > 0, hidden, mx.nan)
    found, gradient = mx.value_and_grad(
        lambda h: head_loss(head, h, labels, weights, train=True)[0]
    )(poisoned)
    assert float(found) == float(head_loss(head, hidden, labels, weights)[0])
    assert mx.isfinite(gradient[mx.array([0, 2, 3])]).all().item()


def test_in_chunks_logits_are_never_whole_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 chunks of logits; the peak holds a few of them, forward and backward."""
    monkeypatch.setattr(losses, "CHUNK", 2**20)
    head, hidden = nn.Linear(16, 2**12, bias=False), mx.random.normal((2**14, 16))
    labels, weights = mx.zeros(2**14, mx.int32), mx.ones(2**14)
    mx.eval(head.parameters(), hidden, labels, weights)
    for train in (False, True):
        mx.reset_peak_memory()
        before = mx.get_active_memory()

        def loss(hidden: mx.array, train: bool = train) -> mx.array:
            return head_loss(head, hidden, labels, weights, train=train)[0]

        mx.eval(mx.value_and_grad(loss)(hidden) if train else loss(hidden))
        assert mx.get_peak_memory() - before < 12 * 4 * losses.CHUNK
