"""Exponentials in C, and made of products and sums, are those of NumPy in float64."""

import ctypes
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlx_ft import exponentials, runtime
from mlx_ft.exponentials import LEAST, MOST
from tests.models import tiny

FINITE = st.floats(-1000, 1000, width=32)
MATRICES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=FINITE
)
ULP = 2.0**-23


@pytest.fixture(autouse=True, params=["products and sums", "native"])
def scalar(request, monkeypatch):
    """As MLX's CPU build for Linux, wherever the tests run; both ways where there are two."""
    if request.param == "native" and not exponentials.native():
        pytest.skip("MLX's products do not lead to native/exponentials.c")
    monkeypatch.setattr(runtime, "scalar_exponentials", lambda: True)
    monkeypatch.setattr(exponentials, "native", lambda: request.param == "native")
    return request.param


native = pytest.mark.parametrize("scalar", ["native"], indirect=True)
products = pytest.mark.parametrize("scalar", ["products and sums"], indirect=True)


def normals(*shape, scale=1.0, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@products
def test_powers_of_2_are_exact_to_the_last_place():
    exponents = np.linspace(LEAST, MOST, 100_003).astype(np.float32)
    found = np.array(exponentials._power_of_2(mx.array(exponents))).astype(np.float64)
    assert np.abs(found / 2.0 ** exponents.astype(np.float64) - 1).max() < 1.01 * ULP
    whole = np.arange(LEAST, MOST + 1).astype(np.float32)
    np.testing.assert_array_equal(np.array(exponentials._power_of_2(mx.array(whole))), 2.0**whole)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MATRICES)
def test_softmax_and_logsumexp_of_anything(scores):
    expected = softmax(scores.astype(np.float64))
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    normalizer = scores.max(axis=-1) + np.log(np.exp(shifted).sum(axis=-1))
    found, own = exponentials.normalized(mx.array(scores))
    for probabilities in (found, exponentials.softmax(mx.array(scores))):
        np.testing.assert_allclose(np.array(probabilities), expected, atol=1e-6, rtol=2e-5)
    for logs in (own, exponentials.logsumexp(mx.array(scores))):
        np.testing.assert_allclose(np.array(logs), normalizer, atol=1e-5, rtol=1e-6)


@products
def test_many_rows_are_taken_in_blocks(monkeypatch):
    logits = normals(7, 100, scale=3)
    whole = exponentials.normalized(mx.array(logits))
    monkeypatch.setattr(exponentials, "BLOCK", 300)
    taken = [len(part) for part, _ in exponentials._blocks(mx.array(logits))]
    assert taken == [3, 3, 1]
    parts = exponentials.normalized(mx.array(logits))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(other))


def test_gradients_are_those_of_mlx():
    logits, weights = mx.array(normals(6, 50, scale=3)), mx.array(normals(6, 50, seed=1))
    row = weights[:, 0]
    pairs = [
        (lambda x: (exponentials.softmax(x) * weights).sum(),
         lambda x: (mx.softmax(x, axis=-1) * weights).sum()),
        (lambda x: (exponentials.logsumexp(x) * row).sum(),
         lambda x: (mx.logsumexp(x, axis=-1) * row).sum()),
    ]  # fmt: skip
    for own, reference in pairs:
        found, expected = (mx.grad(function)(logits) for function in (own, reference))
        np.testing.assert_allclose(np.array(found), np.array(expected), atol=2e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value):
    """The guard against a diverged step sees a loss that is NaN."""
    logits = normals(3, 40)
    logits[1, 7] = value
    for found in (
        exponentials.softmax(mx.array(logits)),
        *exponentials.normalized(mx.array(logits)),
    ):
        rows = np.isfinite(np.array(found)).reshape(3, -1).all(axis=1)
        np.testing.assert_array_equal(rows, [True, False, True])
    assert np.isnan(np.array(exponentials.logsumexp(mx.array(logits)))[1])


def test_what_is_masked_gets_exactly_nothing():
    scores = normals(4, 30)
    scores[:, 20:] = -np.inf
    found = np.array(exponentials.softmax(mx.array(scores)))
    assert (found[:, 20:] == 0).all()
    np.testing.assert_allclose(found[:, :20], softmax(scores[:, :20]), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    ("length", "seen", "key_heads", "mask"),
    [
        (9, 9, 4, "causal"), (5, 12, 2, "causal"), (1, 6, 1, "causal"), (7, 7, 2, "window"),
        (5, 12, 2, None), (1, 600, 2, None), (9, 9, 2, "rows"), (6, 6, 4, "added"),
    ],
)  # fmt: skip
def test_attention_and_its_gradients(length, seen, key_heads, mask):
    queries = mx.array(normals(3, 4, length, 8))
    keys, values = (mx.array(normals(3, key_heads, seen, 8, seed=seed)) for seed in (1, 2))
    if mask == "window":
        distance = np.arange(length)[:, None] - np.arange(seen)[None]
        mask = mx.array((distance >= 0) & (distance < 3))
    if mask in ("rows", "added"):  # each row of the batch its own; numbers that are added
        mask = np.random.default_rng(5).random((3, 1, length, seen)) < 0.5
        mask[..., 0] = True
        mask = mx.array(mask) if length == 9 else mx.array(np.where(mask, 0, -5.0), mx.float32)

    def loss(attention):
        def squared(queries, keys, values):
            return (attention(queries, keys, values, scale=0.3, mask=mask) ** 2).sum()

        return mx.value_and_grad(squared, argnums=(0, 1, 2))(queries, keys, values)

    found, gradients = loss(exponentials.attention)
    expected, reference = loss(mx.fast.scaled_dot_product_attention)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(gradients, reference, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_swiglu_and_its_gradients(scale):
    gate, up = mx.array(normals(64, 128, scale=scale)), mx.array(normals(64, 128, seed=1))
    ours = exponentials._with_vectors(None)  # which is never called here
    found = np.array(ours(gate, up))
    exact = np.array(gate).astype(np.float64)
    exact = exact / (1 + np.exp(-exact)) * np.array(up)
    np.testing.assert_allclose(found, exact, atol=1e-6 * scale, rtol=1e-5)

    def gradients(function):
        return mx.grad(lambda gate, up: (function(gate, up) ** 2).sum(), argnums=(0, 1))(gate, up)

    for one, other in zip(gradients(ours), gradients(lambda g, u: nn.silu(g) * u), strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-3, rtol=1e-4)


@pytest.fixture(params=[1, 3])
def threads(request):
    """Of OpenBLAS, and so of what goes through its products; tests have one, else."""
    library = ctypes.CDLL(None)
    before = library.scipy_openblas_get_num_threads()
    library.scipy_openblas_set_num_threads(request.param)
    yield request.param
    library.scipy_openblas_set_num_threads(before)


@native
def test_a_number_is_the_same_wherever_it_lies_and_in_how_many_threads(threads):
    """What rows computed alone, resumed or in another batch are equal by, to the bit."""
    gate, up = mx.array(normals(300, 257, scale=5)), mx.array(normals(300, 257, seed=1))
    for function in (exponentials.SILU, exponentials.SILU_SLOPE):
        whole = np.array(exponentials._of_each(function, gate, up)).ravel()
        for start, end in ((0, 1), (1, 40), (3, 4099), (17, 70_001), (16, 77_100)):
            parts = (array.reshape(-1)[start:end] for array in (gate, up))
            found = np.array(exponentials._of_each(function, *parts))
            np.testing.assert_array_equal(found, whole[start:end])
    weights = exponentials.softmax(gate)
    change = exponentials._through_softmax(weights, up)
    for start, end in ((7, 8), (5, 290), (299, 300)):
        part = slice(start, end)
        alone = exponentials.softmax(gate[part])
        np.testing.assert_array_equal(np.array(alone), np.array(weights[part]))
        found = exponentials._through_softmax(weights[part], up[part])
        np.testing.assert_array_equal(np.array(found), np.array(change[part]))


@native
def test_every_number_is_computed_by_many_threads(threads):
    gate, up = normals(300, 257, scale=5), normals(300, 257, seed=1)
    exact = gate.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-exact))
    weights = softmax(exact)
    change = weights * (up - (weights * up).sum(axis=-1, keepdims=True))
    arrays = mx.array(gate), mx.array(up)
    for found, expected in (
        (exponentials._of_each(exponentials.SILU, *arrays), exact * sigmoid * up),
        (exponentials._of_each(exponentials.SILU_SLOPE, *arrays),
         sigmoid * (1 + exact * (1 - sigmoid)) * up),
        (exponentials.softmax(arrays[0]), weights),
        (exponentials._through_softmax(mx.array(weights.astype(np.float32)), arrays[1]), change),
    ):  # fmt: skip
        np.testing.assert_allclose(np.array(found), expected, atol=5e-6, rtol=1e-5)


def by_mlx(queries, keys, values, mask):
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask=mask)


def test_a_row_to_which_nothing_may_be_seen_and_what_is_hidden_from_all(scalar):
    """As with MLX's own: a finite mean of all, and no trace of a hidden key that is not finite."""
    queries, keys, values = (normals(2, 4, 5, 8, seed=seed) for seed in range(3))
    keys[:, :, 4] = math.nan
    mask = np.tril(np.ones((2, 1, 5, 5), bool))
    mask[1, :, :2] = False  # the padding of a shorter row
    mask[1, :, :, :2] = False
    arrays = [mx.array(array) for array in (queries, keys, values, mask)]
    expected = np.array(by_mlx(*arrays))
    found = np.array(exponentials.attention(*arrays[:3], 0.3, arrays[3]))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    assert np.isfinite(found[:, :, :4]).sum() >= found[0, :, :4].size  # what does not see the key
    np.testing.assert_allclose(found[0, :, :4], expected[0, :, :4], atol=1e-5)
    np.testing.assert_allclose(found[1, :, 2:4], expected[1, :, 2:4], atol=1e-5)


def test_what_causality_hides_may_be_anything(scalar):
    queries, keys, values = (normals(2, 4, 5, 8, seed=seed) for seed in range(3))
    arrays = [mx.array(array) for array in (queries, keys, values)]
    expected = np.array(by_mlx(*arrays, "causal"))
    keys[:, :, 3] = math.nan
    found = np.array(exponentials.attention(arrays[0], mx.array(keys), arrays[2], 0.3, "causal"))
    np.testing.assert_allclose(found[:, :, :3], expected[:, :, :3], atol=1e-5)
    assert np.isnan(found[:, :, 3:]).all()


def test_more_queries_than_keys_are_left_to_mlx(scalar):
    queries = mx.array(normals(1, 4, 40, 8))
    keys, values = (mx.array(normals(1, 4, 5, 8, seed=seed)) for seed in (1, 2))
    found = exponentials.attention(queries, keys, values, 0.3, "causal")
    expected = by_mlx(queries, keys, values, "causal")
    np.testing.assert_array_equal(np.array(found), np.array(expected))


@native
def test_an_answer_does_not_depend_on_how_many_others_there_are():
    queries, keys = mx.array(normals(8, 9, 1, 8)), mx.array(normals(8, 3, 700, 8, seed=1))
    for seen in (20, 300, 700):  # to MLX and to us
        whole = exponentials.attention(queries, keys[:, :, :seen], keys[:, :, :seen], 0.3, None)
        for rows in (1, 2, 5):
            part = keys[:rows, :, :seen]
            found = exponentials.attention(queries[:rows], part, part, 0.3, None)
            np.testing.assert_array_equal(np.array(found), np.array(whole[:rows]))


@native
def test_attention_holds_no_more_scores_than_mlx():
    queries, keys, values = (mx.array(normals(1, 4, 600, 16, seed=seed)) for seed in range(3))

    def most(attention):
        function = mx.value_and_grad(lambda *given: attention(*given).sum(), argnums=(0, 1, 2))
        mx.eval(function(queries, keys, values))
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(function(queries, keys, values))
        return mx.get_peak_memory() - before

    own = most(lambda *given: exponentials.attention(*given, 0.3, "causal"))
    assert own < 0.9 * most(lambda *given: by_mlx(*given, "causal"))


@native
def test_what_the_functions_are_given_stays_as_it_is():
    gate, up = mx.array(normals(64, 128)), mx.array(normals(64, 128, seed=1))
    before = np.array(gate), np.array(up)
    mx.eval(exponentials.softmax(gate), exponentials._of_each(exponentials.SILU, gate, up))
    for array, kept in zip((gate, up), before, strict=True):
        np.testing.assert_array_equal(np.array(array), kept)
    turned = exponentials._of_each(exponentials.SILU, gate.T, up.T)  # of another layout
    straight = exponentials._of_each(exponentials.SILU, gate, up)
    np.testing.assert_array_equal(np.array(turned.T), np.array(straight))


@native
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_swiglu_of_what_is_not_finite(value):
    gate, up = normals(64, 128), normals(64, 128, seed=1)
    gate[3, 5], up[9, 100] = value, value
    found = np.array(exponentials._of_each(exponentials.SILU, mx.array(gate), mx.array(up)))
    assert np.argwhere(~np.isfinite(found)).tolist() == [[3, 5], [9, 100]]


def test_other_types_and_few_numbers_are_left_to_mlx(scalar):
    called = []
    ours = exponentials._with_vectors(lambda gate, up: called.append(gate.shape) or gate * up)
    for kind, shape in ((mx.bfloat16, (64, 128)), (mx.float32, (1, 128)), (mx.float32, (64, 128))):
        ours(mx.ones(shape, dtype=kind), mx.ones(shape, dtype=kind))
    # In C few numbers, too: a row must not depend on how many others there are.
    assert called == ([(64, 128)] if scalar == "native" else [(64, 128), (1, 128)])


def test_it_is_put_into_a_model_once_and_its_logits_stay(monkeypatch):
    from mlx_lm.models import activations, llama

    monkeypatch.setattr(llama, "swiglu", activations.swiglu)
    model = tiny.build()
    tokens = mx.array(np.arange(200).reshape(4, 50) % 250)
    before = model(tokens)
    exponentials.install(model)
    installed = llama.swiglu
    exponentials.install(model)
    assert llama.swiglu is installed is not activations.swiglu
    np.testing.assert_allclose(np.array(model(tokens)), np.array(before), atol=1e-5)


def test_only_linux_cpus_take_them_one_by_one(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("sys.platform", "darwin")
    assert not runtime.scalar_exponentials()
    monkeypatch.setattr("sys.platform", "linux")
    assert runtime.scalar_exponentials() == (mx.default_device() == mx.Device(mx.cpu))
