"""Exponentials three ways (Linux, CPU): MLX's own, out of its products and sums, in C.

    python benchmarks/exponentials.py [--repeats 9] [--json FILE]

Milliseconds, medians, the ways in turn: what a step of the embedded model takes them for.
"Backward" is the gradient alone. Beside them a product of two arrays of SwiGLU's size.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import measuring

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

from mlx_ft import exponentials  # noqa: E402

TOKENS, WIDTH, HEADS, TARGETS, VOCABULARY = 480, 1536, 9, 64, 49152
Work = Callable[[], object]
Way = Callable[[Work], float]  # seconds


def timed(work: Work) -> float:
    started = time.perf_counter()
    mx.eval(work())
    return time.perf_counter() - started


def by(native: bool) -> Way:
    """Ours, in C or out of products and sums."""

    def way(work: Work) -> float:
        found = exponentials.native
        setattr(exponentials, "native", lambda: native)  # noqa: B010
        try:
            return timed(work)
        finally:
            setattr(exponentials, "native", found)  # noqa: B010

    return way


def works() -> dict[str, tuple[Work, Work]]:
    """(MLX's own, ours) of each."""
    gate, up, cotangent = (mx.random.normal((TOKENS, WIDTH)) for _ in range(3))
    scores = mx.random.normal((HEADS, TOKENS, TOKENS))
    logits = mx.random.normal((TARGETS, VOCABULARY))
    mx.eval(gate, up, cotangent, scores, logits)

    def own(gate: mx.array, up: mx.array) -> mx.array:
        return nn.silu(gate) * up

    ours = exponentials._with_vectors(own)

    def backward(function: Callable[..., mx.array]) -> Work:
        return lambda: mx.vjp(function, [gate, up], [cotangent])[1]

    return {
        "SwiGLU": (lambda: own(gate, up), lambda: ours(gate, up)),
        "SwiGLU, backward": (backward(own), backward(ours)),
        "softmax of scores": (
            lambda: mx.softmax(scores, axis=-1, precise=True),
            lambda: exponentials.softmax(scores),
        ),
        "softmax and normalizers of logits": (
            lambda: (mx.softmax(logits, axis=-1, precise=True), mx.logsumexp(logits, axis=-1)),
            lambda: exponentials.normalized(logits),
        ),
        "a product": (lambda: gate * up, lambda: gate * up),
    }


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if not (runtime.scalar_exponentials() and exponentials.native()):
        sys.exit("nothing to compare: here MLX has its own, or there is no C compiler")
    ways: dict[str, Way] = {"MLX": timed, "products and sums": by(False), "C": by(True)}
    seconds: dict[str, dict[str, list[float]]] = {}
    for name, (own, ours) in works().items():
        found = seconds.setdefault(name, {way: [] for way in ways})
        for _ in range(arguments.repeats):
            for way, measure in ways.items():
                found[way].append(measure(own if way == "MLX" else ours))
    measuring.keep(arguments.json, seconds, measuring.machine())
    lines = [
        [name, *(f"{1000 * median(found[way]):.1f}" for way in ways)]
        for name, found in seconds.items()
    ]
    print(measuring.table(["milliseconds", *ways], lines))


if __name__ == "__main__":
    main()
