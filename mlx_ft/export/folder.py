"""A fused model as a folder: weights, config.json, tokenizer, the run's chat template."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_ft import durable
from mlx_ft.export import tensors
from mlx_ft.export.fuse import Fused

logger = logging.getLogger(__name__)

# Data only: a folder may hold code beside them, which is not taken along.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tiktoken.model",
)  # fmt: skip
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"


def write(folder: Path, fused: Fused, base: Path, template: str, ends: list[int]) -> int:
    """Fill `folder`; returns the bytes of the weights. Raises ModelError, OSError.

    base: the folder of the base model, whose tokenizer is taken. template: the chat template of
    the run, as text; empty: the tokenizer's own, which is code. ends: the tokens that end an
    answer, those of the template too.
    """
    size = tensors.write(folder, fused.take())
    config = _ending(fused.config, ends)
    _write_json(folder / "config.json", config)
    generation = base / GENERATION
    try:
        settings = _read_json(generation) if generation.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s cannot be read and is left out: %s", generation, error)
        settings = {}
    # mlx-lm and transformers believe this file before the other one.
    _write_json(folder / GENERATION, _ending(settings, _ends(config)))
    copy_tokenizer(base, folder, template)
    return size


def copy_tokenizer(base: Path, folder: Path, template: str) -> None:
    """The tokenizer's files, with this chat template in place of their own."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if (base / TOKENIZER_CONFIG).is_file():
        config = _read_json(base / TOKENIZER_CONFIG)
        config.pop("auto_map", None)
        if template:
            config.pop("chat_template", None)
        _write_json(folder / TOKENIZER_CONFIG, config)
    if template:
        durable.write(folder / TEMPLATE, template.encode())


def _ending(config: Mapping[str, Any], ends: list[int]) -> dict[str, Any]:
    """The config with the tokens at which generation stops; its own come first."""
    every = list(dict.fromkeys([*_ends(config), *sorted(ends)]))
    if not every:
        return dict(config)
    return {**config, "eos_token_id": every[0] if len(every) == 1 else every}


def _ends(config: Mapping[str, Any]) -> list[int]:
    given = config.get("eos_token_id")
    return list(given) if isinstance(given, list) else [] if given is None else [given]


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    durable.write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
