"""Which run is meant when one is to go on; knows files, not models."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_ft.config import quoted
from mlx_ft.config.schema import Config
from mlx_ft.errors import ConfigError
from mlx_ft.runfolder import JOURNAL, ORIGIN, checkpoint_folders, held_files, read_json, step_of
from mlx_ft.tracking.journal import run_id_of


@dataclass(frozen=True)
class Target:
    """The run that `train.resume` names. checkpoint: None for the newest."""

    folder: Path
    checkpoint: Path | None = None


def target(config: Config, run_dir: Path | None) -> Target | None:
    """The run to go on with, or None for a new one.

    run_dir: `hydra.run.dir`, where given. Raises ConfigError when the two do not go together,
    or there is no such run.
    """
    wanted = config.train.resume
    if wanted == "never":
        return None
    if wanted == "auto":
        if run_dir is None:
            raise ConfigError(
                "train.resume=auto goes on with what is in hydra.run.dir; without that every run "
                "gets a new folder. Add hydra.run.dir=FOLDER, or name the run: train.resume=FOLDER"
            )
        run_dir = run_dir.expanduser()
        return Target(run_dir) if held_files(run_dir) else None
    found = named(wanted, Path(config.paths.output_dir).expanduser())
    if run_dir is not None and run_dir.expanduser().resolve() != found.folder.resolve():
        raise ConfigError(
            f"train.resume={wanted} goes on in {found.folder}, but hydra.run.dir is {run_dir}. "
            "Leave out hydra.run.dir"
        )
    return found


def named(wanted: str, output_dir: Path) -> Target:
    """The run that a folder, a checkpoint in one, or an id names. Raises ConfigError."""
    path = Path(wanted).expanduser()
    try:
        if held_files(path):
            return Target(path)
        if step_of(path) >= 0 and held_files(path.parent.parent):
            if path.is_dir():
                return Target(path.parent.parent, path)
            have = ", ".join(p.name for p in checkpoint_folders(path.parent)) or "none"
            raise ConfigError(f"train.resume: there is no {path}. Checkpoints there: {have}")
    except OSError:
        pass  # too long, not permitted: no folder
    for file in output_dir.glob("**/summary.json"):
        if wanted == read_json(file).get("run_id") and held_files(file.parent):
            return Target(file.parent)
    if re.fullmatch(r"[0-9a-f]{32}", wanted):  # a killed run has no summary
        for file in output_dir.glob(f"**/{JOURNAL}"):
            if wanted == run_id_of(file) and held_files(file.parent):
                return Target(file.parent)
    raise ConfigError(
        f"train.resume: {wanted!r} is neither auto, a run folder (with config.yaml), a checkpoint "
        f"in one, nor the id of a run in {output_dir.absolute()}"
    )


def newest(output_dir: Path) -> Target:
    """The run folder that was begun last. Raises ConfigError when there is none."""
    found = [*output_dir.glob("runs/*/config.yaml"), *output_dir.glob("sweeps/**/config.yaml")]
    if not found:
        raise ConfigError(f"There is no run in {output_dir.absolute()}. Name a run folder")
    return Target(max(found, key=lambda path: path.stat().st_mtime).parent)


def command_line(found: Target) -> list[str]:
    """The arguments of `train.py` that go on with a run, with its own configuration."""
    place = (found.checkpoint or found.folder).absolute()
    if not (found.folder / "config.yaml").is_file():
        raise ConfigError(
            f"{found.folder} has no config.yaml, with which it could go on. Put the run's own "
            "there, or go on with the whole command line it had, train.resume=auto and "
            "hydra.run.dir=FOLDER"
        )
    folder = str(found.folder.absolute())
    return ["--config-dir", folder, "--config-name", "config", f"train.resume={quoted(str(place))}"]


def go_where_it_began(found: Target) -> str | None:
    """Make the folder current from which the run was started: its relative paths count from there.

    Returns what to say of it; None when it is the current one.
    """
    there = read_json(found.folder / ORIGIN).get("working_dir")
    if not isinstance(there, str) or Path(there) == Path.cwd():
        return None
    try:
        os.chdir(there)
    except OSError as error:
        return f"{there}, where the run was started, cannot be entered: {error.strerror}"
    return f"in {there}, where the run was started"
