"""Which architectures the installed mlx-lm has, found without importing it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mlx_ft.errors import ModelError

# Files of mlx_lm/models that hold parts of models.
NO_MODELS = ("activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline")


def model_types() -> list[str]:
    """Every model_type that it loads."""
    package = _package()
    files = {path.stem for path in (package / "models").glob("*.py")}
    return sorted((files | _remapped(package).keys()) - {*NO_MODELS, "__init__"})


def source(model_type: object) -> str | None:
    """The text of the file that serves a model_type; None for one that it does not load."""
    if model_type not in model_types():
        return None
    package = _package()
    name = _remapped(package).get(str(model_type), str(model_type))
    return (package / "models" / f"{name}.py").read_text("utf-8")


def _package() -> Path:
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("mlx-lm is not installed: pip install mlx-lm")
    return Path(spec.submodule_search_locations[0])


@cache
def _remapped(package: Path) -> Mapping[str, str]:
    """mlx-lm's MODEL_REMAPPING: names of model types that another file serves."""
    for node in ast.parse((package / "utils.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_REMAPPING":
            return dict(ast.literal_eval(node.value))
    return {}
