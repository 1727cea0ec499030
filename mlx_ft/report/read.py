"""A run's folder -> a row: its settings, figures, curves and answers, as far as they are there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from mlx_ft.plots import series
from mlx_ft.runfolder import METRICS, ORIGIN

CONFIG, SUMMARY, SAMPLES = "config.yaml", "summary.json", "samples.jsonl"
TRIAL = "trial.json"  # what a sweep notes of a trial, also of one that came to no run
MOST = 1e300  # beyond it a number is none: an integer of JSON may be too large for a float
CURVES = ("val/loss", "train/loss", "task/accuracy")

Series: TypeAlias = Sequence[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class Row:
    """One run, or one trial of a sweep.

    status: FINISHED, FAILED, KILLED, UNFINISHED, NOT RUN, or what a sweep says. settings: by
    dotted keys. figures: the numbers of `summary.json` that are finite. curves: metric -> (step,
    value). origin: versions, data and weights. config: `config.yaml` as it is. folder: None when
    only MLflow knows the run.
    """

    status: str
    settings: Mapping[str, Any]
    figures: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Series] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    error: str | None = None
    run_id: str | None = None
    folder: Path | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None

    @property
    def seed(self) -> str:
        """What the run was seeded with, as text: it only tells runs apart."""
        return str(self.settings.get("seed", ""))


def row_of(folder: Path, faults: list[str]) -> Row:
    """What a run folder says. What is there and cannot be read is left out and told in `faults`."""
    config, summary = _text(folder / CONFIG, faults), _object(folder / SUMMARY, faults)
    trial, origin = _object(folder / TRIAL, faults), _object(folder / ORIGIN, faults)
    status = trial.get("status") or summary.get("status")
    if not isinstance(status, str):
        status = "NOT RUN" if config is None else "UNFINISHED"
    if status == "FINISHED" and summary.get("pruned"):
        status = "PRUNED"  # stopped by its sweep, on purpose
    error = trial.get("error") or summary.get("reason")
    fingerprint = origin.get("fingerprint")
    return Row(
        status=status,
        settings=written(flat(_settings(folder / CONFIG, config, faults))),
        figures=numbers(summary),
        curves=curves_of(_lines(folder / METRICS, faults)),
        samples=_lines(folder / SAMPLES, faults),
        error=str(error) if error and status != "FINISHED" else None,
        run_id=str(summary["run_id"]) if summary.get("run_id") else None,
        folder=folder,
        origin=fingerprint if isinstance(fingerprint, Mapping) else {},
        config=config,
    )


def run_folders(folder: Path) -> list[Path]:
    """Folders of runs in it, by when they were begun; a damaged run is one, too."""
    begun: dict[Path, int] = {}
    for name in (SUMMARY, CONFIG):  # the latter is written first, and wins
        for path in folder.rglob(name):
            if "adapter" not in path.parts:
                begun[path.parent] = path.stat().st_mtime_ns
    return sorted(begun, key=lambda path: (begun[path], path))


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """`{"lora": {"rank": 8}}` -> `{"lora.rank": 8}`."""
    found: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, Mapping) else ():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def written(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are written on a command line: one that is null is `null`, and is given."""
    return {key: "null" if value is None else value for key, value in settings.items()}


def told_apart(value: Any) -> str:
    """What tells one value of a setting from another: 64 and 64.0 are the same."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return repr(float(value) if whole else value)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that are finite numbers."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST
    }


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The curves that are drawn, each by step."""
    whole = [row for row in rows if isinstance(row.get("step"), int) and abs(row["step"]) < MOST]
    plain = [{**numbers(row), "step": row["step"]} for row in whole]
    return {key: found for key in CURVES if (found := series(plain, key))}


def best_config(config: str) -> str:
    """A run's `config.yaml` under its new name, which the first line tells how to use."""
    return re.sub(r"\A(# Run again: .*--config-name) config\n", r"\1 best\n", config)


def _text(path: Path, faults: list[str]) -> str | None:
    try:
        return path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        faults.append(f"{path} cannot be read: {error}")
        return None


def _object(path: Path, faults: list[str]) -> dict[str, Any]:
    text = _text(path, faults)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    faults.append(f"{path} is damaged: it is left out")
    return {}


def _settings(path: Path, text: str | None, faults: list[str]) -> Any:
    try:
        content = yaml.safe_load(text or "") or {}
    except (ValueError, RecursionError, yaml.YAMLError):
        content = None
    if isinstance(content, Mapping):
        return content
    faults.append(f"{path} is damaged: its settings are left out")
    return {}


def _lines(path: Path, faults: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; what a killed process left of its last line, too, counts
    as damaged.
    """
    found, damaged = [], 0
    for line in (_text(path, faults) or "").split("\n"):  # answers may have other line ends
        if not line:
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            found.append(content)
        else:
            damaged += 1
    if damaged:
        lines = "1 damaged line is" if damaged == 1 else f"{damaged} damaged lines are"
        faults.append(f"{path}: {lines} left out")
    return found
