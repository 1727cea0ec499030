"""The settings that would save memory, and how much of what is estimated each saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlx_ft.memory_estimate import Estimate, packed_bits
from mlx_ft.runtime import GIB

WORTH_SAYING = 0.01  # of all that is needed


@dataclass(frozen=True)
class Knob:
    """A setting that saves memory. saves: bytes of the peak; costs: what it costs, in words."""

    setting: str
    saves: int
    costs: str


def advice(
    now: Estimate, columns: int, targets: int, *, device: str, packed: bool = False
) -> list[str]:
    """Settings that save memory when one row of `columns` tokens does not fit, the best first.

    now: the run as it is. targets: of that row. packed: the base comes quantized, whatever was
    made of it. Only what is not used yet, and saves 1% or more.
    """
    found = knobs(now, 1, columns, targets, device=device, packed=packed)
    return [f"{knob.setting} ({knob.costs}) saves about {knob.saves / GIB:.2g} GB"
            for knob in found]  # fmt: skip


def knobs(
    now: Estimate, rows: int, columns: int, targets: int, *, device: str, packed: bool
) -> list[Knob]:
    """As `advice`, for a micro-batch of so many rows. targets: of all of it."""
    before = now.most(rows, columns, targets)
    half = max(1, columns // 2), math.ceil(targets / 2)
    found = [
        (before - now.most(rows, *half),
         f"memory_profile.max_seq_length={half[0]}",
         "longer rows are cut or refused, answers too: see data.overlong")
    ]  # fmt: skip
    if rows > 1:
        after = now.most(rows // 2, columns, math.ceil(targets / 2))
        setting = f"memory_profile.micro_batch_size={rows // 2}"
        found += [(before - after, setting, "with twice the accumulation as many rows a step")]
    found += [
        (before - job.most(rows, columns, targets), setting, costs)
        for job, setting, costs in _changes(now, device, packed)
    ]
    worth = [Knob(setting, size, costs) for size, setting, costs in found
             if size >= WORTH_SAYING * before]  # fmt: skip
    return sorted(worth, key=lambda knob: -knob.saves)


def _changes(now: Estimate, device: str, packed: bool) -> Iterator[tuple[Estimate, str, str]]:
    if now.checkpointed < now.adapted:
        setting, costs = "memory_profile.grad_checkpoint=true", "a step takes about a third longer"
        yield replace(now, checkpointed=now.adapted), setting, costs
    if now.adapted > 1:
        half = now.adapted // 2
        job = replace(
            now, adapted=half, trainable=now.trainable * half // now.adapted,
            checkpointed=min(half, now.checkpointed),
        )  # fmt: skip
        yield job, f"lora.num_layers={half}", "lower layers stay as they are; steps are faster"
    if now.below and not now.offloaded:
        setting = "train.offload_frozen=true"
        costs = "layers below the adapter are read in each step of the first epoch"
        yield replace(now, offloaded=True), setting, costs
    if now.rank > 1:
        job = replace(now, trainable=now.trainable // 2, rank=now.rank // 2)
        yield job, f"lora.rank={now.rank // 2}", "room for less to be learned"
    if now.moments > 1:
        yield replace(now, moments=1), "optimizer=lion", "wants a learning rate a tenth as high"
    slow = "tens of times slower on the CPU" if device == "cpu" else ""
    if now.weight_bits >= 16:
        keys = [] if packed else ["'model.quantize={bits: 4, group_size: 64, mode: affine}'"]
        keys += ["model.dequantize=false"] if packed or device == "cpu" else []
        job = replace(now, weight_bits=packed_bits(scale_bits=8 * now.float_bytes))
        yield job, " ".join(keys), slow or "the base is rounded to 4 bits"
    if now.float_bytes == 4:
        weight_bits = now.weight_bits if now.weight_bits < 16 else 16.0
        job = replace(now, float_bytes=2, weight_bits=weight_bits)
        yield job, "memory_profile.compute_dtype=bfloat16", slow or "8 bits of precision"
