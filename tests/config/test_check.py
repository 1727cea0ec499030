from dataclasses import replace

import pytest

from mlx_ft.config import Config
from mlx_ft.config.check import check


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
        {"model__revision": "main", "model__path": "microsoft/phi-2"},
    ],
)
def test_what_the_rules_allow(values):
    assert check(changed(**values)) == []


def test_a_rule_is_silent_about_a_key_that_is_faulty_by_itself():
    faults = check(changed(optimizer__warmup_steps="x", train__max_steps=10))
    assert len(faults) == 1
    assert "whole number" in faults[0]
