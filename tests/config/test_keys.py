import dataclasses

import pytest

from mlx_ft.config.keys import convert, keys
from mlx_ft.config.schema import Config
from mlx_ft.config.suggest import did_you_mean


def leaves(owner, prefix=""):
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_every_field_of_the_schema_is_a_key_with_a_meaning():
    assert set(keys()) == set(leaves(Config()))
    assert all(key.metadata["meaning"].endswith(".") for key in keys().values())


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("lora.rank", 8, 8),
        ("lora.rank", 1e3, 1000),
        ("lora.rank", "8", 8),  # oc.env gives text
        ("lora.alpha", 16, 16.0),
        ("lora.alpha", "1e-4", 1e-4),
        ("lora.num_layers", "all", "all"),
        ("lora.num_layers", 4, 4),
        ("lora.target_modules", "attention", "attention"),
        ("lora.target_modules", ["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        ("checkpoint.best", "False", False),
        ("train.max_steps", None, None),
        ("eval.every", 0, 0),
        ("model.revision", 1234567, "1234567"),
        ("model.quantize", None, None),
        ("model.quantize", {"bits": 8}, {"bits": 8, "group_size": 64, "mode": "affine"}),
        ("model.quantize", {"mode": "nvfp4"}, {"bits": 4, "group_size": 16, "mode": "nvfp4"}),
        ("tracking.tags", {"owner": "me", "n": 1}, {"owner": "me", "n": "1"}),
    ],
)
def test_accepted(name, given, expected):
    found = convert(keys()[name], given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("lora.rank", 0, "at least 1"),
        ("lora.rank", -3, "found -3"),
        ("lora.rank", 8.5, "a whole number"),
        ("lora.rank", True, "a whole number"),
        ("lora.rank", None, "found None"),
        ("lora.rank", "eight", "found 'eight'"),
        ("lora.dropout", 1.0, "below 1"),
        ("optimizer.learning_rate", 0, "above 0"),
        ("optimizer.learning_rate", float("nan"), "found nan"),
        ("optimizer.learning_rate", float("inf"), "found inf"),
        ("optimizer.learning_rate", "inf", "a number"),
        ("optimizer.name", "loin", "Did you mean lion?"),
        ("lora.num_layers", "some", "or all"),
        ("lora.num_layers", 0, "at least 1"),
        ("lora.target_modules", "q_proj", "[q_proj]"),
        ("lora.target_modules", [], "a list of names"),
        ("lora.target_modules", [1], "a list of names"),
        ("checkpoint.best", 1, "true or false"),
        ("data.path", "", "text"),
        ("data.path", 1.5, "text"),
        ("model.quantize", 4, "a mapping"),
        ("model.quantize", {"bit": 4}, "unknown bit"),
        ("model.quantize", {"bits": 7}, "2, 3, 4, 5, 6, 8"),
        ("model.quantize", {"group_size": 48}, "32, 64, 128"),
        ("model.quantize", {"mode": "mxfp4", "bits": 8}, "mode mxfp4 takes 4"),
        ("model.quantize", {"mode": "mxfp5"}, "one of affine"),
        ("model.quantize", {"mode": ["affine"]}, "one of affine"),
        ("tracking.tags", {"a": [1]}, "a mapping of texts"),
        ("seed", 2**32, "at most 4,294,967,295"),
        ("memory_profile.max_seq_length", 0, "at least 2"),
    ],
)
def test_refused(name, given, message):
    with pytest.raises(ValueError) as error:
        convert(keys()[name], given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lora.rnak", "mean lora.rank?"),
        ("memory-profile", "mean memory_profile?"),
        ("memory-profile.micro_batch_size", "mean memory_profile.micro_batch_size?"),
        ("memory-profile.zzz", "mean memory_profile? "),
        ("rank", "mean lora.rank?"),
        ("learning_rate", "mean optimizer.learning_rate?"),
        ("lr", "mean optimizer.learning_rate?"),
        ("zzzzzz", "All keys"),
        ("optimzer.learning_rate", "mean optimizer.learning_rate?"),
        ("batch_size", "mean memory_profile.micro_batch_size?"),
        ("lora.rank.x", "mean lora.rank?"),
        ("lora.zzzz", "lora has: rank, alpha"),
        ("quantize", "model.quantize or memory_profile.quantize"),
        ("experimnt", "mean experiment?"),
        ("Seed", "mean seed?"),
        ("train.grad_checkpoint", "mean memory_profile.grad_checkpoint?"),
    ],
)
def test_did_you_mean(name, meant):
    assert meant in did_you_mean(name, ["experiment"])
