"""The faults of a whole configuration: each key by itself, then the rules between keys."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_ft.config.given import path_fault
from mlx_ft.config.keys import convert, keys
from mlx_ft.config.schema import Config

Fault = tuple[tuple[str, ...], str]  # the keys that it is about, and its sentence
BUILTIN = "builtin:"
HUB = "hub:"
PATHS = ("data.valid_path", "data.test_path", "data.database", "model.path", "lora.init_from",
         "paths.output_dir", "paths.tracking_dir", "paths.cache_dir")  # fmt: skip


def get(config: Config, name: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def convert_all(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values in their types, and the faults of those that cannot be converted, by key."""
    good: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for name, value in values.items():
        try:
            good[name] = convert(keys()[name], value)
        except ValueError as error:
            faults[name] = str(error)
    return good, faults


def build(values: Mapping[str, Any]) -> Config:
    """A Config of these dotted keys; a key that is not among them keeps its default."""
    config = Config()
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        setattr(getattr(config, section) if section else config, leaf, value)
    return config


def cross_faults(config: Config, skip: Container[str] = ()) -> list[Fault]:
    """Faults between keys; a rule about a key in `skip` (faulty by itself) says nothing."""
    return [fault for fault in _rules(config) if not any(name in skip for name in fault[0])]


def _rules(config: Config) -> Iterator[Fault]:
    yield from _path_rules(config)
    yield from _data_rules(config)
    yield from _schedule_rules(config)
    yield from _frozen_rules(config)
    if fault := _store_fault(config.tracking.uri):
        yield ("tracking.uri",), f"tracking.uri: {fault}"
    if config.model.revision is not None and not _hub_name(config.model.path):
        yield (
            ("model.revision", "model.path"),
            f"model.revision: found {config.model.revision!r} with model.path "
            f"{config.model.path!r}; only a repository on the hub has revisions. "
            "Leave it null",
        )


def _frozen_rules(config: Config) -> Iterator[Fault]:
    """What can be kept of frozen layers only where it is said that there are some, and room."""
    train = config.train
    wanted = {"train.frozen_cache": train.frozen_cache is True,
              "train.offload_frozen": train.offload_frozen}  # fmt: skip
    against = {
        "train.frozen_cache": (train.frozen_cache is False, "false", "auto"),
        "train.frozen_cache_gb": (train.frozen_cache_gb == 0, "0", "4"),
        "lora.num_layers": (config.lora.num_layers == "all", "all", "16"),
        "data.packing": (config.data.packing == "none", "none", "auto"),
    }
    for key in (key for key, is_wanted in wanted.items() if is_wanted):
        for other, (stands, value, better) in against.items():
            if stands and other != key:
                yield (
                    (key, other),
                    f"{key}: found true with {other}={value}, so that nothing of frozen layers is "
                    f"remembered. Set {other} to {better}, or leave {key} out",
                )


def _hub_name(path: str) -> bool:
    local = path == "embedded" or path.endswith(".gguf") or path.startswith((".", "/", "~"))
    there = path_fault(path) is None and Path(path).exists()
    return not local and "/" in path and not there


def data_paths(config: Config) -> list[str]:
    """Every entry of `data.path`, without weights."""
    path = config.data.path
    return [path] if isinstance(path, str) else [entry["path"] for entry in path]


def _path_rules(config: Config) -> Iterator[Fault]:
    given = [("data.path", path) for path in data_paths(config)]
    for name, path in [*given, *((name, get(config, name)) for name in PATHS)]:
        if path is not None and not path.startswith((BUILTIN, HUB)) and (fault := path_fault(path)):
            yield (name,), f"{name}: {fault}"


# Stores that MLflow takes. In memory nothing would be left, and folders it takes no more.
_STORE = re.compile(
    r"https?://[^/\s]\S*|databricks(://\S+)?|uc(:\S+)?|(postgresql|mysql|mssql)(\+\w+)?://[^/\s]\S*"
    r"|sqlite:///(?!:memory:)[^?]*[^/?]"
)


def _store_fault(uri: str | None) -> str | None:
    """Why MLflow could never keep a run there; the address, with its password, is not said."""
    if uri is None or (_STORE.fullmatch(uri) and uri.isprintable()):
        return None
    return (
        "expected a database (sqlite:///FOLDER/mlflow.db, postgresql://...) or a server "
        "(https://HOST); a folder is not enough for MLflow"
    )


def _same_file(first: str, second: str) -> bool:
    if first == second:
        return True
    if any(path.startswith((BUILTIN, HUB)) or path_fault(path) for path in (first, second)):
        return False
    return Path(first).expanduser().resolve() == Path(second).expanduser().resolve()


def _is_folder(path: str) -> bool:
    return path_fault(path) is None and Path(path).expanduser().is_dir()


def _data_rules(config: Config) -> Iterator[Fault]:
    data = config.data
    if data.metric == "sql_execution" and data.database is None:
        yield (
            ("data.metric", "data.database"),
            "data.database: found null; data.metric sql_execution runs the answers on a "
            "database. Give an SQLite file or builtin:geography_sql",
        )
    for name, path in (("data.valid_path", data.valid_path), ("data.test_path", data.test_path)):
        if path is not None and any(_same_file(path, one) for one in data_paths(config)):
            yield (
                (name, "data.path"),
                f"{name}: found {path!r}, which is data.path; the training rows cannot judge "
                "the result. Give other rows, or null",
            )
    if data.share_prefixes is True and data.packing == "none":
        yield (
            ("data.share_prefixes", "data.packing"),
            "data.share_prefixes: found true, but padded rows (data.packing=none) share nothing. "
            "Set data.packing=segments, or share_prefixes=auto",
        )
    if data.share_prefixes is True and config.lora.dropout > 0:
        yield (
            ("data.share_prefixes", "lora.dropout"),
            f"data.share_prefixes: found true with lora.dropout={config.lora.dropout:g}; rows "
            "that share their beginning would share what is dropped there. Set it to auto",
        )
    patience = config.train.early_stopping_patience
    if patience is not None and not _may_have_validation_rows(config):
        yield (
            ("train.early_stopping_patience", "data.valid_fraction", "data.path"),
            f"train.early_stopping_patience: found {patience}, but data.valid_fraction=0 leaves "
            "no validation rows. Give data.valid_path, a fraction above 0, or set the patience "
            "to null",
        )


def _may_have_validation_rows(config: Config) -> bool:
    brings_rows = any(
        path.startswith((BUILTIN, HUB)) or _is_folder(path) for path in data_paths(config)
    )
    return brings_rows or config.data.valid_fraction > 0 or config.data.valid_path is not None


def _schedule_rules(config: Config) -> Iterator[Fault]:
    train, optimizer, every = config.train, config.optimizer, config.eval.every
    if optimizer.name == "adam" and optimizer.weight_decay > 0:
        yield (
            ("optimizer.name", "optimizer.weight_decay"),
            f"optimizer.weight_decay: found {optimizer.weight_decay:g}, which adam does not "
            "apply. Use optimizer=adamw, or set it to 0",
        )
    steps, warmup = train.max_steps, optimizer.warmup_steps
    if warmup is not None and steps is not None and warmup >= steps:
        yield (
            ("optimizer.warmup_steps", "train.max_steps"),
            f"optimizer.warmup_steps: found {warmup}; expected fewer than train.max_steps "
            f"({steps}), or the peak learning rate is never reached",
        )
    if optimizer.schedule == "wsd" and optimizer.warmup_ratio + optimizer.decay_ratio > 1:
        yield (
            ("optimizer.schedule", "optimizer.warmup_ratio", "optimizer.decay_ratio"),
            f"optimizer.decay_ratio: found {optimizer.decay_ratio:g} beside warmup_ratio "
            f"{optimizer.warmup_ratio:g}; together they may be at most 1",
        )
    if train.early_stopping_patience is not None and (
        every == 0 or (isinstance(every, int) and steps is not None and every > steps)
    ):
        yield (
            ("train.early_stopping_patience", "eval.every", "train.max_steps"),
            f"train.early_stopping_patience: found {train.early_stopping_patience}, but "
            f"eval.every={every} validates at no step in between. Set eval.every=auto, or the "
            "patience to null",
        )


def sweep_faults(config: Config) -> Iterator[str]:
    """Faults of a configuration as that of a sweep's trial; by itself it has none of them."""
    sweep, every = config.sweep, config.eval.every
    if sweep.together > 1 and config.train.offload_frozen:
        yield (
            f"train.offload_frozen: found true with sweep.together={sweep.together}, whose trials "
            "use one another's layers. Set train.offload_frozen=false, or sweep.together=1"
        )
    if sweep.sampler == "grid" and sweep.trials is not None:
        yield (
            f"sweep.trials: found {sweep.trials} with sweep.sampler=grid, which runs every "
            "combination. Leave it out, or search: sweep=search"
        )
    if sweep.sampler != "grid" and sweep.trials is None:
        yield (
            f"sweep.trials: found null with sweep.sampler={sweep.sampler}. Say how many points "
            "are tried: sweep.trials=20"
        )
    if sweep.metric == "accuracy_after" and config.data.metric == "none":
        yield (
            "sweep.metric: found accuracy_after, but data.metric=none judges no answers. Set "
            "data.metric, or compare by sweep.metric=val_loss_after"
        )
    elif sweep.sampler != "grid" and not _may_have_validation_rows(config):
        yield (
            f"sweep.metric: found {sweep.metric}, but data.valid_fraction=0 leaves no validation "
            "rows to search by. Give data.valid_path, or a fraction above 0"
        )
    if sweep.pruner == "none":
        return
    if every == 0 or (isinstance(every, int) and every >= (config.train.max_steps or math.inf)):
        yield (
            f"sweep.pruner: found {sweep.pruner}, but eval.every={every} validates at no step in "
            "between. Set eval.every=auto, or sweep.pruner=none"
        )
    elif not _may_have_validation_rows(config):
        yield (
            f"sweep.pruner: found {sweep.pruner}, but data.valid_fraction=0 leaves no validation "
            "rows. Give data.valid_path, a fraction above 0, or sweep.pruner=none"
        )
