"""Each technique alone, against the plain path on the same rows: seconds or memory, and exactness.

    python benchmarks/techniques.py [head packing prefix frozen] [--json FILE] [--plot FILE]

head     head and loss, forward and backward, at 2 x 2,048 positions that all count, hidden 1,024,
         152,000 words: MLX's peak beyond weights and inputs, by chunks against all logits at once.
packing  64 rows of log-normal length (median 200, sigma 1, cut to 20-2,000), 8 at once, random
         Llama of 6 layers, 4 adapted: without padding against padded batches in random order, and
         against padded batches bucketed by length. The last half of each row counts.
prefix   8 rows of 40 tokens under 300 that they share, embedded model, 16 layers adapted: one
         prefix with 8 suffixes against 8 rows.
frozen   `train.py` with the last half of the embedded model adapted, on text-to-SQL rows as they
         are and with their tables in the prompt (`speed/rows.py`): the second and later epochs
         with the layers below cached against without.

A pass is forward and backward of all rows, gradients added up; medians after one warm-up pass.
Loss and gradient: largest difference relative to the largest value (of each array). The frozen
cache is compared by the losses of all steps and the final adapters.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llamas
import measuring
import mlx.core as mx
import numpy as np
from llamas import Row
from measuring import ROOT, median
from mlx.utils import tree_map
from speed.rows import write as write_rows

from mlx_ft.data.arrays import Arrays, packed, padded
from mlx_ft.data.batch import Batch, Batches, collate
from mlx_ft.losses import cross_entropy, head_loss
from mlx_ft.models.forward import forward_of
from mlx_ft.models.segments import Segments
from mlx_ft.step import summed_gradient

NAMES = ("head", "packing", "prefix", "frozen")
Gradients = dict[str, mx.array]


@dataclass(frozen=True)
class Computed:
    """One way to compute. amount: seconds, or megabytes."""

    amount: float
    loss: float
    gradients: Gradients


@dataclass(frozen=True)
class Finding:
    """A technique against the plain path. least, aim: what the ratio plain / ours should be."""

    name: str
    unit: str
    plain: float
    ours: float
    least: float
    aim: float
    loss_difference: float
    gradient_difference: float

    @property
    def ratio(self) -> float:
        return self.plain / self.ours


def compare(
    name: str, unit: str, plain: Computed, ours: Computed, least: float, aim: float
) -> Finding:
    loss = abs(plain.loss - ours.loss) / abs(plain.loss)
    largest = max(
        float(mx.abs(ours.gradients[key] - array).max() / mx.abs(array).max())
        for key, array in plain.gradients.items()
    )
    return Finding(name, unit, plain.amount, ours.amount, least, aim, loss, largest)


def head(repeats: int, scale: int) -> list[Finding]:
    """Memory of the loss; scale: divides the number of positions and words."""
    positions, width, words = 4096 // scale, 1024, 152_000 // scale
    weight = mx.random.normal((words, width)) / width**0.5
    hidden = mx.random.normal((positions, width))
    labels = mx.random.randint(0, words, (positions,))
    weights = mx.ones(positions)
    mx.eval(weight, hidden, labels, weights)

    def logits(states: mx.array) -> mx.array:
        found: mx.array = states @ weight.T
        return found

    def chunked(states: mx.array) -> mx.array:
        total, _ = head_loss(logits, states, labels, weights, train=True)
        return total

    def whole(states: mx.array) -> mx.array:
        total, _ = cross_entropy(logits(states), labels, weights)
        return total

    def measure(loss: Callable[[mx.array], mx.array]) -> Computed:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        total, gradient = mx.value_and_grad(loss)(hidden)
        mx.eval(total, gradient)
        peak = (mx.get_peak_memory() - before) / 2**20
        return Computed(peak, float(total), {"hidden": gradient})

    del repeats  # memory does not vary
    return [compare("head and loss", "MB", measure(whole), measure(chunked), 4, 10)]


def timed(model: Any, batches: Sequence[Arrays], repeats: int) -> Computed:
    """Passes over all batches, the sums of their losses and gradients."""
    gradient = summed_gradient(model, forward_of(model), 0.0)
    model.train()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        total: Any = mx.array(0.0)
        sums: Any = tree_map(mx.zeros_like, model.trainable_parameters())
        for arrays in batches:
            cache = None if arrays.layout is None else Segments(arrays.layout)
            (loss, _), found = gradient(*arrays.tensors, cache=cache)
            total, sums = total + loss, tree_map(mx.add, sums, found)
            mx.eval(total, sums)
        seconds.append(time.perf_counter() - started)
    return Computed(median(seconds[1:]), float(total), llamas.flat(sums))


def packing(repeats: int, scale: int) -> list[Finding]:
    """Rows of very different lengths."""
    shape = llamas.Shape()
    model = llamas.random_llama(shape, 8, 4)
    drawn = np.exp(np.random.default_rng(0).normal(np.log(200 / scale), 1.0, max(16, 64 // scale)))
    lengths = np.clip(drawn, 20, 2000 / scale).astype(int).tolist()
    rows = llamas.random_rows(lengths, shape.vocabulary, 0.5)
    source = Batches(rows, 8, 0, pad_id=0)
    bucketed = [source.at(0, index) for index in range(len(source))]
    drawn_order = [collate(rows, np.arange(i, i + 8), 0) for i in range(0, len(rows), 8)]

    def cells(batches: list[Batch]) -> int:
        return sum(batch.inputs.size for batch in batches)

    print(f"packing: {sum(lengths):,} tokens; cells with padding {cells(drawn_order):,} in random "
          f"order, {cells(bucketed):,} bucketed")  # fmt: skip
    ours = timed(model, [packed(batch, share=False) for batch in bucketed], repeats)
    by_length = timed(model, [padded(batch) for batch in bucketed], repeats)
    random = timed(model, [padded(batch) for batch in drawn_order], repeats)
    return [
        compare("packing, against random order", "s", random, ours, 2, 3),
        compare("packing, against buckets", "s", by_length, ours, 1, 1),
    ]


def prefix(repeats: int, scale: int) -> list[Finding]:
    """Rows that begin alike."""
    model = llamas.embedded(8, 16)
    own = llamas.random_rows([300 // scale] + [40 // scale] * 8, 40_000, 0.5)
    shared, suffixes = own[0].tokens, own[1:]
    rows = [
        Row(
            np.concatenate([shared, suffix.tokens]),
            np.concatenate([np.zeros(len(shared), dtype=bool), suffix.targets]),
        )
        for suffix in suffixes
    ]
    batch = collate(rows, np.arange(len(rows)), 0, pad_multiple=1)
    apart = timed(model, [padded(batch)], repeats)
    together = timed(model, [packed(batch, share=True)], repeats)
    return [compare("8 suffixes under a prefix", "s", apart, together, 2.5, 4)]


def frozen(repeats: int, scale: int) -> list[Finding]:
    """Epochs after the first, as `train.py` runs them; each repeat is an epoch more."""
    found = []
    for kind, name in (("plain", "short rows"), ("tables", "rows with schema")):
        with tempfile.TemporaryDirectory() as folder:
            plain, ours = (
                _epochs(Path(folder) / value, kind, value, repeats + 1, 64 // scale)
                for value in ("false", "true")
            )
        found += [compare(f"cached frozen layers, {name}", "s", plain, ours, 1.4, 1.8)]
    return found


def _epochs(place: Path, kind: str, cached: str, epochs: int, count: int) -> Computed:
    """Median seconds of a later epoch; loss: of all steps, added up; gradients: the adapter."""
    place.mkdir()
    write_rows(place, kind, count, 4)
    batches = count // 4
    command = [
        sys.executable, str(ROOT / "benchmarks/speed/ours.py"), str(place / "steps"), "data=custom",
        f"data.path={place / 'train.jsonl'}", "data.valid_fraction=0", "lora.num_layers=15",
        "memory_profile.micro_batch_size=4", f"train.max_steps={epochs * batches}",
        f"train.frozen_cache={cached}", "eval.before=false", "eval.every=0", "tracking=none",
        f"hydra.run.dir={place / 'run'}", f"paths.cache_dir={place / 'cache'}",
    ]  # fmt: skip
    measuring.run(command)
    ends = [json.loads(line)["at"] for line in (place / "steps").read_text().splitlines()]
    ends = ends[batches - 1 :: batches]  # of the epochs
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    metrics = map(json.loads, (place / "run/metrics.jsonl").read_text().splitlines())
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    adapter: Any = mx.load(str(place / "run/adapter/adapters.safetensors"))
    return Computed(median(seconds), sum(losses), adapter)


def show(findings: list[Finding]) -> None:
    head = ["", "plain", "ours", "plain / ours", "at least", "aim", "loss differs", "gradient"]
    lines = [
        [
            found.name, f"{found.plain:,.2f} {found.unit}", f"{found.ours:,.2f} {found.unit}",
            f"{found.ratio:.2f}x", f"{found.least:g}x", f"{found.aim:g}x",
            f"{found.loss_difference:.1e}", f"{found.gradient_difference:.1e}",
        ]
        for found in findings
    ]  # fmt: skip
    print(measuring.table(head, lines))


def draw(findings: list[Finding], axes: Any) -> None:
    places = range(len(findings))
    bars = axes.barh(places, [found.ratio for found in findings], color=measuring.COLOURS[0])
    axes.bar_label(bars, [f"{found.ratio:.1f}x" for found in findings], padding=4)
    for at, found in zip(places, findings, strict=True):
        axes.plot([found.aim] * 2, [at - 0.4, at + 0.4], color=measuring.COLOURS[5], linewidth=3)
    axes.plot([], [], color=measuring.COLOURS[5], linewidth=3, label="aim")
    axes.set_yticks(places, [found.name.replace(", ", ",\n") for found in findings])
    axes.set_xscale("log")
    furthest = max(max(found.ratio, found.aim) for found in findings)
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50, 100) if tick <= 2 * furthest]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.9, 2 * furthest)
    axes.set_xlabel("plain path / ours")
    axes.legend(frameon=False)


def main() -> None:
    parser = measuring.parser(__doc__)
    # Without `choices`, which would have to have the [] of none given, and show it.
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes, for a short try")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"found {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
    about = measuring.machine()
    run = {"head": head, "packing": packing, "prefix": prefix, "frozen": frozen}
    findings: list[Finding] = []
    for name in arguments.names or NAMES:
        findings += run[name](arguments.repeats, arguments.scale)
    show(findings)
    kept = {found.name: {**asdict(found), "ratio": found.ratio} for found in findings}
    measuring.keep(arguments.json, {"findings": kept}, about)
    measuring.plot(arguments.plot, lambda axes: draw(findings, axes))


if __name__ == "__main__":
    main()
