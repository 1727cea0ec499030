"""Accepting a run: whatever can be wrong with it is found here, before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import (
    compute,
    evaluation,
    initial,
    lora,
    lora_files,
    memory,
    memory_guard,
    memory_plan,
    runtime,
)
from mlx_ft.config.schema import Config
from mlx_ft.data import build, sources
from mlx_ft.data.prepare import Dataset, prepare
from mlx_ft.data.rows import Conversation
from mlx_ft.data.sample import sample
from mlx_ft.deferred import Deferred
from mlx_ft.errors import DataError, ModelError
from mlx_ft.metrics import Metric
from mlx_ft.models import load as models
from mlx_ft.models.checkpointing import checkpoint_layers, count
from mlx_ft.models.forward import Forward, forward_of
from mlx_ft.models.tokenizer import deferred_tokenizer, needs_download
from mlx_ft.shared import Shared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accepted:
    """A run that can begin: its configuration, model, data and adapter fit together."""

    config: Config  # without any `auto` that depends on the machine
    public: dict[str, Any]
    device: str
    loaded: models.Loaded
    dataset: Dataset
    metric: Metric | None
    adapter: lora_files.Adapter
    vocabulary: int | None  # rows of the model's embedding
    forward: Forward
    shared: Shared | None = None  # with the runs before and after in this process
    start: initial.Start | None = None  # the adapter that it begins with, if not a new one
    short: bool = False  # of memory for a single row; it was said


def accept(config: Config, public: Mapping[str, Any], shared: Shared | None = None) -> Accepted:
    """Load and check everything that can be wrong; writes nothing but the model cache.

    shared: has the base model where an earlier run of this process wanted the same. Raises
    UserError kinds.
    """
    ready = prepare_inputs(config)
    resolved, dataset = ready.config, ready.dataset
    profile = resolved.memory_profile
    runtime.set_limits(profile, ready.device)
    load = models.load if shared is None else shared.load
    mx.reset_peak_memory()  # an earlier run of this process had its own
    loaded = load(
        ready.located,
        resolved.model,
        compute_dtype=profile.compute_dtype,
        dequantize=bool(resolved.model.dequantize),
        tokenizer=ready.tokenizer,
    )
    vocabulary = _check_vocabulary(loaded.model, dataset)
    if config.train.early_stopping_patience is not None and not dataset.valid:
        raise DataError(
            "train.early_stopping_patience needs validation rows: set data.valid_fraction above 0 "
            "or give data.valid_path."
        )
    resolved = _resolve_max_tokens(resolved, dataset.longest_answer() if ready.metric else None)
    mx.random.seed(config.seed)  # the adapter's A: a function of the seed alone
    adapter = lora.attach(loaded.model, config.lora)
    if ready.start is not None:
        initial.put(loaded.model, ready.start)
    checkpoint_layers(loaded.model, count(profile.grad_checkpoint, adapter.num_layers))
    forward = forward_of(loaded.model)
    resolved, forward = compute.choose(
        resolved, ready.device, forward, loaded, dataset, trial=shared is not None
    )
    try:
        needed = memory_guard.job(resolved, loaded, adapter, forward)
        room, longest = memory_plan.room(resolved, ready.device), int(dataset.train.lengths.max())
        resolved = memory_plan.fitted(resolved, config, needed, longest, room.size)
        if short := memory_plan.shortage(resolved, needed, longest, room):
            logger.warning("%s", short)
    except BaseException:
        if forward.frozen is not None:
            forward.frozen.close()  # another run is to write there
        raise
    shown = _record_choices(public, resolved)
    return Accepted(
        resolved, shown, ready.device, loaded, dataset, ready.metric, adapter, vocabulary, forward,
        shared, ready.start, short is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Model and data of a run, without the model's weights. config: without machine's `auto`."""

    config: Config
    device: str
    located: models.Located
    tokenizer: Deferred[Any]
    dataset: Dataset
    metric: Metric | None
    start: initial.Start | None


def prepare_inputs(config: Config) -> Inputs:
    """Find, check and encode everything but the weights; the cheapest mistakes are told first.

    Raises UserError kinds.
    """
    metric = evaluation.build_judge(config.data)
    start = initial.find(config.lora)
    found = sources.find(config.data)  # a missing file is told before a model is fetched
    device = runtime.select_device(config.device)
    resolved = memory.resolve(config, device)
    if needs_download(resolved.model):
        build.look(found, config.data)  # and so is a faulty row
    cache_dir = Path(config.paths.cache_dir).expanduser()
    located = models.locate(resolved.model, cache_dir)
    tokenizer = deferred_tokenizer(located)
    length = resolved.memory_profile.max_seq_length
    dataset = prepare(config.data, tokenizer, length, config.seed, cache_dir, found=found)
    if metric is not None:
        check_references(metric, sample(dataset.test, config.eval.task_rows))
    return Inputs(resolved, device, located, tokenizer, dataset, metric, start)


def _check_vocabulary(model: nn.Module, dataset: Dataset) -> int | None:
    """A token beyond the embedding would be read from beside it: garbage, or a crash."""
    rows = [
        module.weight.shape[0]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
        and name.rsplit(".", 1)[-1] not in ("wpe", "embed_positions")
    ]
    if not rows:
        return None
    vocabulary = int(max(rows))
    faults = dataset.beyond(vocabulary)
    if faults:
        raise ModelError(
            f"the tokenizer makes tokens that the model does not have: it has {vocabulary}, "
            "counted from 0, and rows go beyond. Model and tokenizer do not belong together.",
            faults[:5],
        )
    return vocabulary


def check_references(metric: Metric, rows: Sequence[Conversation]) -> None:
    """A reference that its own metric cannot judge is found now, not after the training."""
    faults = []
    for row in rows:
        reference = row.messages[-1].content
        try:
            if not metric(reference, reference, row.record.fields):
                faults.append(f"{row.record.where}: its own answer is judged wrong")
        except ValueError as error:
            faults.append(f"{row.record.where}: {error}")
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise DataError(
            f"data.metric={metric.name} cannot judge {len(faults)} of {len(rows)} test rows. For "
            "rows of your own use data=custom, which sets data.metric=none.",
            [*faults[:5], *more],
        )


def _resolve_max_tokens(config: Config, longest: int | None) -> Config:
    """Room for every expected answer and a quarter more: a longer one is wrong anyway."""
    if config.eval.max_tokens != "auto":
        return config
    longest = 64 if longest is None else longest
    return replace(config, eval=replace(config.eval, max_tokens=longest + longest // 4 + 1))


def _record_choices(public: Mapping[str, Any], resolved: Config) -> dict[str, Any]:
    """The public configuration with each `auto` replaced by what was chosen."""
    shown = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in public.items()
    }
    for group in ("memory_profile", "model", "data", "train", "eval"):
        for key, value in asdict(getattr(resolved, group)).items():
            if shown.get(group, {}).get(key) == "auto":
                shown[group][key] = value
    return shown
