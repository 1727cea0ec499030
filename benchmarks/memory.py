"""MLX's peak in a training step as it is estimated from the configuration, and as it is.

    python benchmarks/memory.py [NAME ...] [--json FILE] [--plot FILE] [--folder MODEL]

Random models with the widths of Mistral 7B (hidden 4,096, feed-forward 14,336, 32 heads, 8 of them
for keys, 32,768 words), TinyLlama's, and the embedded model's, in float32, bfloat16 and 4 bits;
each in a process of its own. Estimated: by `mlx_ft.memory_plan` from the model's numbers, as
`mlx-ft estimate` does. Measured: `mx.get_peak_memory` over one optimizer step of
`mlx_ft.trainer.train`, with the copy of the best adapter that a run holds. `step`: the same without
what is held between steps. NAME: only the cases that have it in their name. --folder: also a
model that is here, in 4 bits and bfloat16, 1 x 512 tokens, checkpointed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring
from measuring import ROOT

WIDTHS: dict[str, dict[str, Any]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False},
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
           "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
}  # fmt: skip
AIM, LEAST = 0.07, 0.15


@dataclass(frozen=True)
class Case:
    """One configuration. lengths: of the rows; adapted: layers; targets: share of the tokens."""

    widths: str
    layers: int
    lengths: tuple[int, ...]
    adapted: int | str = "all"
    rank: int = 16
    modules: str = "all-linear"
    bits: int | None = None
    dtype: str = "float32"
    checkpointed: bool | int = False
    segments: bool = True
    targets: float = 0.5
    targets_only: bool = True
    optimizer: str = "adamw"
    batches: int = 1
    folder: str = ""

    @property
    def name(self) -> str:
        rows = "+".join(map(str, sorted(set(self.lengths), reverse=True)))
        parts = [f"{self.widths} {self.layers} layers", f"{len(self.lengths)} x {rows}"]
        parts += [] if self.adapted == "all" else [f"last {self.adapted}"]
        parts += [f"{self.bits} bits"] if self.bits else []
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [f"rank {self.rank}"] if self.rank != 16 else []
        parts += [self.modules] if self.modules != "all-linear" else []
        some = "" if self.checkpointed is True else f"{self.checkpointed} layers "
        parts += [f"{some}checkpointed"] if self.checkpointed else []
        parts += [] if self.segments else ["padded"]
        parts += [f"{self.targets:.0%} targets"] if self.targets != 0.5 else []
        parts += [] if self.targets_only else ["all logits"]
        parts += [self.optimizer] if self.optimizer != "adamw" else []
        parts += [f"{self.batches} micro-batches"] if self.batches > 1 else []
        return ", ".join(parts)


CASES = (
    Case("135M", 30, (128,) * 8, 16),
    Case("135M", 30, (128,) * 8, 16, segments=False),
    Case("135M", 30, (512,) * 4, checkpointed=True),
    Case("135M", 30, (512,) * 4, segments=False),
    Case("135M", 30, (512,) * 4, checkpointed=15),
    Case("135M", 30, (64,) * 8, rank=128, optimizer="lion"),
    Case("135M", 30, (64,) * 8, rank=128, optimizer="lion", batches=2),
    Case("135M", 30, (1024,), segments=False, checkpointed=True),
    Case("135M", 30, (400, 250, 160, 100, 60, 40, 30, 20)),
    Case("135M", 30, (400, 250, 160, 100, 60, 40, 30, 20), segments=False),
    Case("135M", 30, (256,) * 4, 16, targets_only=False),
    Case("135M", 30, (512,) * 8, 4, targets=1.0),
    Case("135M", 30, (64,), 8, dtype="bfloat16"),
    Case("135M", 3, (1400,)),
    Case("135M", 3, (2500,), checkpointed=True),
    Case("1B", 6, (256, 256)),
    Case("1B", 6, (512, 512), segments=False, checkpointed=True),
    Case("1B", 6, (256, 256), modules="attention"),
    Case("1B", 8, (512,), 4, rank=64),
    Case("7B", 2, (1024,)),
    Case("7B", 2, (1024,), segments=False),
    Case("7B", 2, (512, 512), checkpointed=True),
    Case("7B", 4, (512,), segments=False, checkpointed=True),
    Case("7B", 4, (128,) * 3, rank=64),
    Case("7B", 4, (512,), 2),
    Case("7B", 2, (512,), targets=1.0, targets_only=False, segments=False),
    Case("7B", 2, (64,), bits=4),
    Case("7B", 4, (32,), bits=4, checkpointed=True),
    Case("7B", 8, (16,), bits=4, segments=False),
    Case("7B", 2, (32,), bits=4, rank=128, optimizer="sgd"),
    Case("7B", 2, (64,), dtype="bfloat16"),
    Case("7B", 2, (32,), bits=4, dtype="bfloat16", checkpointed=True),
    Case("7B", 4, (32,), bits=4, dtype="bfloat16"),
)


def numbers(case: Case) -> dict[str, Any]:
    """The config.json of the case's model."""
    if case.folder:
        content: dict[str, Any] = json.loads((Path(case.folder) / "config.json").read_text())
        return content
    return {"model_type": "llama", "num_hidden_layers": case.layers, "rms_norm_eps": 1e-5,
            **WIDTHS[case.widths]}  # fmt: skip


def child(case: Case) -> dict[str, int]:
    """Bytes: estimated and measured, of all and of what is held between steps."""
    import llamas  # brings in the BLAS
    import mlx.core as mx

    from mlx_ft import exponentials, lora, memory_plan, optim, trainer
    from mlx_ft.config.schema import (
        Config,
        DataConfig,
        LoraConfig,
        MemoryProfileConfig,
        ModelConfig,
        OptimizerConfig,
        TrainConfig,
    )
    from mlx_ft.data.batch import Batches
    from mlx_ft.memory_estimate import filled
    from mlx_ft.models import architecture
    from mlx_ft.models.checkpointing import checkpoint_layers, count
    from mlx_ft.models.forward import forward_of
    from mlx_ft.state import TrainState
    from mlx_ft.step import Compute

    packed = {"bits": case.bits, "group_size": 64, "mode": "affine"} if case.bits else None
    config = Config(
        model=ModelConfig(quantize=packed, dequantize=False),
        lora=LoraConfig(rank=case.rank, num_layers=case.adapted, target_modules=case.modules),
        optimizer=OptimizerConfig(name=case.optimizer),
        data=DataConfig(packing="segments" if case.segments else "none", share_prefixes=False),
        memory_profile=MemoryProfileConfig(
            micro_batch_size=len(case.lengths), grad_accumulation_steps=case.batches,
            grad_checkpoint=case.checkpointed, compute_dtype=case.dtype,
        ),
        train=TrainConfig(compile=False, targets_only=case.targets_only),
    )  # fmt: skip
    rows = llamas.random_rows([n + 1 for n in case.lengths] * case.batches, 30_000, case.targets)
    targets = sum(int(row.targets[1:].sum()) for row in rows) // case.batches
    job = memory_plan.plan(config, numbers(case)).estimate
    if case.segments:
        needs = job.needs(case.lengths, targets)
    else:
        needs = job.needs([max(case.lengths)] * len(case.lengths), filled(targets))

    model = architecture.empty(numbers(case), config.model, compute_dtype=case.dtype)
    for array in llamas.flat(model.parameters()).values():  # one by one: packed ones were floats
        mx.eval(array)
    model.eval()
    exponentials.install(model)
    adapter = lora.attach(model, config.lora)
    checkpoint_layers(model, count(case.checkpointed, adapter.num_layers))
    forward = forward_of(model)
    optimizer = optim.build_optimizer(config.optimizer)
    state = TrainState(model, optimizer)
    state.best_adapter = {name: array + 0 for name, array in state.adapter().items()}
    mx.eval(model.parameters(), optimizer.state, state.best_adapter)
    batches = Batches(rows, len(case.lengths), 0, pad_id=0)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in trainer.train(
        state, batches, trainer.Plan(1, *[case.batches] * 3), config.optimizer, config.train,
        seed=0, compute=Compute.of(config), forward=forward,
    ):  # fmt: skip
        pass
    return {
        "estimated": job.peak(needs, summed=case.batches > 1), "measured": mx.get_peak_memory(),
        "held_estimated": job.held() - job.adapter, "held_measured": before,
    }  # fmt: skip


def measure(case: Case) -> dict[str, Any]:
    """The case in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(asdict(case))]
    found = measuring.run(command, PYTHONPATH=str(ROOT))
    figures: dict[str, Any] = json.loads(found.output.splitlines()[-1])
    figures["process_mb"] = found.peak_mb
    return figures


def show(found: Sequence[tuple[Case, dict[str, Any]]]) -> None:
    lines = []
    for case, one in found:
        step = [one[kind] - one[f"held_{kind}"] for kind in ("estimated", "measured")]
        lines.append([
            case.name, f"{one['estimated'] / 2**20:,.0f}", f"{one['measured'] / 2**20:,.0f}",
            f"{ratio(one):.3f}", f"{step[0] / 2**20:,.0f}", f"{step[1] / 2**20:,.0f}",
            f"{step[0] / step[1]:.2f}",
        ])  # fmt: skip
    head = ["", "estimated MB", "measured MB", "ratio", "step, estimated", "measured", "ratio"]
    print(measuring.table(head, lines))
    off = [abs(ratio(one) - 1) for _, one in found]
    print(f"\n{len(off)} configurations: {sum(size <= AIM for size in off)} within {AIM:.0%}, "
          f"{sum(size <= LEAST for size in off)} within {LEAST:.0%}; largest {max(off):.1%}, "
          f"median {measuring.median(off):.1%}")  # fmt: skip


def ratio(one: dict[str, Any]) -> float:
    return float(one["estimated"] / one["measured"])


def draw(found: Sequence[tuple[Case, dict[str, Any]]], axes: Any) -> None:
    for index, widths in enumerate(WIDTHS):
        own = [one for case, one in found if case.widths == widths]
        axes.plot(
            [one["measured"] / 2**30 for one in own], [one["estimated"] / 2**30 for one in own],
            measuring.MARKERS[index], color=measuring.COLOURS[index], label=f"{widths} widths",
        )  # fmt: skip
    ends = [scale(one["measured"] for _, one in found) / 2**30 for scale in (min, max)]
    axes.plot(ends, ends, color="black", linewidth=1, label="equal")
    low, high = ([share * end for end in ends] for share in (1 - LEAST, 1 + LEAST))
    axes.fill_between(ends, low, high, color="0.9", label=f"within {LEAST:.0%}")
    axes.set(xscale="log", yscale="log", xlabel="measured peak, GB", ylabel="estimated, GB")
    axes.legend(frameon=False)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--folder", type=Path, metavar="MODEL", help="a model that is here")
    parser.add_argument("--child", help="measure this case in this process")
    arguments = parser.parse_args()
    if arguments.child:
        fields = json.loads(arguments.child)
        print(json.dumps(child(Case(**{**fields, "lengths": tuple(fields["lengths"])}))))
        return
    about = measuring.machine()
    names = arguments.names or [""]
    chosen = [case for case in CASES if any(name in case.name for name in names)]
    if arguments.folder:
        layers = json.loads((arguments.folder / "config.json").read_text())["num_hidden_layers"]
        chosen.append(Case("folder", layers, (512,), bits=4, dtype="bfloat16", checkpointed=True,
                           segments=False, folder=str(arguments.folder)))  # fmt: skip
    found = []
    for case in chosen:
        found.append((case, measure(case)))
        print(f"{case.name}: {ratio(found[-1][1]):.3f}", file=sys.stderr)
    show(found)
    kept = {case.name: {**asdict(case), **one} for case, one in found}
    measuring.keep(arguments.json, {"cases": kept}, about)
    measuring.plot(arguments.plot, lambda axes: draw(found, axes))


if __name__ == "__main__":
    main()
