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

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proofs.hostile_checkpoints import hostile_cases  # noqa: E402
from proofs.kills import COMMON, Place, remains  # noqa: E402

JOB = ("checkpoint.keep_last=4", "tracking=none", "train.max_steps=12", "train.log_every=6")


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
            bad += resumed(place, partial(harm, chance=chance, how=how))
        print(f"{resumes} resumed, {len(bad) - before} not equal", flush=True)
        count = taken = 0
        for name, make in hostile_cases(newest, place.folder / "hostile" / "checkpoints"):
            wrong = refused(place, make)
            count, taken = count + 1, taken + bool(wrong)
            bad += [f"{name}: {fault}" for fault in wrong]
        print(f"{count} hostile checkpoints, {taken} not refused as they should be", flush=True)
        place.close()
    print(*bad, sep="\n")
    print(f"{len(bad)} faults, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
