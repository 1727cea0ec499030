"""Damaged checkpoints: every flipped bit and every cut is found, and the one before is used.

python proofs/damage.py [flips=1000] [truncations=100] [resumes=20] [seed=0]

A tiny run keeps its last three checkpoints. Each time one random bit of a random file of the
newest one is flipped (its manifest's, too), or a file is cut short: `checkpoint.load` must refuse
it, and `checkpoint.newest` must give the one before. For some of them a whole
`train.resume=auto` goes on: the damaged one is set aside and named, and the run ends equal to the
run that was never stopped. Last come checkpoints that nobody's disk made: hostile ones with a
correct manifest. They must be refused with exit code 2, in one message, and nothing changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proofs.kills import COMMON, Place, remains  # noqa: E402

JOB = ("checkpoint.keep_last=4", "tracking=none", "train.max_steps=12", "train.log_every=6")
Contents = dict[str, bytes]


def newest_of(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((run / "checkpoints").glob("step-*"))


def arguments(run: str) -> list[str]:
    """The command line of the run in the folder `run`."""
    given = {text.partition("=")[0] for text in JOB}
    common = [text for text in COMMON if text.partition("=")[0] not in given]
    return [*common, *JOB, f"hydra.run.dir={run}"]


def train(place: Place) -> tuple[Path, Path]:
    """A finished run, and what was left of it when it had saved step 9 and not ended.

    Its newest checkpoint has every kind of file: the best adapter is that of step 6.
    """
    ended = place.start(arguments("whole"))
    assert ended["code"] == 0, place.output()
    place.output()
    whole, stopped = place.folder / "whole", place.folder / "stopped"
    shutil.copytree(whole, stopped, ignore=shutil.ignore_patterns("step-000012", "summary.json"))
    return whole, stopped


def flip(path: Path, chance: random.Random) -> str:
    """Flip one random bit of a file; what was done."""
    content = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.name}"


def cut(path: Path, chance: random.Random) -> str:
    """Cut a file short, at any length down to nothing; what was done."""
    size = chance.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name} cut to {size} bytes"


def harm(newest: Path, chance: random.Random, how: Callable[[Path, random.Random], str]) -> str:
    """Damage one file of a checkpoint; small files are chosen as often as large ones."""
    return how(chance.choice(sorted(newest.iterdir())), chance)


@contextmanager
def harmed(
    newest: Path, chance: random.Random, how: Callable[[Path, random.Random], str]
) -> Iterator[str]:
    """Damage a checkpoint for a while; what was done."""
    kept = {path: path.read_bytes() for path in newest.iterdir()}
    try:
        yield harm(newest, chance, how)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def unnoticed(newest: Path) -> list[str]:
    """What a reader does wrong with this damaged checkpoint: nothing, if all is well."""
    from mlx_ft import checkpoint
    from mlx_ft.errors import CheckpointError
    from mlx_ft.runfolder import checkpoint_folders

    wrong = []
    try:
        checkpoint.load(newest)
        wrong.append("it is loaded")
    except CheckpointError as error:
        if not error.faults:
            wrong.append("no file is named")
    before = checkpoint_folders(newest.parent)[-2]
    found, damaged = checkpoint.newest(newest.parent)
    if found is None or found.folder != before or list(damaged) != [newest]:
        wrong.append(f"{found and found.folder} is used, damaged: {[*damaged]}")
    return wrong


def resumed(place: Place, damage: Callable[[Path], str]) -> list[str]:
    """Damage the newest checkpoint of the stopped run and let it go on; what is wrong then."""
    run = place.folder / "resumed"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(place.folder / "stopped", run)
    newest = newest_of(run)
    done = damage(newest)
    ended = place.start(arguments("resumed"))
    output = place.output()
    wrong = [] if ended["code"] == 0 else [f"ended with {ended}: {output[-500:]}"]
    if f"the checkpoint of step {int(newest.name[5:])} is set aside in" not in output:
        wrong.append("not said to be set aside")
    if not list((run / "checkpoints" / "set-aside").glob(f"*/{newest.name}")):
        wrong.append("not set aside")
    if not wrong:
        expected, found = remains(place.folder / "whole"), remains(run)
        wrong = [f"{key} differs" for key in expected if expected[key] != found[key]]
    return [f"{done}: {fault}" for fault in wrong]


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


def refused(place: Place, make: Callable[[Path], object]) -> list[str]:
    """A run whose only checkpoint `make` makes must not go on, and not be changed."""
    run = place.folder / "hostile"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(place.folder / "stopped", run, ignore=shutil.ignore_patterns("checkpoints"))
    (run / "checkpoints").mkdir()
    make(run / "checkpoints")
    before = told(run)
    ended = place.start(arguments("hostile"))
    output = place.output()
    wrong = [] if ended["code"] == 2 else [f"ends with {ended['code']}, {ended['signal']}"]
    if "Traceback" in output or len(output.splitlines()) > 24:
        wrong.append("shows a traceback, or more than a screen")
    if told(run) != before or (place.folder / "canary").exists():
        wrong.append("changes something")
    return [f"{fault}: {output[-400:]}" for fault in wrong]


def told(folder: Path) -> dict[str, Any]:
    """Everything in a folder, by name; the lock says only who held it last."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if _is_plain(path)
        else path.lstat().st_mode
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def hostile_cases(place: Place) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Every hostile checkpoint with what makes it in the folder of checkpoints."""
    newest, parent = newest_of(place.folder / "stopped"), place.folder / "hostile" / "checkpoints"
    good = {p.name: p.read_bytes() for p in newest.iterdir() if p.name != "manifest.json"}
    for name, files in hostile(good).items():
        yield name, lambda checkpoints, files=files: sealed(checkpoints / newest.name, files)
    for name, make in odd_folders(parent, good).items():
        yield name, lambda _, make=make: make()
    yield "checkpoints is a file", _checkpoints_file


def _checkpoints_file(parent: Path) -> None:
    parent.rmdir()
    parent.write_text("x")


def main(flips: int = 1000, truncations: int = 100, resumes: int = 20, seed: int = 0) -> int:
    """Damage, count what was not noticed; 0 when that is nothing."""
    started, chance = time.monotonic(), random.Random(seed)  # noqa: S311
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        newest = newest_of(train(place)[1])
        for how, count in ((flip, flips), (cut, truncations)):
            found = 0
            for _ in range(count):
                with harmed(newest, chance, how) as done:
                    wrong = unnoticed(newest)
                found += not wrong
                bad += [f"{done}: {fault}" for fault in wrong]
            print(f"{how.__name__:<6} {found} of {count} found, the one before used", flush=True)
        before = len(bad)
        for _ in range(resumes):
            how = chance.choice((flip, cut))
            bad += resumed(place, lambda path, how=how: harm(path, chance, how))
        print(f"{resumes} resumed, {len(bad) - before} not equal", flush=True)
        before, count = len(bad), 0
        for name, make in hostile_cases(place):
            count += 1
            bad += [f"{name}: {fault}" for fault in refused(place, make)]
        print(f"{count} hostile checkpoints, {len(bad) - before} not refused", flush=True)
        place.close()
    print(*bad, sep="\n")
    print(f"{len(bad)} faults, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
