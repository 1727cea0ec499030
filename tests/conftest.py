"""Prepares the process as a run does: the BLAS must be in place before MLX is imported."""

import logging
import os
from collections.abc import Iterator

import pytest

from mlx_ft import runtime

# Beside one another, workers with a thread each are faster than with all cores each.
runtime.prepare(threads=1 if "PYTEST_XDIST_WORKER" in os.environ else None)


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


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A run sets up logging for its process; the next test finds it as it was."""
    logger = logging.getLogger("mlx_ft")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
