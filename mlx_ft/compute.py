"""How the steps of a run are computed: by what its model allows, and where it pays."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from mlx_ft import exponentials, runtime, together
from mlx_ft.activations import Store
from mlx_ft.config.schema import Config
from mlx_ft.data.prepare import Dataset
from mlx_ft.errors import ConfigError, StorageError
from mlx_ft.models import segments
from mlx_ft.models.forward import Forward, with_frozen
from mlx_ft.models.load import Loaded, weights_digest

DECIDING = (exponentials, segments)  # code that decides last digits
FEW_LAYERS = 2  # that cost no more than to remember them
# The first epoch computes rows one by one, which later ones have to make good. On 2 cores
# (benchmarks/RESULTS.md) 3 epochs of 109-token rows gain 1.22x; of 48-token rows they take 1.15
# times as long, and a later one gains 1.37x: 6.5 are even. In between nothing is measured.
LONG_ROWS = 90  # tokens on the average
EPOCHS_LONG, EPOCHS_SHORT = 3, 7


def choose(
    config: Config,
    device: str,
    forward: Forward,
    loaded: Loaded,
    dataset: Dataset,
    *,
    trial: bool = False,
) -> tuple[Config, Forward]:
    """`config` without the `auto` of `data.packing` and `train.frozen_cache`, and its forward.

    trial: of a sweep, whose other trials have the same rows. Raises ConfigError for what was asked
    for and cannot be.
    """
    asked, path = config.train.frozen_cache, config.model.path
    packing = _packing(config, device, forward)
    below = _layers_below(config, loaded)
    room = config.train.frozen_cache_gb > 0
    if asked is True and not (below and room and packing == "segments"):
        raise ConfigError(
            f"train.frozen_cache=true: found lora.num_layers={config.lora.num_layers}, "
            f"data.packing={packing}, train.frozen_cache_gb={config.train.frozen_cache_gb:g}; "
            f"expected fewer adapted layers than {len(loaded.model.layers)}, segments, and room. "
            "Or set it to auto"
        )
    possible = packing == "segments" and room
    frozen = asked is True or (
        asked == "auto" and possible and pays(config, below, dataset, trial=trial)
    )
    if frozen:
        forward = _remembering(forward, config, loaded, device, below)
        frozen = forward.frozen is not None
        if asked is True and not frozen:
            raise ConfigError(
                f"train.frozen_cache=true: {path} cannot be entered above its frozen layers. Set "
                "it to auto"
            )
    if config.train.offload_frozen and not frozen:
        raise ConfigError(
            "train.offload_frozen=true: no frozen layers are remembered here: found "
            f"data.packing={packing}, {below} layers below the adapter. Set "
            "train.offload_frozen=false"
        )
    data = replace(config.data, packing=packing)
    return replace(config, data=data, train=replace(config.train, frozen_cache=frozen)), forward


def pays(config: Config, below: int, dataset: Dataset, *, trial: bool) -> bool:
    """Whether to remember what so many layers below the adapter give, as far as was measured.

    config: resolved; `train.offload_frozen` cannot do without. trial: as for `choose`.
    """
    if config.train.offload_frozen:
        return below > 0
    if trial or below < FEW_LAYERS:
        return below >= FEW_LAYERS
    enough = EPOCHS_LONG if dataset.train.lengths.mean() >= LONG_ROWS else EPOCHS_SHORT
    return _epochs(config, dataset) >= enough


def _epochs(config: Config, dataset: Dataset) -> float:
    train, profile = config.train, config.memory_profile
    if train.max_steps is None:
        return train.epochs
    rows = profile.micro_batch_size * profile.grad_accumulation_steps
    return float(train.max_steps * rows / max(1.0, dataset.weights.sum()))


def _packing(config: Config, device: str, forward: Forward) -> str:
    data, train = config.data, config.train
    if data.packing == "auto":  # on a GPU padded rows are compiled
        asked = data.share_prefixes is True, train.frozen_cache is True, train.offload_frozen
        wanted = device == "cpu" or any(asked)
        packing = "segments" if forward.segments and wanted else "none"
    else:
        packing = data.packing
    told = {
        "data.packing=segments": data.packing == "segments",
        "data.share_prefixes=true": data.share_prefixes is True,
    }
    for words, wanted in told.items():
        if wanted and not forward.segments:
            raise ConfigError(
                f"{words}: the attention of {config.model.path} cannot be taken by segments. Set "
                f"{words.partition('=')[0]}=auto"
            )
    return packing


def _layers_below(config: Config, loaded: Loaded) -> int:
    adapted = config.lora.num_layers
    return 0 if adapted == "all" else max(0, len(loaded.model.layers) - int(adapted))


def _remembering(
    forward: Forward, config: Config, loaded: Loaded, device: str, depth: int
) -> Forward:
    """`forward` with a store for what the layers below the adapter give.

    Named by all that decides their last digits. The digest of the weights reads only parts of
    them, so that their time stamps belong to it.
    """
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(loaded.located.path.glob("*.safetensors"))
    ]
    made_from = [
        weights_digest(loaded.located), files, depth, config.memory_profile.compute_dtype,
        loaded.quantization, asdict(config.model), device, asdict(runtime.prepare()),
        config.threads, os.environ.get("OPENBLAS_NUM_THREADS"), os.cpu_count(),
        platform.machine(), platform.processor(),
        *map(metadata.version, ("mlx", "mlx-lm", "mlx-ft")),
        exponentials.native(),
        *(hashlib.sha256(text.encode()).hexdigest()
          for text in (*map(inspect.getsource, DECIDING), *runtime.sources())),
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(made_from, default=str).encode()).hexdigest()[:24]
    cache = Path(config.paths.cache_dir).expanduser()
    folder, limit = cache / "activations" / name, round(config.train.frozen_cache_gb * runtime.GIB)
    seat = together.seat()
    store = Store(folder, limit) if seat is None else seat.store(folder, limit)
    offload = cache / "offloaded" if config.train.offload_frozen else None
    try:
        return with_frozen(forward, loaded.model, depth, store, offload)
    except OSError as error:
        raise StorageError(
            f"train.offload_frozen=true: {error}. Make room in paths.cache_dir, or set it to false"
        ) from error
