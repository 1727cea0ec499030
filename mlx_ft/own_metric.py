"""A metric of the user's own: a function of a Python file, named on the command line alone."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from mlx_ft.errors import UserError

Function = Callable[[str, str, Mapping[str, Any]], Any]
OPTION = "--metric-from"
TAKEN = ("loss", "perplexity")  # what `--log` calls figures of its own, of this name
ENDINGS = ("_low", "_high", "_gain", "_p")  # or of a metric's name and one of these
EXPECTED = "expected FUNCTION(prediction, reference, fields) -> bool or number"


class OwnMetric:
    """A function as a metric. It is called in the caller's own thread, one answer at a time."""

    workers = 1

    def __init__(self, function: Function, name: str | None = None) -> None:
        self.name = name or str(getattr(function, "__name__", "own_metric"))
        self._function = function

    def __call__(
        self, prediction: str, reference: str, fields: Mapping[str, Any] = MappingProxyType({}), /
    ) -> bool | float:
        """What the function says. Raises UserError for what is no number, and for any error."""
        try:
            found = self._function(prediction, reference, dict(fields))
        except Exception as error:
            place = _place(error)
            raise UserError(
                f"{self.name} raised {type(error).__name__}: {error}{place}. "
                f"It got the answer {_short(prediction)} and the reference {_short(reference)}"
            ) from error
        if isinstance(found, bool):
            return found
        try:
            value = float(found)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if isinstance(found, str) or not math.isfinite(value):
            raise UserError(f"{self.name} gave {_short(found)}; {EXPECTED}, and no NaN")
        return value


def _place(error: Exception) -> str:
    """Where in the user's file it happened."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


def load(given: str) -> OwnMetric:
    """The metric that `FILE.py:FUNCTION` names; this runs the file. Raises UserError.

    For a command line's own argument: nothing that comes from a file of settings, an adapter or a
    request may ever be given here.
    """
    file, colon, name = given.rpartition(":")
    path = Path(file).expanduser()
    if not (colon and name.isidentifier() and path.suffix == ".py"):
        raise UserError(f"{OPTION}: found {given!r}; expected FILE.py:FUNCTION")
    if name in TAKEN or name.endswith(ENDINGS):
        raise UserError(
            f"{OPTION}: a metric cannot be called {name}: {', '.join(TAKEN)} and names that end in "
            f"{', '.join(ENDINGS)} are those of other figures. Rename the function"
        )
    if not path.is_file():
        raise UserError(f"{OPTION}: there is no file {path.absolute()}")
    module = _run(path.resolve())
    function = getattr(module, name, None)
    if not callable(function):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = [one for one, it in functions if it.__module__ == module.__name__]
        raise UserError(
            f"{OPTION}: {path} has no function {name}. It has: {', '.join(own) or 'none'}"
        )
    try:
        inspect.signature(function).bind("", "", {})
    except TypeError:
        raise UserError(f"{OPTION}: {name} of {path}: {EXPECTED}") from None
    except ValueError:
        pass  # of a function in C nothing is known
    return OwnMetric(function, name)


def _run(path: Path) -> ModuleType:
    """The module of a file, which may import others beside it."""
    spec = importlib.util.spec_from_file_location(f"mlx_ft_own_{path.stem}", path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and the like look there
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{OPTION}: {path} cannot be imported: {type(error).__name__}: {error}{_at(error)}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _at(error: BaseException) -> str:
    return _place(error) if isinstance(error, Exception) else ""
