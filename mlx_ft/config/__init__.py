"""The configuration of a run: schema, checks, composition. Importing this is cheap."""

from __future__ import annotations

from pathlib import Path

from mlx_ft.config.schema import Config

__all__ = ["Config", "conf_dir", "quoted"]


def conf_dir() -> Path:
    """The folder of YAML files: inside the package (wheel), or else the checkout's `conf/`."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def quoted(text: str) -> str:
    """A value for Hydra's grammar, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
