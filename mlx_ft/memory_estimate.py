"""What a training step needs, from the model's dimensions alone.

Written as counts of stored numbers per token, read off the arrays that MLX keeps for the backward
pass of a Llama layer and fitted where its order of evaluation decides. With widths D hidden, Q of
queries, S of keys, F of the feed-forward part, the rank r, and one score per head and column H T:

kept     an adapted layer keeps 4 D + 3 Q + 2 S + 5 F + 7 r + H T
copies   in 16 bits 5 D + Q + F in float32 beside, as the adapter is float32
layer    while one goes backward: 1.15 times what it keeps, or 2.2 scores and 0.9 of the rest
again    a checkpointed layer (Chen et al. 2016) keeps D; computed anew it takes 10 D + 10 Q + 4 S
         + 18 F + 31 r + H T (MLX evaluates breadth first), or 3.2 scores and 1.8 of the rest
loss     3 float32 arrays of logits, of at most 2.35 chunks; in 16 bits 2 more of those. Head and
         loss are done before a layer goes backward.

`benchmarks/memory.py` measures it again; docs/memory.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_ft import buckets, runtime
from mlx_ft.config.schema import Config
from mlx_ft.losses import CHUNK
from mlx_ft.models.checkpointing import count

TARGETS_MULTIPLE = 64  # data/arrays.py fills target positions up to a multiple of it
MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "muon": 1, "sgd": 1, "adafactor": 0}
MACS = ("m4_16gb", "m4_24gb", "m1_max_32gb")  # profiles; estimated on whatever machine
AT_ONCE = 2.35  # chunks of the loss in memory: the next one begins before the last one is gone


@dataclass(frozen=True)
class Dimensions:
    """Of a transformer. intermediate: width of the feed-forward part, as one token sees it.

    queries, keys: widths of all their heads; 0: as `hidden`.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    queries: int = 0
    keys: int = 0

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
        heads = first("num_attention_heads", "n_head", "num_heads") or max(1, hidden // 64)
        size = first("head_dim") or hidden // heads
        return cls(
            layers,
            hidden,
            intermediate or 4 * hidden,
            heads,
            first("vocab_size") or 32_000,
            heads * size,
            (first("num_key_value_heads", "num_kv_heads") or heads) * size,
        )


@dataclass(frozen=True)
class Needs:
    """Bytes that a step takes beside what is held, each part at its largest.

    kept: for the backward pass. layer: while one goes through it. loss: head and loss. update: the
    optimizer's.
    """

    kept: int
    layer: int
    loss: int
    update: int

    @property
    def peak(self) -> int:
        """The loss is done before a layer goes backward, and that before the update."""
        return max(self.kept + max(self.layer, self.loss), self.update)


@dataclass(frozen=True)
class Estimate:
    """A job's memory, in bytes. The adapter is float32, on the last `adapted` layers.

    parameters: of the base; weight_bits: of a base weight as it lies in memory, scales included.
    trainable: parameters of the adapter; moments: arrays of that size that the optimizer keeps.
    float_bytes: of an activation. full_logits: computed at every position, targets or not.
    own_exponentials: those of exponentials.py, which keep less than MLX's; native: in C, with
    less still. below: parameters of the layers below the adapter; offloaded: they are in memory
    only while they are used.
    """

    dimensions: Dimensions
    parameters: int
    weight_bits: float
    trainable: int
    adapted: int
    rank: int
    moments: int
    float_bytes: int
    checkpointed: int
    full_logits: bool = False
    own_exponentials: bool = False
    native: bool = False
    below: int = 0
    offloaded: bool = False

    @property
    def weights(self) -> int:
        """Bytes of the base that a step has in memory."""
        below = self.below if self.offloaded else 0.0
        return round((self.parameters - below) * self.weight_bits / 8)

    @property
    def adapter(self) -> int:
        """Bytes of the adapter; of its gradient, its best copy and each moment as well."""
        return 4 * self.trainable

    def held(self) -> int:
        """Between steps: base, adapter, its summed gradient, its best copy, the moments."""
        return self.weights + self.adapter * (3 + self.moments)

    def step(self, rows: int, columns: int, targets: int) -> int:
        """What the forward and backward pass of (rows, columns) tokens need beside `held`."""
        return self.needs([columns] * rows, filled(targets)).peak

    def most(self, rows: int, columns: int, targets: int) -> int:
        """At any time: in a step, or when a row is new and the whole base is there for it."""
        whole = replace(self, offloaded=False).held()
        return max(self.held() + self.step(rows, columns, targets), whole)

    def peak(self, needs: Needs, *, summed: bool) -> int:
        """MLX's, of a step with these needs.

        summed: its gradient is added to an earlier micro-batch's; otherwise it takes the place
        that activations leave.
        """
        later = 0 if summed else self.adapter
        step = max(needs.kept + max(needs.layer, needs.loss), needs.update + later)
        whole = replace(self, offloaded=False).held()  # when a new row is computed, and answers
        return max(self.held() - later + step, whole - later)

    def needs(self, lengths: Sequence[int], targets: int) -> Needs:
        """The parts of `step`.

        lengths: tokens of each row, with its padding if it has any; targets: with the filling.
        """
        size, cells = self.dimensions, sum(lengths)
        pairs = size.heads * sum(length**2 for length in lengths) * self.float_bytes
        own = self.float_bytes == 4 and self.own_exponentials
        widths = cells * self._bytes(4, 3, 2, 3 if own else 5, 7)
        copies = cells * self._copies(5, 1, 1)
        loss = self._loss(cells, max(1, targets))
        joined = min(self.adapter, buckets.AT_ONCE * 4 * buckets.MOST)
        update = self.adapter * (1.25 + self.moments) + 3 * joined
        whole = (self.adapted - self.checkpointed) * (widths + copies + pairs)
        kept = whole + self.checkpointed * cells * size.hidden * self.float_bytes
        layer = 0.0
        if self.checkpointed < self.adapted:
            layer = max(1.15 * (widths + pairs), 0.9 * widths + 2.2 * pairs)
            loss += 0.45 * (widths + pairs)
        if self.checkpointed:
            widest = self._bytes(10, 10, 4, 14 if own else 18, 31) + self._copies(15, 3, 6)
            scores = 2 * pairs if own else pairs
            again = max(cells * widest + scores, 1.8 * (widths + copies) + 3.2 * pairs)
            layer = max(layer, again - whole)  # what whole layers kept is gone by then
        return Needs(*map(round, (kept, layer, loss, update)))

    def _bytes(self, hidden: int, queries: int, keys: int, intermediate: int, rank: int) -> int:
        """Of so many arrays of these widths, per token."""
        size = self.dimensions
        numbers = hidden * size.hidden + intermediate * size.intermediate
        numbers += queries * (size.queries or size.hidden) + keys * (size.keys or size.hidden)
        return numbers * self.float_bytes + 4 * rank * self.rank

    def _copies(self, hidden: int, queries: int, intermediate: int) -> int:
        """Of so many float32 arrays that 16-bit activations need beside, per token."""
        size = self.dimensions
        if self.float_bytes == 4:
            return 0
        numbers = hidden * size.hidden + queries * (size.queries or size.hidden)
        return 4 * (numbers + intermediate * size.intermediate)

    def _loss(self, cells: int, targets: int) -> float:
        width = self.dimensions.vocabulary
        own = 0 if self.float_bytes == 4 else 2 * self.float_bytes
        if self.full_logits:
            if self.float_bytes == 4 and self.native:
                return width * (12 * targets + 4 * cells)
            return width * (16 * targets + 2 * self.float_bytes * cells)
        arrays = 8 if self.own_exponentials else 12  # see exponentials.normalized
        return width * min(targets, AT_ONCE * max(1, CHUNK // width)) * (arrays + own)


def estimate(
    config: Config,
    dimensions: Dimensions,
    *,
    parameters: int,
    weights: int,
    trainable: int,
    adapted: int,
    below: int = 0,
    full_logits: bool = False,
) -> Estimate:
    """The memory of a resolved run. weights: bytes of the base as it lies in memory, all of it."""
    from mlx_ft.exponentials import native  # imports MLX

    own = runtime.scalar_exponentials() and config.memory_profile.name not in MACS
    return Estimate(
        dimensions,
        parameters,
        8 * weights / max(1, parameters),
        trainable,
        adapted,
        config.lora.rank,
        MOMENTS[config.optimizer.name],
        4 if config.memory_profile.compute_dtype == "float32" else 2,
        count(config.memory_profile.grad_checkpoint, adapted),
        full_logits,
        own,
        own and native(),
        below,
        config.train.offload_frozen,
    )


def filled(targets: int) -> int:
    """Target positions of a padded batch that has so many targets."""
    return math.ceil(max(1, targets) / TARGETS_MULTIPLE) * TARGETS_MULTIPLE


def packed_bits(bits: int = 4, group_size: int = 64, scale_bits: int = 16) -> float:
    """Bits of a weight with its share of a scale and a bias."""
    return bits + 2 * scale_bits / group_size
