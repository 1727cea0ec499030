"""`mlx-ft import`: a PEFT adapter as a folder of ours, to train further, to use or to serve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_ft import durable, lora
from mlx_ft.config import quoted
from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import AdapterError, ModelError
from mlx_ft.export import peft, place
from mlx_ft.models import architecture
from mlx_ft.models.load import EMBEDDED_HUB, Located, locate
from mlx_ft.models.tokenizer import needs_download
from mlx_ft.saved import TEMPLATE


def take(
    folder: Path, out: Path, model: str | None, cache_dir: Path, say: Callable[[str], None] = print
) -> None:
    """Check the adapter against its base model, whose weights are not read, and write it.

    model: as for `model.path`; None: the one that the adapter names. Raises AdapterError with all
    that cannot be taken over, ModelError.
    """
    place.check_free(out)
    first, arrays, settings = peft.read(folder)
    named = settings.get("base_model_name_or_path")
    path = model or named
    if not isinstance(path, str) or not path:
        raise AdapterError(f"{folder} names no base model. Name it: --model MODEL")
    located = _located(path, cache_dir)
    bare = architecture.empty(
        located.config, ModelConfig(path=path, dequantize=False), compute_dtype="float32"
    )
    adapter = peft.fit(first, arrays, len(bare.layers))
    ordered = peft.for_base(arrays, located.config)
    weights = {name: mx.array(array) for name, array in ordered.items()}
    lora.put(bare, adapter, weights, f"the adapter in {folder}")
    about = {
        "base_model": path,
        "base_name": located.name,
        "base_revision": located.revision,
        "made_with": "PEFT",
    }
    template = folder / TEMPLATE
    files = {TEMPLATE: template.read_text("utf-8")} if template.is_file() else {}
    with place.appearing(out) as made:
        for name, content in lora.saved_files(weights, adapter, about, files).items():
            durable.write(made / name, content)
    if named and named not in (path, located.name, _hub_name(located)):
        say(f"made for {named}, taken for {located.name}: the shapes fit, the rest is your word")
    say(f"adapter     rank {adapter.rank} on the last {adapter.num_layers} layers")
    say(f"written to {out}")
    say(f"to train it further:\n  mlx-ft train {shlex.join(train_settings(out, path, adapter))}")


def train_settings(out: Path, model: str, adapter: lora.Adapter) -> list[str]:
    """The settings with which a training can begin from the adapter in `out`."""
    return [
        _setting("model.path", model),
        _setting("lora.init_from", str(out)),
        f"lora.rank={adapter.rank}",
        f"lora.alpha={adapter.scale * adapter.rank:g}",
        "lora.scaling=standard",
        f"lora.num_layers={adapter.num_layers}",
        f"lora.target_modules=[{','.join(adapter.keys)}]",
    ]


def _setting(key: str, text: str) -> str:
    """As it is typed: what has other characters is quoted for Hydra."""
    plain = re.fullmatch(r"[\w./~-]+", text) is not None
    return f"{key}={text if plain else quoted(text)}"


def _located(path: str, cache_dir: Path) -> Located:
    wanted = ModelConfig(path=path)
    if needs_download(wanted):
        raise ModelError(
            f"the adapter's base model {path} is not on this machine, and without it nothing can "
            f"be checked. Bring it here, mlx-ft models download {path}, or name a copy: "
            "--model MODEL"
        )
    located = locate(wanted, cache_dir)
    model_type = located.config.get("model_type")
    if model_type not in peft.SAME_NAMES:
        raise AdapterError(
            f"an adapter of a {model_type} model cannot be taken over: transformers calls its "
            f"projections otherwise. Those of {', '.join(sorted(peft.SAME_NAMES))} can"
        )
    return located


def _hub_name(located: Located) -> str:
    return EMBEDDED_HUB if located.source == "embedded" else located.name
