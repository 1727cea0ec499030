"""A folder with nothing but an adapter: what it says of the base model that it was trained on."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_ft.config import conf_dir
from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import AdapterError
from mlx_ft.models.catalog import recipes

logger = logging.getLogger(__name__)

SETTINGS = "adapter_config.json"  # of mlx-lm, and of PEFT
PEFT_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Origin:
    """What an adapter was made from, as far as it says so; None: it does not.

    base: `embedded`, a folder, or a name on the hub. weights: `models.load.weights_digest` of it.
    """

    base: str | None = None
    revision: str | None = None
    quantize: Any = None
    weights: str | None = None
    run_id: str | None = None
    step: int | None = None
    system_prompt: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether this is the folder of an adapter, of mlx-lm's kind or of PEFT's."""
    return (folder / SETTINGS).is_file()


def origin(folder: Path) -> Origin:
    """Read it, of an adapter of ours or of mlx-lm's. Raises AdapterError."""
    path = folder / SETTINGS
    if (folder / PEFT_WEIGHTS).is_file():
        raise AdapterError(f"{folder} is an adapter of PEFT. Take it over first: mlx-ft import")
    try:
        settings = json.loads(path.read_text("utf-8"))
        if not isinstance(settings, dict):
            raise TypeError(f"found {type(settings).__name__}, expected an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    about = settings.get("mlx_ft")
    if not isinstance(about, dict):
        return Origin(_text(settings.get("model")))
    step, base = about.get("step"), _text(about.get("base_model"))
    return Origin(
        None if base is not None and "${" in base else base,  # an environment variable's name
        # Of a package, not a commit, where the base came with one.
        _text(about.get("base_revision")) if base != "embedded" else None,
        about.get("quantize"),
        _text(about.get("base_weights")),
        _text(about.get("run_id")),
        step if isinstance(step, int) else None,
        _text(about.get("system_prompt")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def base_of(folder: Path, given: str | None) -> ModelConfig:
    """The base model of an adapter: the `given` one, or else the one that it names.

    Raises AdapterError when it names none, or one that is not here.
    """
    found = origin(folder)
    if given is not None:
        return named(given, ModelConfig(quantize=found.quantize))
    if found.base is None:
        raise AdapterError(
            f"{folder} does not say which base model it was trained on. Name it: --model NAME, "
            "as a folder, a .gguf file, a recipe, a name on the hub, or embedded"
        )
    local = found.base.startswith((".", "/", "~")) or found.base.endswith(".gguf")
    here = _is_here(found.base)
    if local and not here:
        raise AdapterError(
            f"{folder} was trained on the base model {found.base}, which is not here. Say where "
            "it is: --model FOLDER"
        )
    return ModelConfig(found.base, None if here else found.revision, found.quantize)


def _is_here(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # too long, not permitted, no such user
        return False


def named(given: str, like: ModelConfig) -> ModelConfig:
    """A base model by `--model`: a recipe of conf/model, or whatever `model.path` takes.

    like: how it is to be quantized.
    """
    return replace(like, path=recipes(conf_dir()).get(given, given), revision=None)


def check_base(folder: Path, weights: str, *, insisted: bool) -> None:
    """Whether a base has the weights that the adapter in `folder` was trained on, if it says so.

    insisted: the base was named by the user, who is only told. Raises AdapterError.
    """
    trained_on = origin(folder).weights
    if trained_on in (None, weights):
        return
    fault = f"the adapter in {folder} was trained on other weights than this base model's"
    if insisted:
        logger.warning("%s: what it answers may be worth nothing", fault)
        return
    raise AdapterError(
        f"{fault}, though their names are the same: the model was changed or converted anew since. "
        "Bring the old one back, or insist on a base with --model NAME"
    )
