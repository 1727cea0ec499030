"""A finished run, found again by its folder or its id, and its model with the adapter on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlx_ft.config.compose import config_from_dict
from mlx_ft.config.schema import Config
from mlx_ft.errors import AdapterError


@dataclass(frozen=True)
class SavedRun:
    """A run folder with its configuration and adapter."""

    folder: Path
    config: Config
    summary: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder of the final adapter."""
        return self.folder / "adapter"


def find_run(reference: str | Path | None = None, output_dir: Path = Path("outputs")) -> SavedRun:
    """The run that `reference` names: a folder, a tracked run's id, or None for the newest.

    Raises AdapterError when there is no such run, or it has no adapter.
    """
    folder = _newest(output_dir) if reference is None else _folder(str(reference), output_dir)
    if not (folder / "adapter").is_dir():
        raise AdapterError(
            f"{folder} has no adapter folder: the run ended before its first step. "
            "Name another run with --run"
        )
    return open_run(folder)


def open_run(folder: Path) -> SavedRun:
    """Read `config.yaml` and `summary.json` of a run folder."""
    config = config_from_dict(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))
    summary_path = folder / "summary.json"
    summary = json.loads(summary_path.read_text("utf-8")) if summary_path.exists() else {}
    return SavedRun(folder, config, summary)


def _newest(output_dir: Path) -> Path:
    runs = sorted(
        (path.parent for path in output_dir.glob("runs/*/adapter")), key=lambda p: p.stat().st_mtime
    )
    if not runs:
        raise AdapterError(
            f"no run with an adapter in {output_dir.absolute() / 'runs'}. "
            "Train one with `mlx-ft train`, or name a run folder with --run"
        )
    return runs[-1]


def _folder(reference: str, output_dir: Path) -> Path:
    path = Path(reference).expanduser()
    if (path / "config.yaml").is_file():
        return path
    if path.is_dir() and path.name == "adapter" and (path.parent / "config.yaml").is_file():
        return path.parent
    for summary in output_dir.glob("**/summary.json"):
        try:
            if json.loads(summary.read_text("utf-8")).get("run_id") == reference:
                return summary.parent
        except (OSError, ValueError):
            continue
    raise AdapterError(
        f"--run: {reference!r} is neither a run folder (with config.yaml) nor the id of a run in "
        f"{output_dir.absolute()}"
    )
