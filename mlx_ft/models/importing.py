"""Imports mlx-lm: its models at once, the rest of it when something of that is wanted.

mlx-lm's packages import all that they have, and with its tokenizers transformers: a second, which
a run that finds its rows encoded does not need before its first step.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

OPEN_FILES = 2048  # what mlx-lm asks for, as a model may have many shards
PACKAGES = ("mlx_lm", "mlx_lm.tuner")
TOKENIZERS = "mlx_lm.tokenizer_utils"

_opening = threading.RLock()


def import_mlx_lm() -> None:
    """Import mlx-lm's loaders without their side effects; cheap when already imported.

    mlx_lm.utils sets the process's hard limit of open files to 4096, which only root could undo
    (and fails to import where the limit is lower). transformers says that it misses PyTorch.
    """
    for name in PACKAGES:
        package = sys.modules.get(name)
        if isinstance(package, _Unopened):
            package.open()
    if "mlx_lm.utils" not in sys.modules:
        with _unchanged_file_limit(), _without_advice():
            importlib.import_module("mlx_lm.utils")


def import_models() -> None:
    """Import what loads mlx-lm's models; whatever else is asked of it is imported then."""
    if "mlx_lm.utils" in sys.modules:
        return
    if "mlx_lm" in sys.modules:  # somebody is at it
        import_mlx_lm()
        return
    try:
        _place_packages()
        with _unchanged_file_limit(), _standing_in():
            importlib.import_module("mlx_lm.utils")
    except Exception:  # another version's, made of other parts
        for name in [name for name in sys.modules if name.partition(".")[0] == "mlx_lm"]:
            del sys.modules[name]
        import_mlx_lm()


class _Unopened(ModuleType):
    """A package whose own code runs when a name of it is asked for; its modules do without."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") or name in ("__version__", "__all__"):
            self.open()
            if name in self.__dict__:
                return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def open(self) -> None:
        """Run the package's code; another thread waits, this one finds what there is so far."""
        with _opening:
            if type(self) is ModuleType or "_opened" in self.__dict__:
                return
            self._opened = True
            try:
                with _without_advice():
                    self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
                self.__class__ = ModuleType  # type: ignore[assignment]
            finally:
                del self._opened


def _place_packages() -> None:
    """Put mlx-lm's packages where imports find them, without running them."""
    parent: ModuleType | None = None
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, None if parent is None else parent.__path__)
        if spec is None:
            raise ImportError(f"there is no {name}")
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _Unopened
        sys.modules[name] = package
        if parent is not None:
            setattr(parent, name.rpartition(".")[2], package)
        parent = package


@contextlib.contextmanager
def _standing_in() -> Iterator[None]:
    """While mlx_lm.utils is imported: two functions that it takes from elsewhere come when called.

    The tokenizers' is `load`; the hub's brings an HTTP client.
    """
    import huggingface_hub

    def load(*args: Any, **kwargs: Any) -> Any:
        import_mlx_lm()
        return importlib.import_module(TOKENIZERS).load(*args, **kwargs)

    def snapshot_download(*args: Any, **kwargs: Any) -> Any:
        return huggingface_hub.snapshot_download(*args, **kwargs)

    tokenizers = ModuleType(TOKENIZERS)
    tokenizers.load = load  # type: ignore[attr-defined]
    tokenizers.TokenizerWrapper = Any  # type: ignore[attr-defined]  # in annotations only
    sys.modules[TOKENIZERS] = tokenizers
    known = "snapshot_download" in huggingface_hub.__dict__
    if not known:
        huggingface_hub.__dict__["snapshot_download"] = snapshot_download
    try:
        yield
    finally:
        del sys.modules[TOKENIZERS]
        if not known:  # from now on huggingface_hub finds its own
            del huggingface_hub.__dict__["snapshot_download"]


@contextlib.contextmanager
def _unchanged_file_limit() -> Iterator[None]:
    import resource

    setrlimit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = setrlimit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
