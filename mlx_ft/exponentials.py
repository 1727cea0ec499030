"""Exponentials in vectors, where MLX computes them one by one.

MLX's CPU build for Linux takes its vector instructions from the C++ compiler, which finds none in
`exp`: 12 to 35 ns for each number of an exponential, a sigmoid or a softmax, and 0.2 to 0.7 ns for
one of a product or a sum (benchmarks/exponentials.py). There, and in float32, 2^x = 2^n 2^f with
an integer n and |f| <= 1/2 is computed here: 2^f by a polynomial, 2^n by adding n to the
exponent's bits: by `native/exponentials.c` if this process has it, else out of MLX's products
and sums. Everywhere else MLX's own functions are called.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import runtime

LOG2_E = 1.4426950408889634
# (2^f - 1) / f at 400 Chebyshev nodes of [-1/2, 1/2]; 2^f is off by 5e-9 at most.
POLYNOMIAL = (
    0.6931471880293429,
    0.2402265092234272,
    0.05550357104252972,
    0.009618056669887258,
    0.0013390867351400178,
    0.00015461447462985332,
)
ROUND = 1.5 * 2.0**23  # float32 has no fractions there: adding it rounds, and n is in the last bits
MANTISSA = 23
LEAST, MOST = -126.0, 126.0  # exponents of normal float32 numbers
BLOCK = 2**19  # logits that are worked on at once
SCORES = 2**22  # of an attention; with more, the five arrays of products and sums take too much
SMALL = 4096  # numbers for which so many operations do not pay
NAME = "swiglu"
DOOR = -float.fromhex("0x1.5ap-126")  # as in native/native.h
SILU, SILU_SLOPE, SOFTMAX, SOFTMAX_SLOPE, KINDS = 1, 2, 3, 4, 8  # as in native/exponentials.c
MOST_NUMBERS = 2**31 - 1  # of a row of a product


def one_by_one(array: mx.array) -> bool:
    """Whether MLX would compute exponentials of these numbers one by one."""
    return array.dtype == mx.float32 and runtime.scalar_exponentials()


@cache
def native() -> bool:
    """Whether MLX's products on the CPU lead to `native/exponentials.c`."""
    with mx.stream(mx.cpu):  # products leave the numbers as they are
        silu = _in_place(SILU, mx.ones((1, 40)), mx.full((1, 40), 4.0))
        weights = _in_place(SOFTMAX, mx.array([[0.0, math.log(3)]] * 3), mx.zeros((1, 2)))
        right = [(silu, mx.array(4 / (1 + math.exp(-1)))), (weights, mx.array([0.25, 0.75]))]
        return all(mx.allclose(found, expected).item() for found, expected in right)


def _in_place(function: int, array: mx.array, other: mx.array) -> mx.array:
    """`function` of `array` (M, N), with the numbers `other` (1, N).

    Only inside functions with gradients of their own: MLX takes it for a product.
    """
    which = mx.full((len(array), 1), function, dtype=mx.float32)
    return mx.addmm(array, which, other, alpha=DOOR, beta=1.0)


def _of_each(function: int, array: mx.array, other: mx.array) -> mx.array:
    """`function` of each number of `array` and the one of `other` in its place."""
    return _in_place(function, array.reshape(1, -1), other.reshape(1, -1)).reshape(array.shape)


def _power_of_2(exponents: mx.array) -> mx.array:
    """2^x of float32 numbers from LEAST to MOST, to 1 unit in the last place; NaN of a NaN."""
    shifted = exponents + ROUND
    fraction = exponents - (shifted - ROUND)
    result = fraction * POLYNOMIAL[-1] + POLYNOMIAL[-2]
    for coefficient in (*POLYNOMIAL[-3::-1], 1.0):
        result = result * fraction + coefficient
    bits = result.view(mx.int32) + (shifted.view(mx.int32) << MANTISSA)
    return bits.view(mx.float32)


def _of_differences(differences: mx.array) -> mx.array:
    """exp(x) of float32 numbers x <= 0; exactly 0 below -87.3, so that -inf masks."""
    powers = _power_of_2(mx.maximum(differences * LOG2_E, LEAST))
    return mx.maximum(powers - 2.0**LEAST, 0.0)  # the difference is lost in all but the least


@mx.custom_function
def _softmax(scores: mx.array) -> mx.array:
    if native():
        rows = scores.reshape(-1, scores.shape[-1])
        return _in_place(SOFTMAX, rows, mx.zeros((1, rows.shape[-1]))).reshape(scores.shape)
    powers = _of_differences(scores - scores.max(axis=-1, keepdims=True))
    return powers * (1.0 / powers.sum(axis=-1, keepdims=True))


@_softmax.vjp
def _softmax_gradient(_: Any, cotangent: Any, found: Any) -> Any:
    return _through_softmax(found, cotangent)


def _through_softmax(found: mx.array, cotangent: mx.array) -> mx.array:
    if native() and found.size <= MOST_NUMBERS:
        return _of_each(SOFTMAX_SLOPE + KINDS * found.shape[-1], cotangent, found)
    # In this form three arrays are there at once, and not four.
    return found * (cotangent - (cotangent * found).sum(axis=-1, keepdims=True))


def softmax(scores: mx.array) -> mx.array:
    """Along the last axis."""
    if not one_by_one(scores):
        return mx.softmax(scores, axis=-1)
    found: Any = _softmax(scores)
    result: mx.array = found
    return result


def normalized(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Probabilities (N, V) of float32 logits, and the logarithms (N,) of their normalizers.

    Not to be differentiated.
    """
    if not one_by_one(logits) or native():
        return _with_normalizers(logits)
    probabilities, normalizers = [], []
    for powers, largest in _blocks(logits):
        sums = powers.sum(axis=-1, keepdims=True)
        probabilities.append(powers * (1.0 / sums))
        normalizers.append((largest + mx.log(sums))[:, 0])
    return mx.concatenate(probabilities), mx.concatenate(normalizers)


def _with_normalizers(logits: mx.array) -> tuple[mx.array, mx.array]:
    largest = logits.max(axis=-1)
    [logits] = mx.depends([logits], [largest])  # nothing needs them after the softmax
    found = softmax(logits) if one_by_one(logits) else mx.softmax(logits, axis=-1, precise=True)
    # The largest probability is exp(max - normalizer).
    return found, largest - mx.log(found.max(axis=-1))


def logsumexp(logits: mx.array) -> mx.array:
    """(N, V) -> (N,)."""
    if not one_by_one(logits):
        return mx.logsumexp(logits, axis=-1)
    found: Any = _logsumexp(logits)
    result: mx.array = found
    return result


@mx.custom_function
def _logsumexp(logits: mx.array) -> mx.array:
    if native():
        found = [mx.array(0.0)]
        for rows in _parts(logits):
            found.append(_with_normalizers(mx.depends([rows], found[-1:])[0])[1])
        return mx.concatenate(found[1:])
    found = [
        (largest + mx.log(powers.sum(axis=-1, keepdims=True)))[:, 0]
        for powers, largest in _blocks(logits)
    ]
    return mx.concatenate(found)


@_logsumexp.vjp
def _logsumexp_gradient(logits: Any, cotangent: Any, found: Any) -> Any:
    if native():
        return cotangent[:, None] * _softmax(logits)
    return cotangent[:, None] * _of_differences(logits - found[:, None])


def _blocks(logits: mx.array) -> Iterator[tuple[mx.array, mx.array]]:
    """exp(x - max) and max of a few rows at a time, which stay in the processor's cache."""
    done = mx.array(0.0)
    for rows in _parts(logits):
        # MLX would take each operation for all blocks, before the next one.
        part = mx.depends([rows], [done])[0]
        largest = part.max(axis=-1, keepdims=True)
        done = _of_differences(part - largest)
        yield done, largest


def _parts(logits: mx.array) -> Iterator[mx.array]:
    rows = max(1, BLOCK // logits.shape[-1])
    for start in range(0, len(logits), rows):
        yield logits[start : start + rows]


def _sigmoid(array: mx.array) -> mx.array:
    return 1.0 / (1.0 + _power_of_2(mx.clip(array * -LOG2_E, LEAST, MOST)))


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    if native() and gate.size <= MOST_NUMBERS:
        return _of_each(SILU, gate, up)
    return gate * _sigmoid(gate) * up


@_swiglu.vjp
def _swiglu_gradient(primals: Any, cotangent: Any, _: Any) -> Any:
    gate, up = primals
    if native() and gate.size <= MOST_NUMBERS:
        return _of_each(SILU_SLOPE, gate, cotangent * up), _of_each(SILU, gate, cotangent)
    # Computed again, as it is cheap and would take as much memory as the gate.
    sigmoid = _sigmoid(mx.depends([gate], [cotangent])[0])
    through = cotangent * sigmoid
    return through * up * (1.0 + gate * (1.0 - sigmoid)), through * gate


def _with_vectors(own: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def swiglu(gate: mx.array, x: mx.array) -> mx.array:
        alike = gate.shape == x.shape and gate.dtype == x.dtype
        pays = gate.size >= SMALL or native()  # which gives any number of rows the same
        if not (pays and alike and one_by_one(gate)):
            return own(gate, x)
        found: Any = _swiglu(gate, x)
        result: mx.array = found
        return result

    swiglu.own = own  # type: ignore[attr-defined]
    return swiglu


def install(model: nn.Module) -> None:
    """Let the feed-forward layers of `model` use these, as far as they are mlx-lm's own."""
    names = {type(module).__module__ for module in model.modules()}
    for module in (sys.modules[name] for name in names if name.startswith("mlx_lm.")):
        own = getattr(module, NAME, None)
        if own is not None and not hasattr(own, "own"):
            setattr(module, NAME, _with_vectors(own))


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Attention of queries (B, H, L, d) to keys and values (B, K, S, d), where K divides H.

    mask: "causal", the last query seeing all; or bool, broadcast to (B, H, L, S), True where it may
    be seen; None: all is seen. sinks: (H,), as MLX has them.
    """
    batch, heads, length, width = queries.shape
    key_heads, seen = keys.shape[1:3]
    if batch * heads * length * seen > SCORES:
        pays = native()
    else:  # as for a row alone, so that its numbers do not depend on the others
        pays = length > 1 or heads * seen > SMALL
    if isinstance(mask, mx.array):
        plain = mask.dtype == mx.bool_
    else:  # more queries than keys would leave some with less than nothing to see
        plain = mask is None or (mask == "causal" and length <= seen)
    if not (pays and plain and sinks is None and one_by_one(queries)):
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=scale, mask=mask, sinks=sinks
        )
    # All heads of a key in one product.
    merged = (queries * scale).reshape(batch, key_heads, -1, width)
    if native():
        masks = [mask] if isinstance(mask, mx.array) else []
        causal = length if isinstance(mask, str) else 0
        both: Any = _attending(causal)(merged, keys, values, *masks)
        return both[0].reshape(batch, heads, length, -1)  # type: ignore[no-any-return]
    if isinstance(mask, str):
        mask = mx.arange(seen - length, seen)[:, None] >= mx.arange(seen)[None]
    weights = softmax(_scores(merged, keys, mask)).reshape(batch, key_heads, -1, seen)
    return (weights @ values).reshape(batch, heads, length, -1)


def _scores(queries: mx.array, keys: mx.array, mask: mx.array | None = None) -> mx.array:
    """(B, K, heads of a key x L, S), or (B, H, L, S) with a mask; what is masked gets nothing."""
    scores = queries @ keys.swapaxes(-1, -2)
    if mask is None:
        return scores
    batch, seen, length = len(scores), scores.shape[-1], mask.shape[-2]
    # Not -inf: where nothing may be seen, MLX takes the mean of all.
    least = mx.finfo(scores.dtype).min
    return mx.where(mask, scores.reshape(batch, -1, length, seen), least)


@lru_cache(maxsize=1024)
def _attending(causal: int) -> Callable[..., Any]:
    """(queries (B, K, heads of a key x L, d), keys, values, mask or nothing) -> (values, weights).

    causal: L, where each query sees one more than the one before it, and the last one all; 0: all
    see what the mask says. One function with its gradient, so that nothing but the weights
    (B, K, heads of a key x L, S) is kept: the scores' memory becomes theirs.
    """

    @mx.custom_function
    def attended(queries: Any, keys: Any, values: Any, *mask: mx.array) -> Any:
        scores = _scores(queries, keys, *mask)
        seen = scores.shape[-1]
        function = SOFTMAX + KINDS * causal
        weights = _in_place(function, scores.reshape(-1, seen), mx.zeros((1, seen)))
        weights = weights.reshape(*queries.shape[:-1], seen)
        return weights @ values, weights

    @attended.vjp
    def gradient(primals: Any, cotangents: Any, found: Any) -> Any:
        queries, keys, values, *mask = primals
        cotangent, weights = cotangents[0], found[1]
        change = _through_softmax(weights, cotangent @ values.swapaxes(-1, -2))
        return (
            change @ keys,
            change.swapaxes(-1, -2) @ queries,
            weights.swapaxes(-1, -2) @ cotangent,
            *map(mx.zeros_like, mask),
        )

    return attended
