"""What a training step needs, from the model's dimensions alone, and what would save most.

Written as counts of stored numbers per token. One layer keeps for its backward pass about 8
arrays of the hidden width D, 5 of the feed-forward width F, 7 of the rank, and one score per head
and column, H T. With 16-bit activations the adapter, which is float32, adds float32 copies of its
inputs, 6 D + F. The loss holds 3 float32 arrays of the vocabulary's width V per target, and with
16 bits the logits and their gradient beside. Checkpointed layers (Chen et al. 2016) keep D each;
one at a time is computed anew, with 1.8 times its widths and 4 times its scores. The counts were
fitted to MLX's own peaks on a llama model; tests/test_memory_estimate.py measures them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.runtime import GIB

TARGETS_MULTIPLE = 64  # data/arrays.py fills target positions up to a multiple of it
WORTH_SAYING = 0.01  # of all that is needed
MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "muon": 1, "sgd": 1, "adafactor": 0}


@dataclass(frozen=True)
class Dimensions:
    """Of a transformer. intermediate: width of the feed-forward part, as one token sees it."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int

    @classmethod
    def read(cls, config: Mapping[str, Any], layers: int, parameters: int) -> Dimensions:
        """From a model's `config.json`; what it does not name is estimated.

        layers, parameters: counted in the model itself. The widths then follow from
        12 layers hidden^2 parameters, a feed-forward of 4 hidden, heads of 64.
        """
        text = config.get("text_config")
        found = {**config, **text} if isinstance(text, Mapping) else config

        def first(*names: str) -> int:
            values = (found.get(name) for name in names)
            return next((value for value in values if isinstance(value, int) and value > 0), 0)

        hidden = first("hidden_size", "n_embd", "d_model", "model_dim", "dim")
        hidden = hidden or max(1, math.isqrt(parameters // (12 * layers)))
        intermediate = first("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
        if experts := first("num_experts_per_tok", "moe_top_k"):
            intermediate = experts * (first("moe_intermediate_size") or intermediate)
        return cls(
            layers,
            hidden,
            intermediate or 4 * hidden,
            first("num_attention_heads", "n_head", "num_heads") or max(1, hidden // 64),
            first("vocab_size") or 32_000,
        )


@dataclass(frozen=True)
class Estimate:
    """A job's memory, in bytes. The adapter is float32, on the last `adapted` layers.

    parameters: of the base; weight_bits: of a base weight as it lies in memory, scales included.
    trainable: parameters of the adapter; moments: arrays of that size that the optimizer keeps.
    float_bytes: of an activation. full_logits: computed at every position, targets or not.
    """

    dimensions: Dimensions
    parameters: int
    weight_bits: float
    trainable: int
    adapted: int
    rank: int
    moments: int
    float_bytes: int
    checkpointed: bool
    full_logits: bool = False

    def held(self) -> int:
        """Between steps: base, adapter, its summed gradient, its best copy, the moments."""
        return round(self.parameters * self.weight_bits / 8) + 4 * self.trainable * (
            3 + self.moments
        )

    def step(self, rows: int, columns: int, targets: int) -> int:
        """What the forward and backward pass of (rows, columns) tokens need beside `held`."""
        size, cells = self.dimensions, rows * columns
        widths = 8 * size.hidden + 5 * size.intermediate + 7 * self.rank
        scores = size.heads * columns
        loss = self._loss(cells, targets)
        if self.checkpointed:
            kept = cells * self.adapted * size.hidden * self.float_bytes
            again = cells * (1.8 * widths + 4 * scores) * self.float_bytes
            backward = kept + again + loss + 4 * self.trainable
        else:  # gradients come as activations go
            layer = (widths + scores) * self.float_bytes
            if self.float_bytes < 4:
                layer += 4 * (6 * size.hidden + size.intermediate)
            backward = cells * layer * (self.adapted + 1) + loss
        update = 4 * self.trainable * (1 + self.moments)
        return round(max(backward, update))

    def _loss(self, cells: int, targets: int) -> int:
        filled = math.ceil(max(1, targets) / TARGETS_MULTIPLE) * TARGETS_MULTIPLE
        logits = 0 if self.float_bytes == 4 and not self.full_logits else 2 * self.float_bytes
        positions = cells if self.full_logits else filled
        return self.dimensions.vocabulary * (12 * filled + logits * positions)


def estimate(
    config: Config,
    dimensions: Dimensions,
    *,
    parameters: int,
    trainable: int,
    adapted: int,
    quantization: Mapping[str, Any] | None,
    full_logits: bool = False,
) -> Estimate:
    """The memory of a resolved run. quantization: of the base as it is in memory, or None."""
    float_bytes = 4 if config.memory_profile.compute_dtype == "float32" else 2
    return Estimate(
        dimensions,
        parameters,
        8.0 * float_bytes if quantization is None else _packed_bits(quantization),
        trainable,
        adapted,
        config.lora.rank,
        MOMENTS[config.optimizer.name],
        float_bytes,
        bool(config.memory_profile.grad_checkpoint),
        full_logits,
    )


def _packed_bits(quantization: Mapping[str, Any]) -> float:
    """Bits of a weight with its share of a 16-bit scale and bias."""
    return float(quantization["bits"]) + 32 / float(quantization.get("group_size", 64))


def advice(
    now: Estimate, columns: int, targets: int, *, device: str, packed: bool = False
) -> list[str]:
    """Settings that save memory when one row of `columns` tokens does not fit, the best first.

    now: the run as it is. targets: of that row. packed: the base comes quantized, whatever was
    made of it. Only what is not used yet, and saves 1% or more.
    """

    def total(job: Estimate, columns: int, targets: int) -> int:
        return job.held() + job.step(1, columns, targets)

    before = total(now, columns, targets)
    saved = [(before - total(now, columns // 2, math.ceil(targets / 2)), _shorter(columns))]
    saved += [
        (before - total(job, columns, targets), words) for job, words in _knobs(now, device, packed)
    ]
    return [
        f"{words} saves about {size / GIB:.2g} GB"
        for size, words in sorted(saved, reverse=True)
        if size >= WORTH_SAYING * before
    ]


def _shorter(columns: int) -> str:
    return f"memory_profile.max_seq_length={columns // 2} (see data.overlong for longer rows)"


def _knobs(now: Estimate, device: str, packed: bool) -> Iterator[tuple[Estimate, str]]:
    if not now.checkpointed:
        yield (
            replace(now, checkpointed=True),
            "memory_profile.grad_checkpoint=true (a step takes about a third longer)",
        )
    if now.adapted > 1:
        half = now.adapted // 2
        trainable = now.trainable * half // now.adapted
        yield replace(now, adapted=half, trainable=trainable), f"lora.num_layers={half}"
    if now.rank > 1:
        trainable = now.trainable // 2
        yield replace(now, trainable=trainable), f"lora.rank={now.rank // 2}"
    slow = " (slow on the CPU)" if device == "cpu" else ""
    if now.weight_bits >= 16:
        keys = [] if packed else ["'model.quantize={bits: 4, group_size: 64, mode: affine}'"]
        keys += ["model.dequantize=false"] if packed or device == "cpu" else []
        yield replace(now, weight_bits=_packed_bits({"bits": 4})), " ".join(keys) + slow
    if now.float_bytes == 4:
        weight_bits = now.weight_bits if now.weight_bits < 16 else 16.0
        yield (
            replace(now, float_bytes=2, weight_bits=weight_bits),
            f"memory_profile.compute_dtype=bfloat16{slow}",
        )
