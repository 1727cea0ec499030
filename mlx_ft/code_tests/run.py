"""Does code pass its tests? Asked of processes that are confined, watched and ended."""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ft.errors import MlxFtError

MAX_OUTPUT = 8_000_000  # bytes of what a process says
# The child imports our modules without mlx_ft/__init__.py, which would import MLX.
START = (
    "import sys; package = type(sys)('mlx_ft'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['mlx_ft'] = package; from mlx_ft.code_tests.child import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]))"
)
PACKAGE = Path(__file__).parent.parent
_FENCE = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """Of one judgement. The process's own time, the time by the clock, and its memory."""

    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_bytes: int = 512 * 1024 * 1024


@dataclass(frozen=True)
class Verdict:
    """reason: why not, in a sentence; empty when passed. values: as asked for, as Python text.

    sealed: whether the kernel kept the process in, and not only Python.
    """

    passed: bool
    reason: str = ""
    values: tuple[str, ...] = ()
    sealed: bool = False


def extract_code(text: str) -> str:
    """The first Markdown fence that says Python or nothing, closed or not; else the whole text."""
    for language, code in _FENCE.findall(text):
        if language.lower() in ("", "py", "python", "python3"):
            return str(code)
    return text


def bad_tests(tests: object) -> list[str]:
    """What keeps `tests` from being tests: a sentence each.

    A test without an assertion, or without a name of the answer's, passes whatever the answer is.
    """
    if not isinstance(tests, list) or not tests:
        return ["the row has no `tests`: a list of Python statements that assert"]
    return [f"test {at}: {fault}" for at, test in enumerate(tests, 1) if (fault := _fault(test))]


def _fault(test: object) -> str | None:
    if not isinstance(test, str):
        return f"found {test!r}; expected a text"
    try:
        nodes = list(ast.walk(ast.parse(test)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{test!r} is not Python ({error})"
    if not any(isinstance(node, ast.Assert) for node in nodes):
        return f"{test!r} asserts nothing"
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    if all(name.id in bound or hasattr(builtins, name.id) for name in names):
        return (
            f"{test!r} uses nothing that the answer could define (Python's own names are its own)"
        )
    return None


def run_tests(
    code: str, tests: Sequence[str], *, values: Sequence[str] = (), limits: Limits = Limits()
) -> Verdict:
    """Run `code`, then each test: statements that call what the code defines and assert.

    The tests run in another process than the code and see plain data only: None, bool, numbers,
    str, bytes, list, tuple, dict, set, dates, Decimal, Fraction, iterators over these, and
    functions that are given back; no other objects, and no functions as arguments. A built-in
    exception arrives as what it was, a change in place of a list, set or dictionary too.
    values: expressions to evaluate after the tests. Raises MlxFtError when no such process
    can be started.
    """
    token = secrets.token_hex(16)
    job = {"code": code, "tests": list(tests), "values": list(values), "token": token}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as given:
        given.write(json.dumps(job).encode())
        given.seek(0)
        command = [sys.executable, "-I", "-S", "-B", "-c", START, str(PACKAGE)]
        process = subprocess.Popen(
            [*command, str(limits.cpu_seconds), str(limits.memory_bytes)],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env={},
            start_new_session=True,
        )  # fmt: skip
        try:
            output, timely = _read(process, time.monotonic() + limits.wall_seconds)
        finally:
            # The group, before its leader is waited for: until then the number is not reused.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout
            process.stdout.close()
    return _verdict(output, timely, token, limits)


def _read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """What the process says, and whether it ended in time and with no more than MAX_OUTPUT."""
    assert process.stdout
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and len(output) <= MAX_OUTPUT:
            if selector.select(left):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    return bytes(output), True
                output += chunk
    return bytes(output), False


def _verdict(output: bytes, timely: bool, token: str, limits: Limits) -> Verdict:
    messages = [_message(line) for line in output.split(b"\n") if line]
    if not messages or "ready" not in messages[0]:
        if not timely:
            return Verdict(False, f"no start within {limits.wall_seconds:g} s")
        said = output.decode(errors="replace").strip()[-500:]
        raise MlxFtError(f"No confined process can be started to run code in: {said or 'no word'}")
    sealed = bool(messages[0].get("sealed"))
    told = messages[-1]
    if timely and secrets.compare_digest(str(told.get("token", "")), token):
        return Verdict(True, "", tuple(told["values"]), sealed)
    late = f"not done within {limits.wall_seconds:g} s"
    reason = told.get("reason", "the judging process ended") if timely else late
    return Verdict(False, str(reason), (), sealed)


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
