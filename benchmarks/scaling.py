"""What a training step costs: tokens of a row, rows, rank, layers and width of random llamas.

    python benchmarks/scaling.py [--repeats 5] [--json FILE] [--plot FILE]

One size at a time is varied around 128 tokens x 4 rows, rank 8, 8 layers of which the last half
is adapted, width 512, 8,192 words; the last half of each row counts. A step is everything the
trainer does from a batch to the optimizer's update, without padding and shared prefixes; the first
2 of each size warm up, then medians.

Work: operations that a LoRA step cannot do without, a multiplication and an addition being two.
For each of N tokens 2 P forward (P: weights of the projections) and 2 P_a backward for
activations (P_a: those of the adapted layers; frozen weights need no gradient); 6 per adapter
weight; attention over half a row on average, 2 T D a layer forward and 4 T D backward; and the
head 2 D V forward and as much backward at each target alone. The share is this work by the
seconds and the measured peak of float32 products, so whatever is no product lowers it.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import llamas
import measuring
from llamas import Shape
from measuring import median

from mlx_ft import lora, optim, runtime, trainer
from mlx_ft.config.schema import OptimizerConfig, TrainConfig
from mlx_ft.data.batch import Batches
from mlx_ft.state import TrainState
from mlx_ft.step import Compute

WARM_UP = 2
HIDDEN = 512


@dataclass(frozen=True)
class Job:
    """The sizes of one step."""

    tokens: int = 128
    rows: int = 4
    rank: int = 8
    layers: int = 8
    width: int = HIDDEN

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.layers)

    @property
    def adapted(self) -> int:
        return max(1, self.layers // 2)


SIZES = {
    "tokens": (32, 64, 128, 256, 512, 1024),
    "rows": (1, 2, 4, 8, 16),
    "rank": (4, 16, 64, 256),
    "layers": (2, 4, 8, 16),
    "width": (192, 384, 768, 1152),
}
TITLES = {
    "tokens": "tokens of a row",
    "rows": "rows of a batch",
    "rank": "rank",
    "layers": "layers",
    "width": "width",
}


@dataclass(frozen=True)
class Cost:
    """A job's median step. share: of the machine's peak."""

    job: Job
    seconds: float
    tokens_per_second: float
    gigaflops: float
    share: float


def work(model: Any, job: Job, targets: int) -> float:
    """Operations of a step; see above."""
    tokens, width = job.tokens * job.rows, job.shape.hidden
    forward = llamas.linear_parameters(model.layers)
    backward = llamas.linear_parameters(model.layers[-job.adapted :])
    products = 2.0 * tokens * (forward + backward) + 6.0 * tokens * lora.count(model)
    attention = tokens * job.tokens * width * (2.0 * job.layers + 4.0 * job.adapted)
    return products + attention + 4.0 * width * job.shape.vocabulary * targets


def measure(job: Job, repeats: int, peak: float) -> Cost:
    """Train a few steps of one job."""
    model = llamas.random_llama(job.shape, job.rank, job.adapted)
    steps = WARM_UP + repeats
    rows = llamas.random_rows([job.tokens + 1] * job.rows * steps, job.shape.vocabulary, 0.5)
    batches = Batches(rows, job.rows, 0, pad_id=0)
    optimizer = OptimizerConfig()
    rule = optim.build_optimizer(optimizer)
    config = TrainConfig(max_steps=steps)
    results = list(
        trainer.train(
            TrainState(model, rule),
            batches,
            trainer.plan(config, len(batches), 1),
            optimizer,
            config,
            seed=0,
            compute=Compute(segments=True),
        )
    )[WARM_UP:]
    seconds = median(result.seconds for result in results)
    flops = work(model, job, results[0].target_tokens)
    tokens = job.tokens * job.rows
    return Cost(job, seconds, tokens / seconds, flops / 1e9, flops / 1e9 / seconds / peak)


def show(name: str, costs: list[Cost]) -> None:
    lines = [
        [
            f"{getattr(cost.job, name):,}", f"{cost.seconds * 1e3:,.0f}",
            f"{cost.tokens_per_second:,.0f}", f"{cost.gigaflops:,.1f}", f"{cost.share:.0%}",
        ]
        for cost in costs
    ]  # fmt: skip
    print()
    print(measuring.table([TITLES[name], "ms a step", "tokens/s", "GFLOP", "of the peak"], lines))


def draw(costs: dict[str, list[Cost]], axes: Any) -> None:
    """Seconds against each size, with the line that is proportional to it; the share in percent."""
    for index, (ax, (name, found)) in enumerate(zip(axes.flat, costs.items(), strict=False)):
        sizes = [getattr(cost.job, name) for cost in found]
        seconds = [cost.seconds for cost in found]
        ax.plot([0, sizes[-1]], [0, seconds[-1]], color="0.6", linestyle=":")
        ax.plot(sizes, seconds, color=measuring.COLOURS[index], marker=measuring.MARKERS[index])
        for size, cost in list(zip(sizes, found, strict=True))[-3:]:
            ax.annotate(f"{cost.share:.0%}", (size, cost.seconds), xytext=(-6, 5),
                        textcoords="offset points", ha="right", fontsize=11)  # fmt: skip
        ax.set_ylim(bottom=0, top=1.2 * max(seconds))
        ax.set_xlim(left=0)
        ax.set_xlabel(TITLES[name])
        ax.set_ylabel("s a step")
    for ax in axes.flat[len(costs) :]:
        ax.set_axis_off()
    if len(costs) < len(axes.flat):
        ax = axes.flat[-1]
        ax.plot([], [], color="0.6", linestyle=":", label="proportional to the size")
        ax.plot([], [], " ", label="%: of the peak of products")
        ax.legend(loc="center", frameon=False)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SIZES)}; all unless given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", type=int, help="sizes beyond are left out, for a short try")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - SIZES.keys():
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(SIZES)}")
    about = measuring.machine()
    runtime.select_device()
    peak = runtime.matmul_gflops(2048)
    print(f"peak of float32 products: {peak:.0f} GFLOP/s")
    costs: dict[str, list[Cost]] = {}
    for name in arguments.names or SIZES:
        sizes = [s for s in SIZES[name] if s <= (arguments.largest or s)]
        changed = [replace(Job(), **{name: size}) for size in sizes]
        costs[name] = [measure(job, arguments.repeats, peak) for job in changed]
        show(name, costs[name])
        kept = {key: [asdict(cost) for cost in found] for key, found in costs.items()}
        measuring.keep(arguments.json, {"peak_gflops": peak, "costs": kept}, about)
    measuring.plot(arguments.plot, lambda axes: draw(costs, axes), rows=2, columns=3)


if __name__ == "__main__":
    main()
