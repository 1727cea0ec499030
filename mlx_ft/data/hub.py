"""Datasets of the Hugging Face hub, streamed through the `datasets` library (an extra)."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from mlx_ft.data.read.stats import ReadStats
from mlx_ft.data.read.values import row_fields
from mlx_ft.data.rows import BadRow, Record, RowError

logger = logging.getLogger("mlx_ft.data.hub")

PREFIX = "hub:"
NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
SPLIT_PATH = re.compile(rf"{PREFIX}({NAME.pattern})(?:@([^:/]+))?(?::([^/]+))?/([^/]+)")
MISSING = 'reading it needs the datasets library: pip install "mlx-ft[hub]"'
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


class HubError(Exception):
    """Why a dataset of the hub cannot be had: a clause for a sentence."""


def split_paths(name: str, subset: str | None, revision: str | None) -> dict[str, Path]:
    """The splits that a dataset has, each with the path that stands for it.

    `hub:org/name/train`; with a revision or a subset `hub:org/name@revision:subset/train`. Raises
    HubError, and touches the network.
    """
    if not NAME.fullmatch(name):
        raise HubError("expected hub:ORG/NAME")
    base = PREFIX + name + (f"@{quote(revision, '')}" if revision else "")
    base += f":{quote(subset, '')}" if subset else ""
    return {split: Path(f"{base}/{split}") for split in _load(name, subset, revision)}


def is_hub(path: Path) -> bool:
    """Whether a path stands for a split of a hub dataset."""
    return str(path).startswith(PREFIX)


def read_hub(path: Path, stats: ReadStats) -> Iterator[Record | BadRow]:
    """The rows of a split, by number. What is wrong with a row, or ends the stream, is a BadRow."""
    stats.kind = "a hub dataset"
    number = 0
    try:
        name, subset, revision, split = _parsed(path)
        for number, row in enumerate(_load(name, subset, revision)[split], start=1):
            yield _row(row, path, number)
    except HubError as error:
        yield BadRow(path, number + 1, "file_unreadable", f"it cannot be read: {error}", "")
    except Exception as error:  # the library passes on whatever its many layers raise
        sentence = f"reading ended at row {number + 1}: {_reason(error)}; try again"
        yield BadRow(path, number + 1, "file_unreadable", sentence, "")


def identity(path: Path) -> str:
    """What tells one state of a split from another: the commit on the hub where it can be asked."""
    try:
        from huggingface_hub import HfApi

        name, _, revision, _ = _parsed(path)
        return f"{path}@{HfApi().dataset_info(name, revision=revision, timeout=10).sha}"
    except Exception as error:
        logger.warning("%s: its commit is not known (%s).", path, _reason(error))
        return str(path)


def _parsed(path: Path) -> tuple[str, str | None, str | None, str]:
    """Name, subset, revision and split of a path that `split_paths` gave."""
    found = SPLIT_PATH.fullmatch(str(path))
    if found is None:
        raise HubError("expected hub:ORG/NAME/SPLIT")
    name, revision, subset, split = found.groups()
    return name, subset and unquote(subset), revision and unquote(revision), split


def _load(name: str, subset: str | None, revision: str | None) -> Any:
    """The dataset's splits; streamed, or when offline from the library's own cache."""
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise HubError(MISSING) from error
    offline = next((key for key in OFFLINE if os.environ.get(key, "0") not in ("", "0")), None)
    try:
        return datasets.load_dataset(name, subset, revision=revision, streaming=offline is None)
    except Exception as error:
        reason = _reason(error)
        if offline:
            raise HubError(f"{offline} is set and it is not in the cache ({reason})") from error
        hint = "check the name, data.subset, data.revision, the network and `hf auth login`"
        raise HubError(f"{reason}; {hint}") from error


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _row(row: Any, path: Path, number: int) -> Record | BadRow:
    try:
        return Record(row_fields(row), path, number)
    except RowError as error:
        [fault] = error.found
        raw = json.dumps(row, default=str)
        return BadRow(path, number, fault.code, fault.sentence, raw)
