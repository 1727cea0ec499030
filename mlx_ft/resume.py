"""Going on with a run: which one is meant, what it has, and whether it is still the same run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_ft import checkpoint, optim
from mlx_ft.accept import Accepted
from mlx_ft.checkpoint import Checkpoint
from mlx_ft.config.schema import OptimizerConfig, TrainConfig
from mlx_ft.errors import CheckpointError
from mlx_ft.models.load import weights_digest
from mlx_ft.runfolder import ORIGIN, checkpoint_folders, read_json, step_of
from mlx_ft.state import progress_of
from mlx_ft.target import Target
from mlx_ft.trainer import Plan

logger = logging.getLogger(__name__)

# Settings that leave the training as it is, or say only how long it goes on.
FREE_SECTIONS = ("checkpoint", "eval", "tracking", "paths", "sweep")
FREE_KEYS = frozenset({
    "log_level", "threads", "device",  # the device in use is compared instead
    "model.path", "model.revision", "lora.init_from",  # the weights are
    "data.path", "data.valid_path", "data.test_path", "data.revision", "data.subset",
    "data.database", "data.metric", "data.cache", "data.max_errors",  # the files are
    "train.max_steps", "train.epochs", "train.resume", "train.resume_allow", "train.log_every",
    "train.skip_patience", "train.early_stopping_patience", "train.early_stopping_min_delta",
    "memory_profile.name", "memory_profile.cache_limit_gb", "memory_profile.wired_limit_gb",
    "memory_profile.memory_limit_gb", "memory_profile.quantize", "train.frozen_cache_gb",
    "train.offload_frozen",
})  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from. saved: None when it had not come to its first checkpoint.

    summary: the one of its last end, empty when it was killed without a word. changes: accepted
    differences. damaged: checkpoints newer than `saved`, with their faults. newer: whole ones,
    when an older one was asked for.
    """

    saved: Checkpoint | None
    summary: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    damaged: Mapping[Path, list[str]] = field(default_factory=dict)
    newer: tuple[Path, ...] = ()


def read(found: Target, now: Mapping[str, Any], allow: Any) -> Resumed:
    """What the run has; changes nothing. The caller holds the run's lock.

    now: the fingerprint of the run that is to go on. allow: `train.resume_allow`. Raises
    CheckpointError when no checkpoint is whole, or the run is not the same.
    """
    parent = found.folder / "checkpoints"
    if parent.exists() and not parent.is_dir():
        raise CheckpointError(f"{parent} is not a folder. Nothing was changed")
    damaged: dict[Path, list[str]] = {}
    newer: tuple[Path, ...] = ()
    if found.checkpoint is None:
        saved, damaged = checkpoint.newest(parent)
        if saved is None and damaged:
            lines = [f"{folder.name}: {'; '.join(faults)}" for folder, faults in damaged.items()]
            raise CheckpointError(
                f"{found.folder}: no checkpoint of this run is whole. Nothing was changed. Begin "
                "again in another folder",
                lines,
            )
    else:
        saved = checkpoint.load(found.checkpoint)
        newer = tuple(p for p in checkpoint_folders(parent) if step_of(p) > saved.step)
    accepted = read_json(found.folder / ORIGIN).get("fingerprint", {})
    before = accepted if saved is None else saved.state["fingerprint"]
    if not (_is_fingerprint(before) and _is_fingerprint(accepted)):
        raise CheckpointError(f"{found.folder}: what the run was made from is not told as expected")
    changed = differences(before, now)
    if accepted and not differences(accepted, now):  # an earlier resume was allowed them
        changes = tuple(changed.values())
    else:
        changes = _accepted(changed, allow, found.folder)
    summary = read_json(found.folder / "summary.json")
    return Resumed(saved, summary, changes, damaged, newer)


def _is_fingerprint(content: Any) -> bool:
    sections = ("settings", "model", "data", "versions")
    return isinstance(content, dict) and all(isinstance(content.get(s, {}), dict) for s in sections)


def _accepted(found: Mapping[str, str], allow: Any, folder: Path) -> tuple[str, ...]:
    names = [allow] if isinstance(allow, str) else list(allow or ())
    wrong = {
        name: line
        for name, line in found.items()
        if "all" not in names and not any(name == n or name.startswith(f"{n}.") for n in names)
    }
    if wrong:
        raise CheckpointError(
            f"{folder} is another run: with these differences it would not be the same one. Give "
            "them as they were (`mlx-ft resume` does), begin in a new folder, or accept them with "
            f"train.resume_allow=[{','.join(wrong)}]",
            list(wrong.values()),
        )
    return tuple(found.values())


def fingerprint(accepted: Accepted) -> dict[str, Any]:
    """What makes a run this run: settings, weights, data, device; and the versions in use."""
    settings: dict[str, Any] = {}
    for section, values in asdict(accepted.config).items():
        if section in FREE_SECTIONS:
            continue
        leaves = values if isinstance(values, Mapping) else {"": values}
        for leaf, value in leaves.items():
            name = f"{section}.{leaf}" if leaf else section
            if name not in FREE_KEYS:
                settings[name] = value
    began_with = {} if accepted.start is None else {"adapter": accepted.start.digest}
    if accepted.config.train.on_spike == "rewind":  # to a checkpoint that must be there
        settings["checkpoint.every"] = accepted.config.checkpoint.every
    return {
        "settings": settings,
        "model": {"weights": weights_digest(accepted.loaded.located), **began_with},
        "data": {"digest": accepted.dataset.digest, "rows": len(accepted.dataset.train)},
        "device": accepted.device,
        "versions": {name: metadata.version(name) for name in ("mlx", "mlx-lm", "mlx-ft")},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What would change the run: `optimizer.learning_rate` -> a line with both values.

    An empty `before` differs in nothing: nothing is known of it.
    """
    old, new = _flat(before), _flat(now)
    for name in sorted(n for n in old.keys() & new.keys() if n.startswith("versions.")):
        if old[name] != new[name]:
            package = name.removeprefix("versions.")
            logger.warning(
                "%s is %s now and was %s when the checkpoint was written: the last digits of what "
                "follows may differ from a run that was never stopped",
                package,
                new[name],
                old[name],
            )
    return {
        name: f"{name}: was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old and not name.startswith("versions.") and old.get(name) != new.get(name)
    }


def _flat(print_: Mapping[str, Any]) -> dict[str, Any]:
    """One level: settings by their own names, the rest as `model.weights`; JSON's types."""
    flat = dict(print_.get("settings", {}))
    for section in ("model", "data", "versions"):
        flat |= {f"{section}.{leaf}": value for leaf, value in print_.get(section, {}).items()}
    if "device" in print_:
        flat["device"] = print_["device"]
    return dict(json.loads(json.dumps(flat)))


def is_finished(resumed: Resumed, plan: Plan, patience: int | None) -> bool:
    """Whether the run came to its end, and neither plan nor patience now asks for more."""
    saved = resumed.saved
    if saved is None or resumed.summary.get("status") != "FINISHED":
        return False
    before = int(saved.state["plan_steps"])
    waited = progress_of(saved).evaluations_without_gain
    if saved.step < before:  # it was stopped early
        return patience is not None and waited >= patience
    return plan.steps <= before


def check_done(saved: Checkpoint, config: TrainConfig, batches_per_epoch: int) -> None:
    """Refuse to go on to where the checkpoint has been already. Raises CheckpointError."""
    epochs = progress_of(saved).micro_step / batches_per_epoch
    if config.max_steps is not None:
        short = config.max_steps < saved.step
        done, asked = f"{saved.step} steps", f"train.max_steps={config.max_steps}"
    else:
        short = math.ceil(config.epochs * batches_per_epoch) < epochs * batches_per_epoch
        done, asked = f"{epochs:.2f} epochs", f"train.epochs={config.epochs:g}"
    if short:
        raise CheckpointError(
            f"{saved.folder}: {done} are done, but {asked} is asked for. Give at least as many, "
            "or resume from an earlier checkpoint: train.resume=RUN_FOLDER/checkpoints/step-N"
        )


def check_length(saved: Checkpoint, plan: Plan, config: OptimizerConfig) -> None:
    """Say what another length of the run does to its schedule."""
    before = int(saved.state["plan_steps"])
    if plan.steps == before:
        return
    rate = optim.learning_rate(config, saved.step, plan.steps)
    planned = optim.learning_rate(_optimizer_of(saved) or config, saved.step, before)
    instead = f" instead of {planned:.3g}" if f"{planned:.3g}" != f"{rate:.3g}" else ""
    logger.warning(
        "%d steps instead of %d: the %s schedule now ends at step %d. Step %d is taken with a "
        "learning rate of %.3g%s",
        plan.steps,
        before,
        config.schedule,
        plan.steps,
        saved.step + 1,
        rate,
        instead,
    )


def _optimizer_of(saved: Checkpoint) -> OptimizerConfig | None:
    """The optimizer that the run had when this was saved; None when it cannot be told."""
    settings = saved.state["fingerprint"].get("settings", {})
    given = {
        name.removeprefix("optimizer."): value
        for name, value in settings.items()
        if name.startswith("optimizer.")
    }
    try:
        return OptimizerConfig(**given) if given else None
    except TypeError:  # of another version
        return None
