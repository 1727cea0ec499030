"""Prepares the process as a run does: the BLAS must be in place before MLX is imported."""

import pytest

from mlx_ft import runtime

runtime.prepare()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tiny model and rows, made the current one."""
    from tests.jobs import write_rows
    from tests.models import tiny

    tiny.save(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path.parent / "cache"))
    return tmp_path
