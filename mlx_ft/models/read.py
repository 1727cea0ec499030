"""The seam to mlx-lm: its model and tokenizer loaders, each behind one function of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft.errors import ModelError
from mlx_ft.models import rotary
from mlx_ft.models.importing import import_mlx_lm, import_models

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

__all__ = ["import_mlx_lm", "read_model", "read_tokenizer", "tensor_faults"]


def read_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a folder as mlx-lm builds it, its weights not yet evaluated, and its config.

    Raises one ModelError with every tensor that is missing, unexpected, or of another shape or
    kind than the architecture wants.
    """
    import_models()
    from mlx_lm.utils import _get_classes, load_model

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        config |= rotary.settled(config)  # before its arguments are made of it
        model_class, arguments_class = _get_classes(config)
        return _checked(model_class, folder), arguments_class

    try:
        model, config = load_model(folder, lazy=True, get_model_classes=classes)
    except ModelError:
        raise
    except Exception as error:  # mlx-lm's loaders raise whatever the files provoke
        raise ModelError(
            f"{folder}: mlx-lm cannot build this model from its config.json and weights "
            f"({type(error).__name__}: {error})"
        ) from error
    model.__class__ = type(model).__mro__[1]  # the architecture's own class again
    return model, config


def _checked(model_class: type, folder: Path) -> type:
    """The class with a `load_weights` that reports every fault, where MLX's stops at the first.

    mlx-lm calls it with the tensors after its sanitize and its choice of quantized layers.
    """

    def load_weights(self: Any, weights: list[tuple[str, mx.array]], strict: bool = True) -> Any:
        faults = tensor_faults(self, dict(weights))
        if faults:
            raise ModelError(f"{folder}: the weights do not fit the architecture:", faults)
        return model_class.load_weights(self, weights, strict=strict)  # type: ignore[attr-defined]

    return type(model_class.__name__, (model_class,), {"load_weights": load_weights})


def tensor_faults(model: nn.Module, weights: dict[str, mx.array]) -> list[str]:
    """Every difference between the weights and the model's parameters, one line each."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    expected = dict(tree_flatten(model.parameters()))
    faults = [
        f"{name}: missing, expected {expected[name].shape}"
        for name in expected
        if name not in weights
    ]
    for name, found in weights.items():
        wanted = expected.get(name)
        if wanted is None:
            faults.append(f"{name}: unexpected, found {found.shape}")
        elif found.shape != wanted.shape:
            faults.append(f"{name}: found shape {found.shape}, expected {wanted.shape}")
        elif found.dtype != wanted.dtype and not (
            mx.issubdtype(found.dtype, mx.floating) and mx.issubdtype(wanted.dtype, mx.floating)
        ):
            faults.append(f"{name}: found {_name(found.dtype)}, expected {_name(wanted.dtype)}")
    return faults


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def read_tokenizer(folder: Path, eos_token_ids: int | list[int] | None) -> TokenizerWrapper:
    """mlx-lm's tokenizer of a folder; never runs code from it.

    eos_token_ids: the config's, as a model may end its turn with a token that is not the
    tokenizer's own. Raises ModelError when transformers cannot read the tokenizer.
    """
    import_mlx_lm()
    from mlx_lm.utils import load_tokenizer

    try:
        return load_tokenizer(folder, {"trust_remote_code": False}, eos_token_ids=eos_token_ids)
    except Exception as error:  # transformers raises whatever the files provoke
        raise ModelError(
            f"{folder}: transformers cannot read the tokenizer ({type(error).__name__}: {error}). "
            "Copy tokenizer.json and tokenizer_config.json from the original model"
        ) from error
