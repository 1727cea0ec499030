"""Checkpoints that no run has written and no disk has damaged: somebody made them to do harm.

Their manifests are correct, or they are no files and folders as expected. Each must be refused in
one message; nothing in them may run, and nothing may grow without bound.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

Contents = dict[str, bytes]


def sealed(folder: Path, files: Contents) -> None:
    """Write files and a correct manifest, as an attacker could."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    described = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    }
    manifest = json.dumps({"format": 1, "files": described}, indent=1) + "\n"
    (folder / "manifest.json").write_text(manifest)


def tensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def hostile(good: Contents) -> dict[str, Contents]:
    """Checkpoints that no run has written, by name; each has a correct manifest."""
    state = json.loads(good["state.json"])
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    huge = {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}
    states: dict[str, Any] = {
        "another version": {**state, "progress": {**state["progress"], "mood": 1}},
        "a counter is text": {**state, "progress": {**state["progress"], "micro_step": "7"}},
        "a counter is negative": {**state, "progress": {**state["progress"], "metrics_rows": -3}},
        "a counter is a list": {**state, "progress": {**state["progress"], "parts": [2]}},
        "a loss is an object": {**state, "progress": {**state["progress"], "best_loss": {}}},
        "another step": {**state, "progress": {**state["progress"], "step": 10**30}},
        "a list": [state],
        "no progress": {**state, "progress": None},
        "no fingerprint": {key: value for key, value in state.items() if key != "fingerprint"},
        "a plan of text": {**state, "plan_steps": "__import__('os').system('touch canary')"},
        "a fingerprint of lists": {**state, "fingerprint": {"settings": [1], "model": 2}},
        "memory of text": {**state, "memory": "much"},
        "memory of another kind": {**state, "memory": {"factor": "x", "largest": []}},
    }
    texts = {
        "deep nesting": b'{"progress": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "NaN": good["state.json"].replace(b'"progress": {', b'"progress": {"mood": NaN,'),
        "a number of 5,000 digits": b'{"plan_steps": ' + b"9" * 5000 + b"}",
        "not UTF-8": b"\xff\xfe{}",
        "empty": b"",
    }
    arrays = {
        "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
        "header beyond the file": struct.pack("<Q", 1 << 26) + b"{}",
        "header is no JSON": tensors(b"\x80\x04cos\nsystem\n"),
        "header nested deeply": tensors(b"[" * 100_000),
        "a tensor of 2^62 bytes": tensors({"x": huge}, bytes(4)),
        "a tensor beyond the file": tensors({"x": {**one, "data_offsets": [0, 1 << 40]}}),
        "offsets that overflow": tensors({"x": {**one, "data_offsets": [(1 << 64) - 1, 3]}}),
        "tensors that overlap": tensors({"x": one, "y": one}, bytes(4)),
        "an unknown dtype": tensors({"x": {**one, "dtype": "PICKLE"}}, bytes(4)),
        "other tensors": tensors({"__class__": one}, bytes(4)),
        "no tensors": tensors({}),
    }
    found = {f"state: {name}": {"state.json": json.dumps(s).encode()} for name, s in states.items()}
    found |= {f"state: {name}": {"state.json": text} for name, text in texts.items()}
    for file in ("adapters.safetensors", "optimizer.safetensors", "best.safetensors"):
        found |= {f"{file}: {name}": {file: content} for name, content in arrays.items()}
    return {name: {**good, **changed} for name, changed in found.items()}


def odd_folders(parent: Path, good: Contents) -> dict[str, Callable[[], object]]:
    """What may stand in a checkpoint's place; each call makes it."""
    step = parent / "step-000009"

    def with_manifest(text: str) -> None:
        sealed(step, good)
        (step / "manifest.json").write_text(text)

    def with_link(target: str) -> None:
        sealed(step, good)
        (step / "optimizer.safetensors").unlink()
        (step / "optimizer.safetensors").symlink_to(target)

    def with_pipe() -> None:
        sealed(step, good)
        (step / "state.json").unlink()
        os.mkfifo(step / "state.json")

    def entry(name: str, size: Any) -> str:
        files = {name: {"sha256": "0" * 64, "size": size}}
        return json.dumps({"format": 1, "files": files}, indent=1) + "\n"

    return {
        "a file": lambda: step.write_text("x"),
        "an empty folder": lambda: step.mkdir(),
        "a broken link": lambda: step.symlink_to("nowhere"),
        "a link to an endless file": lambda: with_link("/dev/zero"),
        "a pipe": with_pipe,
        "a manifest nested deeply": lambda: with_manifest("[" * 200_000),
        "a manifest that is a list": lambda: with_manifest("[]\n"),
        "a name that leads out": lambda: with_manifest(entry("../../config.yaml", 3)),
        "a size of text": lambda: with_manifest(entry("state.json", "3")),
        "a size of 2^62": lambda: with_manifest(entry("state.json", 1 << 62)),
        "a size of NaN": lambda: with_manifest(entry("state.json", float("nan"))),
        "no files at all": lambda: with_manifest('{\n "format": 1,\n "files": {}\n}\n'),
    }


def hostile_cases(newest: Path, parent: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Every hostile checkpoint with what makes it in `parent`; newest: a good one."""
    good = {p.name: p.read_bytes() for p in newest.iterdir() if p.name != "manifest.json"}
    for name, files in hostile(good).items():
        yield name, partial(_seal, newest.name, files)
    for name, make in odd_folders(parent, good).items():
        yield name, partial(_made, make)
    yield "checkpoints is a file", _checkpoints_file


def _seal(name: str, files: Contents, parent: Path) -> None:
    sealed(parent / name, files)


def _made(make: Callable[[], object], _: Path) -> None:
    make()


def _checkpoints_file(parent: Path) -> None:
    parent.rmdir()
    parent.write_text("x")
