"""Every error that is meant for a person: what, where, what was found, what to do next."""

from __future__ import annotations

from collections.abc import Sequence


class MlxFtError(Exception):
    """A failure with a message for the user; shown without a traceback.

    message: one or more lines. faults: when several things are wrong, one line each;
    all are shown together. `exit_code` is the process's exit code.
    """

    exit_code = 1

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        self.message = message
        self.faults = tuple(faults)
        super().__init__(message)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {fault}" for fault in self.faults)])


class UserError(MlxFtError):
    """A mistake in what the user gave: found before anything was written."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration: an unknown key, a wrong type, a value out of range."""


class DataError(UserError):
    """The data: a missing file, a row that cannot be used."""


class ModelError(UserError):
    """The model: not there, not complete, not safe, not fitting its description."""


class AdapterError(UserError):
    """An adapter: not there, damaged, or made for another model."""


class OutputError(UserError):
    """The run folder: not writable, or already holding a run."""


class InUseError(OutputError):
    """The run folder: another process trains there."""


class CheckpointError(UserError):
    """A checkpoint: none there, damaged, or of a run that differs from the one asked for."""


class TrainingError(MlxFtError):
    """The training itself failed: non-finite beyond patience, out of memory."""


class TeamError(TrainingError):
    """Another process of the same run is gone."""


class StorageError(MlxFtError):
    """A file of the run could not be written: the disk is full, read-only, or gone."""


class Interrupted(MlxFtError):
    """The user or the system asked the run to stop (Ctrl-C: 130, SIGTERM: 143)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
