"""From which epoch on remembering what frozen layers give pays, by the length of rows.

    python benchmarks/frozen.py [--tokens 32 64 96 128 256] [--kinds plain tables] [--json FILE]

What `train.frozen_cache=auto` is to go by (`pays` in `mlx_ft/compute.py`). The embedded model, the
upper half adapted; random rows of so many tokens that have nothing in common, and text-to-SQL rows
(`speed/rows.py`), whose common beginnings are shared in a batch. For each batch one after the
other, so that other work on the machine meets all alike: a plain step, its rows one by one through
the layers below (which the first epoch adds), and a step that has them; sums of `--batches`
batches, each the fastest of `--repeats`. It pays from `alone / (plain - remembered)` epochs on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llamas
import measuring
import mlx.core as mx
import numpy as np
from speed import rows

from mlx_ft import runtime
from mlx_ft.activations import Store
from mlx_ft.config.schema import DataConfig, ModelConfig
from mlx_ft.data.arrays import packed
from mlx_ft.data.batch import Batch, Batches
from mlx_ft.data.prepare import prepare
from mlx_ft.models.forward import Forward, forward_of, with_frozen
from mlx_ft.models.load import locate
from mlx_ft.models.tokenizer import deferred_tokenizer
from mlx_ft.step import summed_gradient

LAYERS, ADAPTED, LENGTH = 30, 15, 512


@dataclass(frozen=True)
class Found:
    """Seconds. tokens: of a row, on the average."""

    rows: str
    tokens: float
    plain: float
    alone: float
    remembered: float

    @property
    def epochs(self) -> float:
        """From which on it pays."""
        saved = self.plain - self.remembered
        return self.alone / saved if saved > 0 else float("inf")


def text_rows(kind: str, count: int) -> Any:
    """The training rows of `speed/rows.py` as tokens."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.write(folder, kind, count, 1)
        data = DataConfig(path=str(folder / "train.jsonl"), valid_fraction=0)
        located = locate(ModelConfig(), runtime.default_cache_dir())
        return prepare(data, deferred_tokenizer(located), LENGTH, 0, folder).train


def measure(name: str, source: Batches, count: int, repeats: int) -> Found:
    """Of the first `count` batches."""
    model = llamas.embedded(8, ADAPTED)
    plain = forward_of(model)
    with tempfile.TemporaryDirectory() as folder:
        made = (Store(Path(folder) / str(number), 2**32) for number in range(10**6))
        ours = with_frozen(plain, model, LAYERS - ADAPTED, next(made))
        assert ours.frozen is not None
        model.train()
        gradient = {forward: summed_gradient(model, forward, 0.0) for forward in (plain, ours)}

        def step(forward: Forward, batch: Batch) -> None:
            arrays = packed(batch, share=True)
            cache = forward.cache(batch.examples, arrays.layout)  # type: ignore[arg-type]
            mx.eval(gradient[forward](*arrays.tensors, cache=cache))

        def alone(batch: Batch) -> None:
            ours.frozen._store.close()  # type: ignore[union-attr]
            ours.frozen._store = next(made)  # type: ignore[union-attr]
            for row in batch.examples:
                ours.frozen._row(np.asarray(row.tokens[:-1]))  # type: ignore[union-attr]

        seconds = np.zeros(3)
        tokens = []
        for batch in (source.at(0, index) for index in range(min(count, len(source)))):
            works = (lambda b: step(plain, b), alone, lambda b: step(ours, b))
            taken = [[_timed(work, batch) for work in works] for _ in range(repeats + 1)]
            seconds += np.min(taken[1:], axis=0)
            tokens += [len(row.tokens) - 1 for row in batch.examples]
        ours.frozen.close()
    return Found(name, float(np.mean(tokens)), *map(float, seconds))


def _timed(work: Callable[[Batch], None], batch: Batch) -> float:
    started = time.perf_counter()
    work(batch)
    return time.perf_counter() - started


def main() -> None:
    parser = measuring.parser(__doc__, plot=False)
    parser.add_argument("--tokens", type=int, nargs="*", default=[32, 64, 96, 128, 256])
    parser.add_argument("--kinds", nargs="*", default=list(rows.KINDS), choices=rows.KINDS)
    parser.add_argument("--rows", type=int, default=4, help="of a batch")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    about = measuring.machine()
    size = arguments.rows * arguments.batches
    sources = {kind: text_rows(kind, size) for kind in arguments.kinds}
    for length in arguments.tokens:
        sources[f"{length} tokens"] = llamas.random_rows([length + 1] * size, 40_000, 0.3)
    found = []
    for name, examples in sources.items():
        batches = Batches(examples, arguments.rows, 0, pad_id=0)
        found.append(measure(name, batches, arguments.batches, arguments.repeats))
        print(f"{name}: pays from {found[-1].epochs:.1f} epochs on", flush=True)
    lines = [[f.rows, f"{f.tokens:.0f}", f"{f.plain:.2f} s", f"{f.alone:.2f} s",
              f"{f.remembered:.2f} s", f"{f.plain / f.remembered:.2f}x", f"{f.epochs:.1f}"]
             for f in found]  # fmt: skip
    head = ["rows", "tokens", "plain", "alone", "remembered", "later epochs", "pays from"]
    print(measuring.table(head, lines))
    measuring.keep(arguments.json, {"found": [asdict(one) for one in found]}, about)


if __name__ == "__main__":
    main()
