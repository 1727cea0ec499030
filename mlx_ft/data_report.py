"""The report on a dataset as a person meets it: on the terminal, and as files to keep."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import Config, DataConfig
from mlx_ft.data.advice import plan_advice
from mlx_ft.data.batch import Batches
from mlx_ft.data.locate import BUILTIN, BUILTIN_FOLDER
from mlx_ft.data.prepare import Dataset
from mlx_ft.plots import png
from mlx_ft.plots_data import data_figure

TITLES = {"train": "training", "valid": "validation", "test": "test"}
SET_ASIDE = "  of them set aside"
SHOWN_KEYS = 8  # of each file
SHOWN_FAULTS = 3  # of each code; the JSON file has fifty, the quarantine file all


@dataclass(frozen=True)
class Outlook:
    """What training on the data will be. seconds: None where no earlier run tells the speed.

    padding: share of the cells of a batch that would hold no token, were it padded. shared: share
    of its tokens that another of its rows begins with, too. measured_in: that run's folder.
    """

    steps: int
    epochs: float
    padding: float
    tokens: int
    seconds: float | None = None
    measured_in: str | None = None
    advice: tuple[str, ...] = ()
    shared: float = 0.0


def outlook(
    dataset: Dataset,
    batches: Batches,
    steps: int,
    epochs: float,
    speed: tuple[float, str] | None,
    config: Config,
) -> Outlook:
    """speed: tokens per second, and the run that it was measured in."""
    tokens = round(float(dataset.weights @ dataset.train.lengths) * epochs)
    padding = batches.padding()
    seconds, measured_in = (None, None) if speed is None else (tokens / speed[0], speed[1])
    advice = tuple(plan_advice(config, steps, epochs, padding))
    shared = batches.shared()
    return Outlook(steps, epochs, padding, tokens, seconds, measured_in, advice, shared)


def name_of(config: DataConfig) -> str:
    """`geography_sql` of `builtin:geography_sql`, `rows` of `my/rows.jsonl`."""
    if not isinstance(config.path, str):
        return "mixture"
    return Path(config.path.rpartition(":")[2]).name.split(".")[0]


def measured_speed(output_dir: Path, model: str, device: str) -> tuple[float, str] | None:
    """Tokens per second of the newest finished run with this model on this device."""
    for file in sorted(output_dir.glob("runs/*/summary.json"), key=_modified, reverse=True):
        try:
            summary = json.loads(file.read_text("utf-8"))
            same = (summary["model"], summary["device"], summary["status"]) == (
                model,
                device,
                "FINISHED",
            )
            if same and summary["tokens_per_second"] > 0:
                return float(summary["tokens_per_second"]), str(file.parent)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another version's, or damaged: it only means one measurement fewer
    return None


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0


def write(folder: Path, dataset: Dataset, ahead: Outlook | None) -> list[Path]:
    """Write `report.json`, `report.png` and, where rows were rejected, `quarantine.jsonl`."""
    [report, *others] = write_texts(folder, dataset, ahead)
    return [report, draw(folder, dataset), *others]


def write_texts(folder: Path, dataset: Dataset, ahead: Outlook | None) -> list[Path]:
    """What `write` does, without the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in dataset.report.items() if key != "first_faults"}
    content["outlook"] = asdict(ahead) if ahead else None
    written = [folder / "report.json"]
    written[0].write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for path in (dataset.quarantine, dataset.reasons):
        target = folder / path.name
        target.unlink(missing_ok=True)  # of an earlier report
        if path.exists() and path.stat().st_size:
            shutil.copyfile(path, target)
            written.append(target)
    return written


def draw(folder: Path, dataset: Dataset) -> Path:
    """Write `report.png`, which takes a second."""
    with warnings.catch_warnings():  # names in scripts that the font lacks: boxes will do
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        content = png(data_figure(_from_here(dataset.report)))
    path = folder / "report.png"
    path.write_bytes(content)
    return path


def _from_here(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its notes naming files as they are seen from the working folder."""
    here = f"{Path.cwd()}/"
    return {**report, "notes": [note.replace(here, "") for note in report["notes"]]}


def lines(report: Mapping[str, Any], ahead: Outlook | None) -> Iterator[str]:
    """The report in lines for a terminal or a log."""
    return (line.replace(f"{BUILTIN_FOLDER}/", BUILTIN) for line in _lines(report, ahead))


def _lines(report: Mapping[str, Any], ahead: Outlook | None) -> Iterator[str]:
    rows = report["rows"]
    aside = f" ({rows['set_aside']:,} of them set aside)" if rows["set_aside"] else ""
    yield (
        f"{rows['rows']:,} rows = {rows['kept']:,} kept{aside} + "
        f"{rows['truncated']:,} truncated + {rows['rejected']:,} rejected"
    )
    for file in report["files"]:
        kinds = ", ".join(f"{name} {count:,}" for name, count in file["formats"].items())
        weight = "" if file["weight"] == 1 else f", weight {file['weight']:g}"
        yield f"  {file['path']} ({TITLES[file['split']]}{weight}): {kinds or 'no usable row'}"
        if unused := file["unused_keys"]:
            names = [f"{key} ({count:,})" for key, count in list(unused.items())[:SHOWN_KEYS]]
            yield f"    keys that training does not use: {', '.join(names)}"
    yield from _epoch(report["epoch"])
    yield from _table(report)
    yield from _faults(report)
    advice = [*report["recommendations"], *(ahead.advice if ahead else ())]
    for title, sentences in (("Notes", report["notes"]), ("Recommendations", advice)):
        if sentences:
            yield ""
            yield title
            yield from (f"  - {sentence}" for sentence in sentences)
    if ahead is not None:
        yield ""
        yield _ahead(ahead)


def _epoch(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What an epoch shows of each source, where there are several, or one with a weight."""
    if len(sources) == 1 and sources[0]["weight"] == 1:
        return
    paths = [Path(source["path"]) for source in sources]
    unique = len({path.name for path in paths}) == len(paths)
    shares = [
        f"{'' if source['exact'] else 'about '}{source['shown']:,} of "
        f"{path.name if unique else path} (weight {source['weight']:g})"
        for source, path in zip(sources, paths, strict=True)
    ]
    yield f"  an epoch: {', '.join(shares)}"


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    splits = {name: stats for name, stats in report["splits"].items() if stats["rows"]}
    if not splits:
        return
    yield ""
    yield f"{'':<26}" + "".join(f"{TITLES[name]:>14}" for name in splits)
    for title, show in _FIGURES:
        if title == SET_ASIDE and not report["rows"]["set_aside"]:
            continue
        yield f"{title:<26}" + "".join(f"{show(stats):>14}" for stats in splits.values())
    if any(found["exact"] or found["near"] for found in report["overlap"].values()):
        for title, key in (("also in training", "exact"), ("  nearly", "near")):
            counts = [f"{report['overlap'].get(name, {}).get(key, '-'):>14}" for name in splits]
            yield f"{title:<26}{''.join(counts)}"


def _length(key: str, what: str) -> Any:
    return lambda stats: f"{stats[key][what]:,.0f}" if stats[key] else "-"


_FIGURES: Sequence[tuple[str, Any]] = (
    ("rows", lambda stats: f"{stats['rows']:,}"),
    (SET_ASIDE, lambda stats: f"{stats['set_aside']:,}"),
    ("turns", lambda stats: f"{stats['turns']:,}"),
    ("tokens", lambda stats: f"{stats['tokens']:,}"),
    ("target tokens", lambda stats: f"{stats['target_tokens']:,}"),
    ("share that carries loss", lambda stats: f"{stats['loss_share']:.1%}"),
    ("tokens a row, median", _length("length", "p50")),
    ("  95% are below", _length("length", "p95")),
    ("  longest", _length("length", "max")),
    ("targets a row, fewest", _length("targets", "min")),
    ("  median", _length("targets", "p50")),
    ("answers with a stop token", lambda stats: f"{stats['stop_coverage']:.1%}"),
    ("exact repeats", lambda stats: f"{stats['duplicates']:,}"),
    ("near repeats", lambda stats: f"{stats['near_duplicates']:,}"),
)


def _faults(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["faults"]:
        return
    yield ""
    yield "Faults"
    for fault in report["faults"]:
        yield f"  {fault['code']} ({fault['count']:,}): {fault['mend']}"
        said = None
        for one in fault["first"][:SHOWN_FAULTS]:
            yield f"    {one['where']}: {'the same' if one['fault'] == said else one['fault']}"
            said = one["fault"]
        if (more := fault["count"] - SHOWN_FAULTS) > 0:
            yield f"    ... and {more:,} more"


def _ahead(ahead: Outlook) -> str:
    text = (
        f"Training: {ahead.steps:,} step{'s' * (ahead.steps != 1)}, {ahead.epochs:.2f} epochs, "
        f"{ahead.tokens:,} tokens; "
        f"{ahead.padding:.1%} of a padded batch is padding"
        f", {ahead.shared:.1%} of its tokens another row begins with too"
    )
    if ahead.seconds is None:
        return f"{text}. How long it takes is known after a first run with this model."
    hours, rest = divmod(round(ahead.seconds), 3600)
    return (
        f"{text}; about {hours}:{rest // 60:02}:{rest % 60:02} at the speed of {ahead.measured_in}."
    )
