"""Tiny finished runs to use, made once for a module's tests."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_ft.main import main as train
from tests.conftest import quick_figures
from tests.jobs import job, write_rows
from tests.models import tiny


def runs(place: Path, changes: dict[str, Sequence[str]]) -> Path:
    """A folder with model, rows and a run in `outputs/runs` for each name of `changes`."""
    tiny.save(place / "model")
    write_rows(place / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        enter(place, patch)
        quick_figures(patch)
        for name, more in changes.items():
            given = [f"hydra.run.dir=outputs/runs/{name}", "train.max_steps=3",
                     "optimizer.learning_rate=2e-2", "optimizer.warmup_steps=0"]  # fmt: skip
            keys = {text.partition("=")[0] for text in more}
            given = [text for text in given if text.partition("=")[0] not in keys]
            assert train(job(*given, *more)) == 0
    return place


def enter(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Make it the current folder, with its own cache."""
    patch.chdir(place)
    patch.setenv("MLX_FT_CACHE", str(place / "cache"))
    patch.delenv("MLX_FT_OUTPUTS", raising=False)
