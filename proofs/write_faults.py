"""Disks that fail: at every write of a save and of a whole run, in every way that can be made here.

python proofs/write_faults.py [calls=0] [others=10] [seed=0]

Each call that changes a file of the run folder (open, write, fsync, rename, mkdir, unlink...) fails
once in its turn with ENOSPC, EIO, EDQUOT or EROFS, for that one call or from there on; `calls`
limits a whole run's to so many, at random. Then `others` times each: a limit on the size of files,
a small tmpfs that the run fills, a tmpfs that something else fills in the middle, and the run
folder removed in the middle. After each of them:

- no half checkpoint has a final name, and the last one that was said to be saved still loads;
- the exit code is 1 (2 where the run folder could not even be made), and one message without a
  traceback says what could not be written, where, and how to go on; or the file was not needed, and
  the run is finished and equal;
- with room again `train.resume=auto` ends equal to the run whose disk was well, and leaves nothing
  unfinished behind.
"""

from __future__ import annotations

import logging
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proofs.faulty_disk import FaultyDisk  # noqa: E402
from proofs.kills import COMMON, Place, remains  # noqa: E402

JOB = (
    "tracking=none", "train.max_steps=6", "checkpoint.every=2", "eval.every=3",
    "eval.task_rows=1", "eval.max_tokens=1", "train.log_every=3",
)  # fmt: skip
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
# What a run does without, saying so where it matters.
SPARED = ("tracking.jsonl", "crash.log", "train.log", ".pressure")
IDLE = ("unlink", "rmdir", "mkdir")  # of what may be gone, or there, already


def arguments(run: str) -> list[str]:
    """The command line of the run in the folder `run`."""
    given = {text.partition("=")[0] for text in JOB}
    common = [text for text in COMMON if text.partition("=")[0] not in given]
    return [*common, *JOB, f"hydra.run.dir={run}"]


def wrong_checkpoints(run: Path, saved: int = 0) -> list[str]:
    """Half checkpoints under a final name; and whether the newest is as new as step `saved`."""
    from mlx_ft import checkpoint
    from mlx_ft.runfolder import checkpoint_folders, step_of

    folders = checkpoint_folders(run / "checkpoints")
    wrong = [f"{path.name} is half: {f}" for path in folders for f in checkpoint.damage(path)]
    found, _ = checkpoint.newest(run / "checkpoints")
    newest = step_of(found.folder) if found else 0
    return wrong + ([f"step {saved} was saved, the newest is {newest}"] if newest < saved else [])


def leftovers(run: Path) -> list[str]:
    """What no run leaves behind that ended well."""
    return [
        f"left behind: {path.relative_to(run)}"
        for path in run.rglob("*")
        if path.name == "crash.log" or (path.name.startswith(".") and path.name != ".lock")
    ]


def differing(whole: Path, run: Path) -> list[str]:
    """What is not, to the bit, as in the run whose disk was well."""
    if not (run / "adapter").is_dir():
        return ["there is no adapter"]
    expected, found = remains(whole), remains(run)
    return [f"{key} differs" for key in expected if expected[key] != found[key]]


def told_wrongly(ended: dict[str, Any], output: str) -> list[str]:
    """What is wrong with the end of a run that failed, and with what it said."""
    wrong = [] if ended["code"] in (1, 2) else [f"ends with {ended['code']}, {ended['signal']}"]
    if "Traceback" in output:
        wrong.append("shows a traceback")
    if ended["code"] == 2:
        needed = ["cannot write to"]
    else:
        needed = ["could not be written|was removed or renamed", "go on",
                  "Run folder: |saved in |the run folder"]  # fmt: skip
    wrong += [f"does not say {text!r}" for text in needed if not re.search(text, output)]
    if len(re.findall("could not be written", output)) > 2:
        wrong.append("says it more than twice")
    return wrong


def judge(place: Place, whole: Path, run: str, ended: dict[str, Any]) -> list[str]:
    """What is wrong after a run whose disk failed, and after it went on with a good one."""
    folder, output = place.folder / run, place.output()
    saved = max(map(int, re.findall(r"checkpoint of step (\d+) saved", output)), default=0)
    wrong = [] if not folder.exists() else wrong_checkpoints(folder, saved)
    if ended["code"] == 0:
        wrong += differing(whole, folder)
        if "Traceback" in output:
            wrong.append("shows a traceback")
    else:
        wrong += told_wrongly(ended, output)
    shown = output[-700:] if wrong else ""
    again = place.start(arguments(run))
    if again["code"] != 0:
        return [*wrong, f"does not go on: {again}: {place.output()[-700:]}"]
    place.output()
    wrong += [f"after going on: {f}" for f in differing(whole, folder) + leftovers(folder)]
    return [f"{fault}\n{shown}" if shown else fault for fault in wrong]


def every_call(
    place: Place, whole: Path, calls: list[tuple[int, str, bool]]
) -> Iterator[tuple[str, list[str]]]:
    """A run for each (number of the call, error, whether it stays); what is wrong with it."""
    for number, error, stays in calls:
        run = f"call-{number}-{error}-{stays:d}"
        disk = {"under": str(place.folder / run), "call": number, "error": error, "stays": stays}
        ended = place.start(arguments(run), disk=disk)
        kind, path = ended["calls"][number - 1] if len(ended["calls"]) >= number else ("none", "")
        wrong = judge(place, whole, run, ended)
        if kind in IDLE and ended["code"] == 0:  # said, and out of every run's way
            wrong = [fault for fault in wrong if "left behind: checkpoints/.tmp-" not in fault]
        needed = kind not in IDLE and not path.endswith(SPARED) and not stays
        if ended["code"] == 0 and needed and kind != "none":
            wrong.append("ends as if nothing had happened")
        shutil.rmtree(place.folder / run, ignore_errors=True)
        yield f"call {number} ({kind} {path}) {error}{' from there on' if stays else ''}", wrong


def saves(folder: Path, errors: Sequence[str] = ERRORS) -> tuple[int, list[str]]:
    """Every call of one save fails in its turn, in this process; (how many, what is wrong)."""
    from mlx_ft import checkpoint

    names = ("adapters.safetensors", "optimizer.safetensors", "state.json")
    files = {name: name.encode() * 9999 for name in names}
    count, wrong = 0, []
    for error in errors:
        for stays in (False, True):
            number = 0
            while True:
                number += 1
                parent = folder / f"{error}-{stays}-{number}"
                checkpoint.save(parent, 3, files)
                with FaultyDisk(parent, number, error, stays) as disk, suppress(OSError):
                    checkpoint.save(parent, 6, files)
                    checkpoint.prune(parent, 1, 3)
                if len(disk.calls) < number:
                    break
                count += 1
                wrong += [f"{error} at call {number}: {f}" for f in _half(parent, files)]
    return count, wrong


def _half(parent: Path, files: dict[str, bytes]) -> list[str]:
    from mlx_ft import checkpoint

    folders = sorted(path for path in parent.iterdir() if path.name.startswith("step-"))
    wrong = [fault for path in folders for fault in checkpoint.damage(path)]
    if not folders:
        wrong.append("no checkpoint is left")
    checkpoint.sweep(parent)
    checkpoint.save(parent, 6, files)
    others = [path.name for path in parent.iterdir() if not path.name.startswith("step-")]
    return wrong + [f"left behind: {name}" for name in others]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A tmpfs of `size` bytes at `folder`. Raises RuntimeError where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"no tmpfs can be mounted: {error}") from None
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def enlarge(folder: Path) -> None:
    """There is room again on a small disk."""
    subprocess.run(["mount", "-o", "remount,size=64M", str(folder)], check=True)


def fill(path: Path) -> None:
    """Fill a disk to its last byte."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass


def remove(run: Path) -> None:
    """Remove a run folder, whatever is written into it meanwhile."""
    for _ in range(100):
        shutil.rmtree(run, ignore_errors=True)
        if not run.exists():
            return


def later(seconds: float, work: Callable[[Path], None], path: Path) -> threading.Timer:
    """Do something to a path after a while, beside the run."""
    (timer := threading.Timer(seconds, work, [path])).start()
    return timer


def size_limits(place: Place, whole: Path, count: int, chance: random.Random) -> Iterator[Any]:
    """RLIMIT_FSIZE: each file of the run up to some size."""
    sizes = [p.stat().st_size for p in whole.rglob("*") if p.is_file()]
    for number in range(count):
        run, limit = f"limit-{number}", max(0, chance.choice(sizes) - chance.randint(1, 3))
        ended = place.start(arguments(run), file_size=limit)
        yield f"files up to {limit} bytes", judge(place, whole, run, ended)


def full_disks(place: Place, whole: Path, count: int, chance: random.Random) -> Iterator[Any]:
    """A tmpfs too small for the run; and one that something else fills in the middle."""
    needed = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    for number in range(2 * count):
        disk, filled = place.folder / f"disk-{number}", number % 2
        run = f"{disk.name}/run"
        size = (1 << 24) if filled else max(4096, int(chance.random() * needed))
        with small_disk(disk, size):
            timer = later(chance.uniform(0.1, 1.5), fill, disk / "fill") if filled else None
            ended = place.start(arguments(run))
            if timer is not None:
                timer.join()
            (disk / "fill").unlink(missing_ok=True)
            enlarge(disk)
            wrong = judge(place, whole, run, ended)
        yield f"disk {'filled by others' if filled else f'of {size} bytes'}", wrong


def removed(place: Place, whole: Path, count: int, chance: random.Random) -> Iterator[Any]:
    """The run folder is removed in the middle of the run."""
    for number in range(count):
        run = f"removed-{number}"
        timer = later(chance.uniform(0.2, 1.5), remove, place.folder / run)
        ended = place.start(arguments(run))
        timer.join()
        yield "removed", judge(place, whole, run, ended)


def main(calls: int = 0, others: int = 10, seed: int = 0) -> int:
    """Let disks fail and print what went wrong; 0 when nothing did."""
    started, chance, bad = time.monotonic(), random.Random(seed), 0  # noqa: S311
    logging.disable(logging.WARNING)  # of this process: what could not be removed
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        count, wrong = saves(place.folder / "saves")
        print(f"{count:4} calls of a save: {len(wrong)} faults", *wrong, sep="\n  ", flush=True)
        bad += len(wrong)
        whole = place.folder / "whole"
        disk = {"under": str(whole), "call": 0}
        plain = place.start(arguments("whole"), disk=disk)
        assert plain["code"] == 0, place.output()
        place.output()
        total = len(plain["calls"])
        todo = [(n, ERRORS[n % 4], bool(n // 4 % 2)) for n in range(1, total + 1)]
        chosen = chance.sample(todo, calls) if 0 < calls < total else todo
        print(f"a run makes {total} calls: {dict(Counter(k for k, _ in plain['calls']))}")
        parts: dict[str, Iterator[tuple[str, list[str]]]] = {
            "calls of a run": every_call(place, whole, chosen),
            "limits on the size of files": size_limits(place, whole, others, chance),
            "full disks": full_disks(place, whole, others, chance),
            "folders removed": removed(place, whole, others, chance),
        }
        for name, cases in parts.items():
            count, faults = 0, 0
            try:
                for what, wrong in cases:
                    count, faults = count + 1, faults + bool(wrong)
                    for fault in wrong:
                        print(f"  {what}: {fault}", flush=True)
            except RuntimeError as error:
                print(f"  skipped: {error}")
            print(f"{count:4} {name}: {faults} with faults", flush=True)
            bad += faults
        place.close()
    print(f"{bad} faults, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
