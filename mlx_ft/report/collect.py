"""What is to be compared: sweeps, run folders, ids and MLflow's runs -> rows."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.errors import UserError
from mlx_ft.report.read import TRIAL, Row, row_of, run_folders, told_apart, written
from mlx_ft.runfolder import JOURNAL, held_files, read_json
from mlx_ft.tracking.journal import run_id_of

SWEEP, TABLE = "sweep.json", "trials.csv"  # a sweep's folder has the former, and at its end both
AFTER_KEYS = "status"  # the column of `trials.csv` before which the swept keys stand
SHORTEST_ID = 4  # characters of an id or a name that stand for it
KINDS = ("sweeps", "runs")  # folders in the outputs
ABSENT = object()  # a setting that a run does not have; one that is null has it
# Where a run was and how it was told of does not make it another one.
FREE = ("paths.", "tracking.", "sweep.", "log_level", "threads", "train.resume", "seed", "hydra.")


@dataclass(frozen=True)
class Collection:
    """Rows to compare. keys: those that vary, without the seed. notes: what is to be said of them.

    alike: a key -> others that vary just as it does, so that nobody can tell them apart. folder: of
    the sweep, if it is one.
    """

    title: str
    rows: Sequence[Row]
    keys: Sequence[str]
    notes: Sequence[str] = ()
    alike: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folder: Path | None = None


def collect(places: Sequence[str], outputs: Path) -> Collection:
    """The runs that places name: folders of sweeps or runs, names in `outputs`, ids of runs.

    Raises UserError with everything that is not found.
    """
    found, faults = dict[Path, None](), list[str]()
    for place in places:
        try:
            found |= dict.fromkeys(_named(place, outputs))
        except UserError as error:
            faults.append(error.message)
    if faults:
        raise UserError("mlx-ft report finds no runs there:", faults)
    if len(found) == 1 and is_sweep(only := next(iter(found))):
        return sweep(only)
    notes: list[str] = []
    rows: dict[Path | int, Row] = {}
    for folder in found:
        part = sweep(folder) if is_sweep(folder) else _run(folder)
        notes += part.notes
        for row in part.rows:
            rows.setdefault(len(rows) if row.folder is None else row.folder.absolute(), row)
    return of_rows(f"{len(rows)} runs", [*rows.values()], notes)


def _run(folder: Path) -> Collection:
    notes: list[str] = []
    return Collection(folder.name, [row_of(folder, notes)], [], notes)


def newest_sweep(outputs: Path) -> Path:
    """The sweep that was begun last. Raises UserError when there is none."""
    found = [path.parent for path in outputs.glob(f"sweeps/*/{SWEEP}")]
    if not found:
        raise UserError(
            f"There is no sweep in {outputs.absolute()}. Name run folders, or --query MLflow"
        )
    return max(found, key=lambda folder: (folder / SWEEP).stat().st_mtime)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / SWEEP).is_file() or (folder / TABLE).is_file()


def sweep(folder: Path) -> Collection:
    """The trials of a sweep: those of its table, and those that it does not have yet."""
    notes: list[str] = []
    keys, listed = _table(folder / TABLE, notes)
    rows, known = list[Row](), set[Path]()
    for values in listed:
        place = _trial_folder(folder, values.get("run_dir", ""))
        row = row_of(place, notes) if place else Row("NOT RUN", {})
        if row.status == "NOT RUN":
            error = values.get("error") or row.error
            row = replace(row, status=values.get(AFTER_KEYS, row.status), error=error)
        rows.append(replace(row, settings={**row.settings, **_swept(values, keys)}))
        known |= {place.absolute()} if place else set()
    begun = (*run_folders(folder), *(path.parent for path in sorted(folder.rglob(TRIAL))))
    later = [place for place in dict.fromkeys(begun) if place.absolute() not in known]
    rows += [row_of(place, notes) for place in later]
    missing = read_json(folder / SWEEP).get("trials", 0)
    if isinstance(missing, int) and missing > len(rows):
        notes.append(f"{missing - len(rows)} of the sweep's {missing} trials were not begun yet")
    title = f"{'Sweep' if (folder / SWEEP).is_file() else 'Runs of'} {folder.absolute().name}"
    if not keys or later:
        return replace(of_rows(title, rows, notes), folder=folder)
    return Collection(title, rows, [k for k in keys if k != "seed"], [*notes, *_unlike(rows)],
                      folder=folder)  # fmt: skip


def of_rows(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> Collection:
    """Rows of any origin, compared by the settings that vary among them."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row.settings):
        pattern = _pattern([row.settings.get(key, ABSENT) for row in rows])
        if not key.startswith(FREE) and len({*pattern} - {-1}) > 1:
            groups.setdefault(pattern, []).append(key)
    alike = {first: others for first, *others in groups.values() if others}
    said = [f"{first} varies together with {', '.join(more)}" for first, more in alike.items()]
    keys = [keys[0] for keys in groups.values()]
    return Collection(title, rows, keys, [*notes, *said, *_unlike(rows)], alike)


def of_query(config: Config, query: str) -> Collection:
    """The runs of MLflow that a query finds, from their folders where these are on this machine.

    Raises UserError when there are none, or the query is none; MlxFtError when MLflow fails.
    """
    from mlx_ft.tracking.query import find_runs  # MLflow costs seconds

    notes: list[str] = []
    found, parents = find_runs(config, query)
    if parents:
        notes.append(f"{parents} of the runs that were found hold a sweep together: left out")
    if not found:
        raise UserError(f"--query {query!r}: MLflow has no such run")
    rows = []
    for run in found:
        if run.folder is not None and held_files(run.folder):
            rows.append(replace(row_of(run.folder, notes), run_id=run.run_id))
        else:
            settings = written({key: _parameter(text) for key, text in run.params.items()})
            rows.append(Row(run.status, settings, run.figures, run.curves, error=run.reason,
                            run_id=run.run_id))  # fmt: skip
    if elsewhere := sum(row.folder is None for row in rows):
        notes.append(f"{elsewhere} runs have no folder here: what MLflow knows of them is shown")
    return of_rows(f"MLflow: {query}", rows, notes)


def _named(place: str, outputs: Path) -> list[Path]:
    """Folders of runs, or of one sweep. Raises UserError."""
    for folder in (Path(place).expanduser(), *(outputs / kind / place for kind in KINDS)):
        if is_sweep(folder) or held_files(folder):
            return [folder]
        if folder.is_dir() and (inside := run_folders(folder)):
            return inside
    named = [folder for folder in (*_sweeps(outputs), *run_folders(outputs))
             if place in (folder.name, _run_id(folder))]  # fmt: skip
    if not named and len(place) >= SHORTEST_ID:
        named = [
            folder
            for folder in (*_sweeps(outputs), *run_folders(outputs))
            if folder.name.startswith(place) or (_run_id(folder) or "").startswith(place)
        ]
    if len(named) > 1:
        some = ", ".join(folder.name for folder in named[:4])
        raise UserError(f"{place}: {len(named)} runs begin so ({some}, ...). Give more of it")
    if not named:
        raise UserError(
            f"{place}: no folder of runs, and no sweep, run or id in {outputs.absolute()}"
        )
    return named


def _sweeps(outputs: Path) -> list[Path]:
    return [path.parent for path in outputs.rglob(SWEEP)]


def _run_id(folder: Path) -> str | None:
    """MLflow's id of a run or a sweep; one that was killed has it in its journal alone."""
    found = read_json(folder / "summary.json").get("run_id")
    return str(found) if found else run_id_of(folder / JOURNAL)


def _table(path: Path, notes: list[str]) -> tuple[list[str], list[dict[str, str]]]:
    """The keys that were swept, and what `trials.csv` says of each trial."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = csv.reader(file)
        keys = head[: head.index(AFTER_KEYS)]
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"{path} cannot be used, so the trials' folders are looked at: {error}")
        return [], []
    whole = [dict(zip(head, line, strict=True)) for line in lines if len(line) == len(head)]
    if len(whole) < len(lines):
        notes.append(f"{path}: {len(lines) - len(whole)} damaged lines are left out")
    return keys, whole


def _trial_folder(folder: Path, noted: str) -> Path | None:
    """Where a trial is now: in the sweep's folder, which may have moved, or where it was."""
    parts = Path(noted).parts
    inside = [folder.joinpath(*parts[-count:]) for count in range(1, len(parts))]
    return next((path for path in (*inside, Path(noted)) if noted and path.is_dir()), None)


def _swept(values: Mapping[str, str], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value_of(values[key]) for key in keys}


def value_of(text: str) -> Any:
    """A number where the text is one; YAML takes `1e-4` for text."""
    for kind in (int, float):
        if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text, re.IGNORECASE):
            try:
                return kind(text)
            except ValueError:
                continue
    return text.strip("'\"")


def _parameter(text: str) -> Any:
    """What MLflow has as text: JSON, but for texts."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pattern(values: Sequence[Any]) -> tuple[int, ...]:
    """Which values are alike: the number of each among those that differ; -1 where none is."""
    seen: dict[str, int] = {}
    return tuple(
        -1 if value is ABSENT else seen.setdefault(told_apart(value), len(seen)) for value in values
    )


def _unlike(rows: Sequence[Row]) -> list[str]:
    """What makes figures of these runs hard to compare."""
    said = []
    for part, key, what in (("data", "digest", "data"), ("model", "weights", "base weights")):
        kinds = {str(found) for row in rows if (found := _part(row, part).get(key))}
        if len(kinds) > 1:
            said.append(
                f"the runs have {len(kinds)} different {what}: a loss of one need not mean the "
                "same as that of another"
            )
    return said


def _part(row: Row, name: str) -> Mapping[str, Any]:
    found = row.origin.get(name)
    return found if isinstance(found, Mapping) else {}
