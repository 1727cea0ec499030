"""A sweep's folder: what the sweep is, and what has become of each trial, whoever asks when."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mlx_ft import durable
from mlx_ft.errors import ConfigError
from mlx_ft.runfolder import LOCK, held_files, read_json
from mlx_ft.sweeper.grid import Trial

SWEEP = "sweep.json"
TRIAL = "trial.json"  # how a trial ended, also one that came to no run
DONE = ("FINISHED", "FAILED", "PRUNED")
GOOD = ("FINISHED", "PRUNED")  # a trial that went as it was meant to
LONGEST_NAME = 60
# Where a sweep runs and how it is told of does not make it another one.
FREE = ("paths.", "tracking.", "sweep.", "log_level", "train.resume", "threads")


def common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all trials have alike, of their flat settings: what a sweep is known by."""
    first = settings[0]
    return {
        key: value
        for key, value in first.items()
        if not key.startswith(FREE) and all(other.get(key) == value for other in settings)
    }


def name_of(trials: Sequence[Trial], shared: Mapping[str, Any]) -> str:
    """A name for a sweep that has none: what varies, and a digest of everything."""
    content = json.dumps([sorted(t.name for t in trials), shared], sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    varying = re.findall(r"(\S+?)=", trials[0].name)
    words = re.sub(r"[^\w-]+", "_", "-".join(varying) or "trial")
    return f"{words[:LONGEST_NAME]}-{digest}"


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys that two sweeps share and differ in; those of `sweep` also where one has them."""
    own = {key for key in [*before, *now] if key.startswith("sweep.")} if before else set()
    return sorted(k for k in (before.keys() & now.keys()) | own if before.get(k) != now.get(k))


class Book:
    """The folder of one sweep.

    shared: what its trials have alike. Raises ConfigError when the folder holds another sweep;
    writes nothing until `open`.
    """

    def __init__(self, folder: Path, shared: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lock: IO[str] | None = None
        self._shared = json.loads(json.dumps(dict(shared), default=str))
        self._kept = read_json(folder / SWEEP)
        before = self._kept.get("settings", {})
        if differing := _differing(before, self._shared):
            raise ConfigError(
                f"{folder} holds a sweep with other settings. Choose another sweep.name=NAME (or "
                "hydra.sweep.dir=FOLDER)",
                [f"{k}: {before.get(k)!r} there, {self._shared.get(k)!r} now" for k in differing],
            )

    @property
    def is_closed(self) -> bool:
        """Whether the sweep came to its end, with a report of all of its trials."""
        return bool(self._kept.get("closed"))

    def open(self, count: int) -> None:
        """Take the folder for this process. Raises ConfigError when another one has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = durable.lock(self.folder / LOCK)
        except BlockingIOError:
            raise ConfigError(
                f"{self.folder}: another process runs this sweep. Wait for it, or choose another "
                "sweep.name"
            ) from None
        before = self._kept.get("settings", self._shared)
        alike = {key: value for key, value in before.items() if key in self._shared}
        self._kept = {"settings": alike, "trials": count, "closed": False}
        self._write()

    def close(self, *, whole: bool) -> None:
        """Let go of the folder. whole: all trials have come to an end."""
        if whole:
            self._kept["closed"] = True
            self._write()
        if self._lock is not None:
            self._lock.close()

    def _write(self) -> None:
        durable.write(self.folder / SWEEP, (json.dumps(self._kept, indent=1) + "\n").encode())

    def place(self, trial: Trial) -> Path:
        """A trial's folder."""
        return self.folder / trial.folder

    def status(self, trial: Trial) -> str:
        """FINISHED, FAILED, PRUNED, STARTED (it can go on), or NEW.

        By what is written last: a process that was killed between a run's summary and this has
        not told the tracker how the run ended, and is to do so now.
        """
        place = self.place(trial)
        kept = read_json(place / TRIAL)
        if kept.get("status") in DONE and not kept.get("refused"):
            return str(kept["status"])
        return "STARTED" if held_files(place) else "NEW"
