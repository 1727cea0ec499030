from dataclasses import asdict, replace

import pytest
from omegaconf import OmegaConf

from mlx_ft.config import Config
from mlx_ft.config.check import sweep_faults
from mlx_ft.config.compose import resolve
from mlx_ft.errors import ConfigError

HALF = {"lora__num_layers": 16}
OFFLOADED = {**HALF, "train__offload_frozen": True}


def check(config):
    try:
        resolve(OmegaConf.create(asdict(config)))
    except ConfigError as error:
        return list(error.faults)
    return []


def changed(**values):
    config = Config()
    for name, value in values.items():
        section, _, leaf = name.partition("__")
        setattr(getattr(config, section), leaf, value)
    return config


def test_the_defaults_have_no_fault():
    assert check(Config()) == []


def test_every_fault_is_reported_at_once():
    config = changed(lora__rank=0, lora__dropout=2.0, optimizer__name="adamv")
    faults = check(replace(config, seed=-1))
    assert [fault.split(":")[0] for fault in faults] == [
        "lora.rank",
        "lora.dropout",
        "optimizer.name",
        "seed",
    ]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"data__metric": "sql_execution"}, "data.database"),
        ({"train__offload_frozen": True, "lora__num_layers": "all"}, "train.offload_frozen"),
        (
            {**OFFLOADED, "train__frozen_cache": False},
            "train.offload_frozen",
        ),
        (
            {**OFFLOADED, "train__frozen_cache_gb": 0.0},
            "train.offload_frozen",
        ),
        ({"train__frozen_cache": True, "data__packing": "none", **HALF}, "train.frozen_cache"),
        ({"data__valid_path": "builtin:geography_sql"}, "data.valid_path"),
        ({"data__test_path": "builtin:geography_sql"}, "data.test_path"),
        ({"optimizer__warmup_steps": 10, "train__max_steps": 10}, "optimizer.warmup_steps"),
        (
            {"optimizer__schedule": "wsd", "optimizer__warmup_ratio": 0.9},
            "optimizer.decay_ratio",
        ),
        ({"train__early_stopping_patience": 2, "eval__every": 0}, "train.early_stopping_patience"),
        (
            {"train__early_stopping_patience": 2, "eval__every": 9, "train__max_steps": 8},
            "train.early_stopping_patience",
        ),
        (
            {
                "train__early_stopping_patience": 2,
                "data__valid_fraction": 0.0,
                "data__path": "rows.jsonl",
            },
            "train.early_stopping_patience",
        ),
        ({"data__path": "rows.jsonl", "data__valid_path": "./rows.jsonl"}, "data.valid_path"),
        ({"data__path": "a/../rows.jsonl", "data__test_path": "rows.jsonl"}, "data.test_path"),
        ({"train__max_steps": 10**9 + 1}, "train.max_steps"),
        ({"train__epochs": 1e7}, "train.epochs"),
        ({"tracking__uri": "postgresql://me:pw@host/db"}, "tracking.uri"),
        ({"tracking__uri": "postgresql://me:p/w@host/db"}, "tracking.uri"),
        ({"tracking__uri": "https://host/?access_token=pw"}, "tracking.uri"),
        ({"model__revision": "main"}, "model.revision"),
        ({"model__revision": "main", "model__path": "./folder/model"}, "model.revision"),
    ],
)
def test_rules_between_keys(values, key):
    assert [fault.split(":")[0] for fault in check(changed(**values))] == [key]


@pytest.mark.parametrize(
    "values",
    [
        {"data__metric": "sql_execution", "data__database": "builtin:geography_sql"},
        {"optimizer__warmup_steps": 9, "train__max_steps": 10},
        {"optimizer__warmup_steps": 10},
        {"train__early_stopping_patience": 2},
        {"train__early_stopping_patience": 2, "data__valid_fraction": 0.0},
        {"train__early_stopping_patience": 2, "data__valid_fraction": 0.0, "data__path": "/tmp"},
        {
            "train__early_stopping_patience": 2,
            "data__valid_fraction": 0.0,
            "data__path": "rows.jsonl",
            "data__valid_path": "valid.jsonl",
        },
        {"data__path": "rows.jsonl", "data__valid_path": "other/rows.jsonl"},
        {"tracking__uri": "http://host:5000"},
        {"tracking__uri": "http://host:5000/a@b"},
        {"tracking__uri": "http://me@host"},
        {"model__revision": "main", "model__path": "microsoft/phi-2"},
    ],
)
def test_what_the_rules_allow(values):
    assert check(changed(**values)) == []


def test_a_rule_is_silent_about_a_key_that_is_faulty_by_itself():
    faults = check(changed(optimizer__warmup_steps="x", train__max_steps=10))
    assert len(faults) == 1
    assert "whole number" in faults[0]


PATHS = ["data__path", "data__valid_path", "data__test_path", "data__database", "model__path",
         "paths__output_dir", "paths__tracking_dir", "paths__cache_dir"]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("~nosuchuser/x", "there is no user 'nosuchuser'"),
        ("x" * 300, "File name too long"),
        ("a\0b", "this is no path"),
    ],
)
def test_what_cannot_be_a_path(name, path, reason):
    [fault] = check(changed(**{name: path}))
    assert fault.startswith(name.replace("__", ".") + ": found")
    assert reason in fault
    assert "\n" not in fault


def test_a_revision_beside_an_impossible_path_is_no_crash():
    assert len(check(changed(model__revision="main", model__path="x" * 300 + "/a"))) == 1


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "sqlite:////abs/a b/é.db",
        "http://127.0.0.1:5000",
        "https://host/path",
        "postgresql+psycopg2://me@host/db",
        "mysql://host/db",
        "databricks",
        "databricks://profile",
        "uc:databricks",
    ],
)
def test_stores_that_mlflow_takes(uri):
    assert check(changed(tracking__uri=uri)) == []


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///folder/",
        "sqlite:///x.db?mode=ro",
        "sqlite:///a\nb.db",
        "http://",
        "./files",
        "file:./files",
        "javascript:alert(1)",
        "ftp://host",
        "nonsense",
    ],
)
def test_where_mlflow_could_never_keep_a_run_is_refused(uri):
    [fault] = check(changed(tracking__uri=uri))
    assert fault.startswith("tracking.uri: expected a database (sqlite:///FOLDER/mlflow.db")


def test_a_step_of_more_micro_batches_than_ever_end_is_refused():
    [fault] = check(changed(memory_profile__grad_accumulation_steps=10**19))
    assert "at most 1,000,000" in fault


def test_a_memory_limit_that_rounds_to_nothing_is_refused():
    [fault] = check(changed(memory_profile__memory_limit_gb=1e-300))
    assert "at least 0.01" in fault


@pytest.mark.parametrize("name", ["cache_limit_gb", "wired_limit_gb", "memory_limit_gb"])
def test_more_bytes_than_a_number_of_mlx_holds_are_refused(name):
    [fault] = check(changed(**{f"memory_profile__{name}": 1e12}))
    assert "at most 1,000,000" in fault


def test_each_reason_why_nothing_is_remembered_is_named():
    values = {"train__offload_frozen": True, "lora__num_layers": "all", "data__packing": "none"}
    faults = check(changed(**values))
    assert [("lora.num_layers=all" in text, "data.packing=none" in text) for text in faults] == [
        (True, False),
        (False, True),
    ]
    assert check(changed(train__offload_frozen=True, train__frozen_cache=True, **HALF)) == []


def test_trials_together_have_no_layers_in_a_file():
    config = changed(sweep__together=2, train__offload_frozen=True)
    assert next(sweep_faults(config)).startswith("train.offload_frozen: found true")
    assert [*sweep_faults(changed(sweep__together=2))] == []
