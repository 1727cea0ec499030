"""A job's memory, disk and hours by its configuration and the model's numbers alone.

The work is counted as floating-point operations: 2 for each weight of a layer and token forward,
2 more back through an adapted layer, and 2 more where it is computed again (checkpointed);
attention by its products; the head at targets only.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_ft import lora, together
from mlx_ft.config.schema import Config
from mlx_ft.memory_estimate import MACS, Dimensions, Estimate, Needs, estimate
from mlx_ft.memory_reading import Reader
from mlx_ft.memory_watch import Budget, budget
from mlx_ft.models import architecture
from mlx_ft.models.load import total_parameters
from mlx_ft.runtime import GIB

logger = logging.getLogger(__name__)

PROCESS = round(0.4 * GIB)  # Python, MLX, tokenizer and tracker; measured on the CPU
CPU_SHARE = 0.4  # of the CPU's matmul peak that a training step reaches (benchmarks/RESULTS.md)
SIZE = 1024  # of the product that measures a CPU
READING = 0.94e9  # bytes a second from a cold disk (benchmarks/RESULTS.md, Loading)


@dataclass(frozen=True)
class Speed:
    """Floating-point operations per second of a training step. about: where it comes from."""

    flops: float
    about: str


# mlx-lm's LORA.md gives 250 tokens/s for a 7B model on an M1 Max, batch 1, 4 layers adapted: 16.5
# GFLOP a token. The M4's GPU has 4.3 of the M1 Max's 10.4 TFLOP/s in float32.
M1_MAX = Speed(4.1e12, "assumed 4.1 TFLOP/s of an M1 Max, after mlx-lm's LORA.md: unmeasured "
                       "on Metal")  # fmt: skip
M4 = Speed(1.7e12, "assumed 1.7 TFLOP/s of an M4, the M1 Max's by their peaks: unmeasured on Metal")
SPEEDS: Mapping[str, Speed] = {"m4_16gb": M4, "m4_24gb": M4, "m1_max_32gb": M1_MAX}


@dataclass(frozen=True)
class Job:
    """A resolved configuration with its model's numbers.

    layer_parameters: of one layer, as a token sees them.
    """

    config: Config
    estimate: Estimate
    layer_parameters: int

    @property
    def rows(self) -> int:
        """Of a micro-batch."""
        return int(self.config.memory_profile.micro_batch_size)

    def needs(self, columns: int) -> Needs:
        """Of a micro-batch whose rows all have so many tokens, each a target."""
        return self.estimate.needs([columns] * self.rows, self.rows * columns)

    def peak(self, columns: int) -> int:
        """MLX's, in bytes."""
        summed = int(self.config.memory_profile.grad_accumulation_steps) > 1
        return self.estimate.peak(self.needs(columns), summed=summed)

    def adapter_file(self) -> int:
        """Bytes of `adapters.safetensors`."""
        return self.estimate.adapter

    def checkpoint(self) -> int:
        """Bytes of one: adapter, moments, and the best adapter where it is another one."""
        return self.estimate.adapter * (2 + self.estimate.moments)

    def reads(self, batches: int) -> int:
        """Bytes of offloaded layers that so many micro-batches with new rows read."""
        now = self.estimate
        return batches * (replace(now, offloaded=False).weights - now.weights)

    def operations(self, tokens: float, length: float, targets: float) -> float:
        """Of training on so many tokens in rows of `length`; targets: the share that counts."""
        now, size = self.estimate, self.estimate.dimensions
        passes = size.layers + now.adapted + now.checkpointed
        attention = 2 * (size.queries or size.hidden) * length  # causal: half of the scores
        # Back through attention is two products for each of forward's.
        through = passes * 2 * self.layer_parameters + (passes + now.adapted) * attention
        head = 4 * size.hidden * size.vocabulary * targets
        return tokens * (through + head + 6 * now.trainable)


def plan(config: Config, numbers: Mapping[str, Any]) -> Job:
    """config: resolved, without `auto`. numbers: the model's config.json.

    Raises ConfigError for an adapter that does not fit the model, ModelError for such numbers.
    """
    profile = config.memory_profile
    model = architecture.empty(numbers, config.model, compute_dtype=profile.compute_dtype)
    parameters, weights = total_parameters(model), architecture.weight_bytes(model)
    layers: Sequence[Any] = model.layers
    size = Dimensions.read(numbers, len(layers), parameters)
    attention = size.hidden * (2 * size.queries + 2 * size.keys)
    active = attention + 3 * size.hidden * size.intermediate  # of experts, those that a token sees
    layer = min(max(map(total_parameters, layers)), active)
    adapter = lora.attach(model, config.lora)
    found = estimate(
        config, size, parameters=parameters, weights=weights, trainable=lora.count(model),
        adapted=adapter.num_layers, below=sum(map(total_parameters, layers[: -adapter.num_layers])),
        full_logits=not config.train.targets_only,
    )  # fmt: skip
    return Job(config, found, layer)


def room(config: Config, device: str) -> Budget:
    """What the run may use: its profile's limit where that is a Mac's, or this machine's."""
    profile = config.memory_profile
    if profile.name in MACS and profile.memory_limit_gb is not None:
        name = f"memory_profile={profile.name} (memory_limit_gb={profile.memory_limit_gb:g})"
        return Budget(round(profile.memory_limit_gb * GIB), name)
    return budget(Reader(device)(), profile.memory_limit_gb)


def beside(config: Config) -> int:
    """Bytes that MLX's peak leaves out: buffers kept for reuse, and the process itself."""
    cache = config.memory_profile.cache_limit_gb
    return PROCESS + round((cache or 0.0) * GIB)


def shortage(config: Config, job: Estimate, columns: int, room: Budget) -> str | None:
    """What to say where not even one row fits; None where it does.

    columns: tokens of the longest row. room: what there is for the run.
    """
    needed = job.most(1, columns, columns) + beside(config)
    if needed <= room.size:
        return None
    before = replace(job, offloaded=False).held() + beside(config)
    least = math.ceil(100 * needed / GIB) / 100
    limited = config.memory_profile.memory_limit_gb is not None and "memory_limit_gb" in room.bound
    raised = f"Set memory_profile.memory_limit_gb={least:g} or more, if the machine has it, or take"
    return (
        f"{room.bound}: not even one row of {columns} tokens fits. Found {room.size / GIB:.2f} GB; "
        f"expected {needed / GIB:.2f} GB by estimate, {before / GIB:.2f} of them before a step. "
        f"{raised if limited else 'Take'} what saves memory: `mlx-ft estimate` with these settings "
        "lists it. Training is tried all the same, one row at once"
    )


def fitted(config: Config, asked: Config, job: Estimate, columns: int, size: int) -> Config:
    """`config` with the largest micro-batch that fits, where `asked` left it to us.

    config: resolved, with the profile's number as the upper bound. columns: of the longest row.
    size: bytes that there are. The micro-batch becomes a divisor of what it was, 1 where nothing
    fits (`shortage` says so); accumulation grows by as much, so that the effective batch stays; a
    number that was asked for stays too.
    """
    if asked.memory_profile.micro_batch_size != "auto":
        return config
    profile = config.memory_profile
    most, accumulation = int(profile.micro_batch_size), int(profile.grad_accumulation_steps)
    seat = together.seat()
    free = (size - job.held() - beside(config)) // (1 if seat is None else seat.count)
    fitting = (rows for rows in range(most, 0, -1)
               if most % rows == 0 and job.step(rows, columns, rows * columns) <= free)  # fmt: skip
    found = next(fitting, None)
    rows = found or 1
    if rows == most:
        return config
    kept = asked.memory_profile.grad_accumulation_steps != "auto"
    steps = accumulation if kept else accumulation * (most // rows)
    why = "so many rows of %d tokens fit into %.2f GB" if found else "rows of %d tokens, %.2f GB"
    logger.info(
        f"memory_profile.micro_batch_size=%d instead of %d: {why}; grad_accumulation_steps=%d%s",
        rows, most, columns, size / GIB, steps,
        " as given, so that the effective batch is smaller" if kept else " keeps the batch",
    )  # fmt: skip
    smaller = replace(profile, micro_batch_size=rows, grad_accumulation_steps=steps)
    return replace(config, memory_profile=smaller)


def speed(config: Config, device: str) -> Speed:
    """Of the machine that the profile is for; a CPU, or a CUDA card, is measured in a moment."""
    found = SPEEDS.get(config.memory_profile.name)
    if found is not None and device == "metal":
        return found
    if config.memory_profile.compute_dtype != "float32" or mx.default_device() != mx.cpu:
        size, share, what = 4 * SIZE, 0.3, "this GPU's"
    else:
        size, share, what = SIZE, CPU_SHARE, "this CPU's"
    kind = getattr(mx, config.memory_profile.compute_dtype)
    matrix = mx.random.normal((size, size)).astype(kind)
    mx.eval(matrix, matrix @ matrix)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        mx.eval(matrix @ matrix)
        seconds.append(time.perf_counter() - started)
    flops = 2 * size**3 / min(seconds)
    words = f"{share:.0%} of {what} {flops / 1e9:,.0f} GFLOP/s, measured just now"
    return Speed(share * flops, words)
