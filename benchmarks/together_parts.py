"""What `sweep.together` gains, by parts: gradients of K runs in one pass and one by one.

    python benchmarks/together_parts.py [--trials 4] [--tokens 32 64 128 256 512] [--repeats 5]
        [--json FILE]

The embedded model in float32, K adapters (ranks 8 and 16 in turn, all projections of the last 16
layers), one row of so many tokens each, the last quarter of them targets; what the layers below
give is cached. `apart`, `joint`: the gradient of every run, K passes or one. `base`: of these, the
products with the frozen weights of the adapted layers alone, forward and backward, of K times T
tokens or of K T at once: the only work that a joint pass can save at, by larger products. `other`:
what is left: attention, norms, activations, adapters, head. Medians, in ms; apart and joint
alternate. GFLOP/s: of the base products.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llamas
import measuring
from measuring import median

from mlx_ft import exponentials, lora, runtime
from mlx_ft.activations import Store
from mlx_ft.config.schema import LoraConfig, ModelConfig
from mlx_ft.data.arrays import packed
from mlx_ft.data.batch import collate
from mlx_ft.joint import Request, Runner, compute
from mlx_ft.models.forward import forward_of, with_frozen
from mlx_ft.models.load import load, locate
from mlx_ft.shared import twin
from mlx_ft.step import summed_gradient

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np  # isort: skip
from mlx.utils import tree_map  # isort: skip

RANKS = (8, 16)
LAYERS = 16


def base_model() -> Any:
    located = locate(ModelConfig(), runtime.default_cache_dir())
    model = load(located, ModelConfig(), compute_dtype="float32", dequantize=True).model
    exponentials.install(model)
    model.freeze()
    return model


def request(base: Any, number: int, tokens: int, store: Store) -> Request:
    """A run's wish for the gradient of one row of its own."""
    model = twin(base)
    rank = RANKS[number % len(RANKS)]
    lora.attach(model, LoraConfig(rank=rank, alpha=2.0 * rank, num_layers=LAYERS))
    forward = with_frozen(forward_of(model), model, len(model.layers) - LAYERS, store)
    model.train()
    (row,) = llamas.random_rows([tokens + 1], 40_000, 0.25, seed=number)
    batch = collate([row], np.arange(1), pad_id=0)
    arrays = packed(batch, share=False)
    assert arrays.layout is not None
    cache = forward.cache(batch.examples, arrays.layout)
    zeros = tree_map(mx.zeros_like, model.trainable_parameters())
    sums = zeros, mx.array(0.0), mx.array(0.0)
    gradient = summed_gradient(model, forward, 0.0)

    def alone() -> Any:
        (total, count), found = gradient(*arrays.tensors, cache=cache)
        answer = tree_map(mx.add, zeros, found), total, count
        mx.eval(answer)
        return answer

    assert cache is not None
    return Request(Runner(model, forward, 0.0), sums, arrays.tensors, cache, alone)


def weights(base: Any) -> list[mx.array]:
    """Of the adapted layers' projections."""
    modules = [module for layer in base.layers[-LAYERS:] for module in layer.modules()]
    return [module.weight for module in modules if isinstance(module, nn.Linear)]


def products(matrices: list[mx.array], tokens: int, times: int) -> None:
    """(tokens, inputs) times each matrix forward, (tokens, outputs) times it backward."""
    for _ in range(times):
        for matrix in matrices:
            outputs, inputs = matrix.shape
            mx.eval(mx.ones((tokens, inputs)) @ matrix.T, mx.ones((tokens, outputs)) @ matrix)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def one_by_one(requests: list[Request]) -> None:
    for one in requests:
        one.alone()


def measured(base: Any, trials: int, tokens: int, repeats: int) -> dict[str, Any]:
    matrices = weights(base)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), 2**30)
        requests = [request(base, number, tokens, store) for number in range(trials)]
        ways = {
            "apart": partial(one_by_one, requests),
            "joint": partial(compute, requests, set()),
            "base apart": partial(products, matrices, tokens, trials),
            "base joint": partial(products, matrices, tokens * trials, 1),
        }
        for work in ways.values():
            work()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, work in ways.items():
                times[name].append(seconds(work))
        store.close()
    flops = 4.0 * trials * tokens * sum(matrix.size for matrix in matrices)
    return {"trials": trials, "tokens": tokens, "gflop": flops / 1e9,
            **{name: median(found) for name, found in times.items()}}  # fmt: skip


def line(one: dict[str, Any]) -> list[str]:
    other = [one[way] - one[f"base {way}"] for way in ("apart", "joint")]
    figures = [one["apart"], one["joint"], one["base apart"], one["base joint"], *other]
    rates = [one["gflop"] / one[f"base {way}"] for way in ("apart", "joint")]
    return [
        f"{one['trials']} x {one['tokens']}", f"{one['joint'] / one['apart']:.2f}",
        *(f"{1e3 * figure:,.0f}" for figure in figures), *(f"{rate:.0f}" for rate in rates),
    ]  # fmt: skip


def main() -> None:
    parser = measuring.parser(__doc__, plot=False)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    about = measuring.machine()
    base, results = base_model(), []
    for tokens in options.tokens:
        results.append(measured(base, options.trials, tokens, options.repeats))
        print(f"{tokens} tokens done", file=sys.stderr)
    head = ["trials x tokens", "ratio", "apart", "joint", "base apart", "base joint",
            "other apart", "other joint", "GFLOP/s apart", "joint"]  # fmt: skip
    print(measuring.table(head, map(line, results)))
    measuring.keep(options.json, {"results": results}, about)


if __name__ == "__main__":
    main()
