"""Prepares the process as a run does: the BLAS must be in place before MLX is imported."""

import base64
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

if sys.dont_write_bytecode:  # each of the many processes that tests start would compile ours
    sys.dont_write_bytecode = False
    del os.environ["PYTHONDONTWRITEBYTECODE"]

from mlx_ft import runtime

# Beside one another, workers with a thread each are faster than with all cores each.
runtime.prepare(threads=1 if "PYTEST_XDIST_WORKER" in os.environ else None)

# A test's seconds are the machine's, which may be busy.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with the runs `one`, which has learned its rows, and `two`; not to be changed."""
    from tests import trained

    learned = ["train.max_steps=40", "optimizer.learning_rate=3e-3", "eval.max_tokens=12",
               "checkpoint.every=20", "checkpoint.keep_last=3"]  # fmt: skip
    return trained.runs(tmp_path_factory.mktemp("finished"), {
        "one": learned, "two": ["optimizer.learning_rate=6e-2", "lora.rank=2"],
    })  # fmt: skip


@pytest.fixture
def using(finished, monkeypatch):
    """The same folder, made the current one."""
    from tests import trained

    trained.enter(finished, monkeypatch)
    return finished


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
VECTORS = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1" viewBox="0 0 1 1"></svg>'


@pytest.fixture(autouse=True)
def _quick_figures(request, monkeypatch):
    """Half of a tiny run's time goes into figures: one dot stands for each, but where they matter.

    Processes of their own draw them all.
    """
    if not request.node.get_closest_marker("figures"):
        quick_figures(monkeypatch)


def quick_figures(patch: pytest.MonkeyPatch) -> None:
    """The dots, as long as `patch` lasts: a fixture of a module is made before they stand in."""
    from matplotlib.figure import Figure  # not by those who only import this file

    def savefig(_self: Figure, file: Any, *, format: str = "png", **_: Any) -> None:
        content = {"png": PIXEL, "svg": VECTORS}[format]
        if isinstance(file, (str, Path)):
            Path(file).write_bytes(content)
        elif isinstance(file, io.TextIOBase):
            file.write(content.decode())
        else:
            file.write(content)

    patch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def no_estimate(monkeypatch):
    """For sweeps whose trials are stand-ins, without a model."""
    monkeypatch.setattr("mlx_ft.sweeper.running.said_of_work", lambda *_: "")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A run sets up logging for its process; the next test finds it as it was."""
    logger = logging.getLogger("mlx_ft")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
