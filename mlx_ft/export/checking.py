"""Holds what was written against base and adapter as they were trained, before it is published."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ModelError
from mlx_ft.export import tensors
from mlx_ft.export.folder import copy_tokenizer
from mlx_ft.export.measure import Judged, Lost, Rows, judge, lost, rows_of
from mlx_ft.export.source import Source
from mlx_ft.models import gguf
from mlx_ft.models.folder import check_folder
from mlx_ft.models.gguf_header import read_header
from mlx_ft.models.load import Located

FOUR_BITS: Mapping[str, Any] = {"bits": 4, "group_size": 64, "mode": "affine"}


@dataclass(frozen=True)
class Found:
    """What one model has lost. name: of the model; after: its loss."""

    name: str
    after: float
    lost: Lost

    def line(self) -> str:
        """A line of the table that `Checker.head` begins."""
        return (
            f"{self.name:<22}{self.lost.logits:>12.1e}{self.after:>10.4f}{self.lost.loss:>+12.4f}"
        )


class Checker:
    """Base and adapter judged once; then whatever was made of them, read back from its files.

    One model is in memory at a time.
    """

    def __init__(self, source: Source, located: Located) -> None:
        loaded = source.load(located)
        source.install(loaded.tokenizer)
        self.source = source
        self.rows: Rows = rows_of(source, loaded.tokenizer)
        self.before: Judged = judge(loaded.model, self.rows)
        del loaded
        _free()

    def head(self) -> list[str]:
        """What is compared, and the first line of the table."""
        return [
            f"measured on {self.rows.about}",
            f"{'':<22}{'logits':>12}{'loss':>10}{'':>12}",
            f"{'as trained':<22}{'':>12}{self.before.loss:>10.4f}",
        ]

    def folder(self, name: str, folder: Path, quantize: Mapping[str, Any] | None = None) -> Found:
        """A model folder. quantize: rounded to so many bits, as that would be written."""
        located = Located(folder, name, "folder", None, check_folder(folder))
        model = ModelConfig(
            path=str(folder),
            quantize=None if quantize is None else dict(quantize),
            dequantize=self.source.config.model.dequantize or self.source.device == "cpu",
        )
        loaded = self.source.base(located, model)
        after = judge(loaded.model, self.rows)
        del loaded
        _free()
        return Found(name, after.loss, lost(self.before, after))

    def gguf(self, name: str, file: Path, scratch: Path, base: Located) -> Found:
        """A GGUF file by its weights; its tokenizer is the base's. scratch: a folder to be made."""
        config = gguf.config_of(read_header(file))
        if scaling := base.config.get("rope_scaling"):
            config["rope_scaling"] = scaling  # the file has its effect, as a tensor
        loaded = cast(dict[str, mx.array], mx.load(str(file)))
        scratch.mkdir()
        named = {ours: array for name, array in loaded.items() if (ours := gguf.renamed(name))}
        tensors.write(scratch, named)
        (scratch / "config.json").write_text(json.dumps(config), "utf-8")
        copy_tokenizer(base.path, scratch, "")
        return self.folder(name, scratch)


def refuse(found: Found, tolerance: float, advice: str) -> None:
    """Raise ModelError for a model whose loss has risen by more than `tolerance`, or is none."""
    if found.lost.loss <= tolerance:
        return
    raise ModelError(
        f"{found.name}: the loss rises by {found.lost.loss:.4f} nats per token, by more than "
        f"--tolerance {tolerance:g}: much of what was learned would be lost. Nothing is written. "
        f"{advice}"
    )


def _free() -> None:
    gc.collect()
    mx.clear_cache()
