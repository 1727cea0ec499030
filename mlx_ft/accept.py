"""Accepting a run: whatever can be wrong with it is found here, before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import evaluation, lora, memory, runtime
from mlx_ft.activations import Store
from mlx_ft.config.schema import Config
from mlx_ft.data import build, sources
from mlx_ft.data.prepare import Dataset, prepare
from mlx_ft.data.rows import Conversation
from mlx_ft.data.sample import sample
from mlx_ft.errors import ConfigError, DataError, ModelError
from mlx_ft.metrics import Metric
from mlx_ft.models import load as models
from mlx_ft.models.checkpointing import checkpoint_layers
from mlx_ft.models.forward import Forward, forward_of, with_frozen
from mlx_ft.models.tokenizer import load_tokenizer, needs_download

FEW_LAYERS = 2  # that cost no more than to remember them


@dataclass(frozen=True)
class Accepted:
    """A run that can begin: its configuration, model, data and adapter fit together."""

    config: Config  # without any `auto` that depends on the machine
    public: dict[str, Any]
    device: str
    loaded: models.Loaded
    dataset: Dataset
    metric: Metric | None
    adapter: lora.Adapter
    vocabulary: int | None  # rows of the model's embedding
    forward: Forward


def accept(config: Config, public: Mapping[str, Any]) -> Accepted:
    """Load and check everything that can be wrong; writes nothing but the model cache.

    Raises UserError kinds.
    """
    mx.reset_peak_memory()  # an earlier run of this process had its own
    ready = prepare_inputs(config)
    resolved, dataset, tokenizer = ready.config, ready.dataset, ready.tokenizer
    profile = resolved.memory_profile
    runtime.set_limits(profile, ready.device)
    loaded = models.load(
        ready.located,
        resolved.model,
        compute_dtype=profile.compute_dtype,
        dequantize=bool(resolved.model.dequantize),
        tokenizer=tokenizer,
    )
    vocabulary = _check_vocabulary(loaded.model, dataset)
    if config.train.early_stopping_patience is not None and not dataset.valid:
        raise DataError(
            "train.early_stopping_patience needs validation rows: set data.valid_fraction above 0 "
            "or give data.valid_path."
        )
    judged = dataset.test if ready.metric else ()
    resolved = _resolve_max_tokens(resolved, judged, tokenizer)
    mx.random.seed(config.seed)  # the adapter's A: a function of the seed alone
    adapter = lora.attach(loaded.model, config.lora)
    if profile.grad_checkpoint:
        checkpoint_layers(loaded.model)
    forward = forward_of(loaded.model)
    resolved = _resolve_compute(resolved, ready.device, forward, len(loaded.model.layers))
    if resolved.train.frozen_cache:
        forward = _remembering(forward, resolved, loaded, ready.device)
    shown = _record_choices(public, resolved)
    return Accepted(
        resolved, shown, ready.device, loaded, dataset, ready.metric, adapter, vocabulary, forward
    )


def _resolve_compute(config: Config, device: str, forward: Forward, layers: int) -> Config:
    """Decide how steps are computed, by what the model allows and where it pays.

    Raises ConfigError for what was asked for and cannot be.
    """
    data = config.data
    packing = data.packing
    if packing == "segments" and not forward.segments:
        raise ConfigError(
            f"data.packing=segments: the attention of {config.model.path} cannot be taken by "
            "segments. Set data.packing=none"
        )
    if packing == "auto":  # on a GPU padded rows are compiled
        packing = "segments" if forward.segments and device == "cpu" else "none"
    below = 0 if config.lora.num_layers == "all" else max(0, layers - int(config.lora.num_layers))
    frozen = config.train.frozen_cache
    if frozen is True and (not below or packing == "none"):
        reason = "every layer is adapted" if not below else "data.packing=none pads its rows"
        raise ConfigError(
            f"train.frozen_cache=true: {reason}. Set it to auto, or lora.num_layers below {layers} "
            "and data.packing=segments"
        )
    if frozen == "auto":
        frozen = packing == "segments" and below >= FEW_LAYERS
    return replace(
        config,
        data=replace(data, packing=packing),
        train=replace(config.train, frozen_cache=frozen),
    )


def _remembering(forward: Forward, config: Config, loaded: models.Loaded, device: str) -> Forward:
    """`forward` with a store for what the layers below the adapter give.

    Named by all that decides their last digits.
    """
    model = loaded.model
    depth = len(model.layers) - int(config.lora.num_layers)
    made_from = [
        models.weights_digest(loaded.located), depth, config.memory_profile.compute_dtype,
        loaded.quantization, asdict(config.model), device, asdict(runtime.prepare()),
        config.threads, os.cpu_count(), *map(metadata.version, ("mlx", "mlx-lm", "mlx-ft")),
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(made_from, default=str).encode()).hexdigest()[:24]
    folder = Path(config.paths.cache_dir).expanduser() / "activations" / name
    store = Store(folder, round(config.train.frozen_cache_gb * runtime.GIB))
    return with_frozen(forward, model, depth, store)


@dataclass(frozen=True)
class Inputs:
    """Model and data of a run, without the model's weights. config: without machine's `auto`."""

    config: Config
    device: str
    located: models.Located
    tokenizer: Any
    dataset: Dataset
    metric: Metric | None


def prepare_inputs(config: Config) -> Inputs:
    """Find, check and encode everything but the weights; the cheapest mistakes are told first.

    Raises UserError kinds.
    """
    metric = evaluation.build_judge(config.data)
    found = sources.find(config.data)  # a missing file is told before a model is fetched
    device = runtime.select_device(config.device)
    resolved = memory.resolve(config, device)
    if needs_download(resolved.model):
        build.look(found, config.data)  # and so is a faulty row
    cache_dir = Path(config.paths.cache_dir).expanduser()
    located = models.locate(resolved.model, cache_dir)
    tokenizer = load_tokenizer(located)
    length = resolved.memory_profile.max_seq_length
    dataset = prepare(config.data, tokenizer, length, config.seed, cache_dir, found=found)
    if metric is not None:
        check_references(metric, sample(dataset.test, config.eval.task_rows))
    return Inputs(resolved, device, located, tokenizer, dataset, metric)


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


def _resolve_max_tokens(config: Config, rows: Sequence[Conversation], tokenizer: Any) -> Config:
    """Room for every expected answer and a quarter more: a longer one is wrong anyway."""
    if config.eval.max_tokens != "auto":
        return config
    answers = [row.messages[-1].content for row in rows if row.messages]
    longest = max((len(tokenizer.encode(text)) for text in answers), default=64)
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
