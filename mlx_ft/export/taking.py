"""`mlx-ft import`: a PEFT adapter as a folder of ours, to train further, to use or to serve."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_ft import durable, lora, lora_files
from mlx_ft.adapter_template import read_template
from mlx_ft.config import quoted
from mlx_ft.config.schema import ModelConfig
from mlx_ft.data.template import is_jinja
from mlx_ft.errors import AdapterError, ModelError
from mlx_ft.export import peft, place
from mlx_ft.models import architecture, hub
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
    revision = _revision(settings, path) if path == named else None
    located = _located(path, revision, cache_dir)
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
    template = _template(folder)
    files = {} if template is None else {TEMPLATE: template}
    added = sorted(_added_tokens(folder) - _added_tokens(located.path))
    with place.appearing(out) as made:
        for name, content in lora_files.saved_files(weights, adapter, about, files).items():
            durable.write(made / name, content)
    if named and named not in (path, located.name, _hub_name(located)):
        say(f"made for {named}, taken for {located.name}: the shapes fit, the rest is your word")
    if added:
        say(f"ignored     its added tokens, which the base does not have: {', '.join(added)}")
    say(f"adapter     rank {adapter.rank} on the last {adapter.num_layers} layers")
    say(f"written to {out}")
    words = train_settings(out, path, adapter, revision)
    say(f"to train it further:\n  mlx-ft train {shlex.join(words)}")


def train_settings(
    out: Path, model: str, adapter: lora_files.Adapter, revision: str | None = None
) -> list[str]:
    """The settings with which a training can begin from the adapter in `out`."""
    return [
        _setting("model.path", model),
        *([] if revision is None else [_setting("model.revision", revision)]),
        _setting("lora.init_from", str(out)),
        f"lora.rank={adapter.rank}",
        f"lora.alpha={adapter.scale * adapter.rank}",
        "lora.scaling=standard",
        f"lora.num_layers={adapter.num_layers}",
        f"lora.target_modules=[{','.join(adapter.keys)}]",
    ]


def _setting(key: str, text: str) -> str:
    """As it is typed: what has other characters is quoted for Hydra."""
    plain = re.fullmatch(r"[\w./~-]+", text) is not None
    return f"{key}={text if plain else quoted(text)}"


def _revision(settings: dict[str, Any], path: str) -> str | None:
    """PEFT's revision of the base; only a repository on the hub has any."""
    found = settings.get("revision")
    if not isinstance(found, str) or not found or path == "embedded":
        return None
    return found if hub.classify(path)[0] == "hub" else None


def _template(folder: Path) -> str | None:
    """The adapter's chat template: of its own file, or of its tokenizer's settings, where it may
    be one of several by name. Raises AdapterError.
    """
    text = read_template(folder)
    if text is None:
        found = _settings(folder).get("chat_template")
        if isinstance(found, list):
            named = [each for each in found if isinstance(each, dict)]
            found = next((e.get("template") for e in named if e.get("name") == "default"), None)
        text = found if isinstance(found, str) else None
    if text is not None and not is_jinja(text):
        raise AdapterError(
            f"{folder}: its chat template is no Jinja: neither {{{{ nor {{% is in it"
        )
    return text


def _added_tokens(folder: Path) -> set[str]:
    """The tokens that a tokenizer's settings add to its vocabulary."""
    decoder = _settings(folder).get("added_tokens_decoder")
    found = decoder.values() if isinstance(decoder, dict) else ()
    listed = _json(folder / "tokenizer.json").get("added_tokens")
    every = [*found, *(listed if isinstance(listed, list) else ())]
    tokens = {
        str(each["content"]) for each in every if isinstance(each, dict) and "content" in each
    }
    return tokens | _json(folder / "added_tokens.json").keys()


def _settings(folder: Path) -> dict[str, Any]:
    return _json(folder / "tokenizer_config.json")


def _json(path: Path) -> dict[str, Any]:
    """Raises AdapterError for a file that is there and holds no object."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if isinstance(content, dict):
            return content
        reason = f"found {type(content).__name__}, expected an object"
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise AdapterError(f"{path} cannot be read: {reason}")


def _located(path: str, revision: str | None, cache_dir: Path) -> Located:
    wanted = ModelConfig(path=path, revision=revision)
    if needs_download(wanted):
        how = f"mlx-ft models download {path}"
        if revision is not None:
            how = f"hf download {path} --revision {revision}"
        raise ModelError(
            f"the adapter's base model {path} is not on this machine, and without it nothing can "
            f"be checked. Bring it here, {how}, or name a copy: --model MODEL"
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
