"""`mlx-ft runs` and `mlx-ft diff`: runs by their folders, without MLflow and without MLX."""

from __future__ import annotations

import argparse
import csv
import operator
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlx_ft import cli_help
from mlx_ft.errors import UserError
from mlx_ft.report.read import flat, run_folders
from mlx_ft.runfolder import ORIGIN, read_json
from mlx_ft.runtime import default_output_dir

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SHOWN = ("status", "val_loss_after", "accuracy_after", "wall_seconds", "peak_memory_gb")
# What differs between any two runs, or says where and not what.
PLACES = ("working_dir", "adapter_path", "run_id", "wall_seconds", "train_seconds", "reason")
COMPARISONS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
               "<=": operator.le, ">=": operator.ge}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder. values: its settings by dotted keys, and its figures."""

    folder: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """What `config.yaml` and `summary.json` say; a run without the latter is unfinished."""
        try:
            content = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            content = {}
        return cls(folder, {**flat(content), "status": "UNFINISHED",
                            **read_json(folder / "summary.json")})  # fmt: skip


def add_commands(commands: Commands) -> None:
    """Add both to the parser of `mlx-ft`."""
    runs = cli_help.add(commands, "runs", "list, filter and compare runs", cli_help.RUNS)
    runs.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="default: outputs")
    runs.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE",
        help="only runs with this setting or figure; also != < > <= >=; may be repeated",
    )  # fmt: skip
    runs.add_argument("--columns", default="", metavar="KEY,...", help="settings to show as well")
    runs.add_argument("--sort", default="", metavar="KEY", help="by this figure, the lowest first")
    runs.add_argument("--csv", action="store_true", help="comma-separated, with all digits")
    runs.set_defaults(command=_runs)
    diff = cli_help.add(
        commands, "diff", "what two runs differ in: settings, data, results", cli_help.DIFF
    )
    diff.add_argument("first", metavar="A", help="run folder or run id")
    diff.add_argument("second", metavar="B")
    diff.set_defaults(command=_diff)


def _runs(args: argparse.Namespace) -> int:
    folders = args.folders or [default_output_dir()]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise UserError(f"no such folder: {', '.join(missing)}")
    conditions = [_condition(text) for text in args.where]
    runs = [Run.read(path) for folder in folders for path in run_folders(folder)]
    columns = [*(key for key in args.columns.split(",") if key), *SHOWN]
    _check_keys(runs, [*columns[: -len(SHOWN)], *([args.sort] if args.sort else []),
                       *(key for key, _, _ in conditions)])  # fmt: skip
    found = [run for run in runs if all(_holds(run, *one) for one in conditions)]
    if args.sort:
        found.sort(key=lambda run: _order(run.values.get(args.sort)))
    if not found:
        print(f"No such runs among {len(runs)} in {', '.join(map(str, folders))}.", file=sys.stderr)
        return 1
    lines = [["run", *columns]]
    lines += [[_place(run.folder), *(_text(run.values.get(key), args.csv) for key in columns)]
              for run in found]  # fmt: skip
    if args.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(lines)
        return 0
    print("\n".join(_aligned(lines)))
    return 0


def _condition(text: str) -> tuple[str, str, Any]:
    match = re.fullmatch(r"([\w.]+)(<=|>=|!=|=|<|>)(.*)", text, re.DOTALL)
    if match is None:
        raise UserError(f"--where {text!r}: expected KEY=VALUE, or != < > <= >= in place of =")
    try:
        return match[1], match[2], yaml.safe_load(match[3])
    except yaml.YAMLError:
        return match[1], match[2], match[3]


def _check_keys(runs: Sequence[Run], wanted: Sequence[str]) -> None:
    """Raise UserError for a key that no run has, rather than show an empty column."""
    known = {key for run in runs for key in run.values}
    faults = [f"no run has {key}" for key in wanted if key not in known]
    if faults and runs:
        some = ", ".join(sorted(key for key in known if key.endswith(("_after", ".rank", "_rate"))))
        raise UserError(f"there is no such setting or figure. Some that there are: {some}", faults)


def _holds(run: Run, key: str, sign: str, wanted: Any) -> bool:
    value = _number(run.values.get(key))
    try:
        return bool(COMPARISONS[sign](value, _number(wanted)))
    except TypeError:  # a word is neither above nor below a number
        return False


def _number(value: Any) -> Any:
    """`1e-4` is text to YAML."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _order(value: Any) -> tuple[bool, float, str]:
    number = _number(value)
    is_number = isinstance(number, (int, float))
    return not is_number, float(number) if is_number else 0.0, str(value)


def _diff(args: argparse.Namespace) -> int:
    from mlx_ft import target

    outputs = default_output_dir()
    first, second = (
        Run.read(target.named(text, outputs).folder) for text in (args.first, args.second)
    )
    lines = [["", _place(first.folder), _place(second.folder)], *_differences(first, second)]
    print("\n".join(_aligned(lines)))
    if len(lines) == 1:
        print("They differ in nothing but time and place.")
    return 0


def _differences(first: Run, second: Run) -> Iterator[list[str]]:
    """(key, value there, value here): settings, then data and weights, then figures."""
    origins = [read_json(run.folder / ORIGIN).get("fingerprint", {}) for run in (first, second)]
    for part in ("data", "model", "versions"):
        a, b = (flat({part: origin.get(part) or {}}) for origin in origins)
        yield from ([k, _short(a.get(k)), _short(b.get(k))]
                    for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))  # fmt: skip
    one, other = first.values, second.values
    for key in sorted(one.keys() | other.keys(), key=lambda key: ("." not in key, key)):
        if one.get(key) != other.get(key) and key not in PLACES:
            yield [key, _text(one.get(key), exact=False), _text(other.get(key), exact=False)]


def _place(folder: Path) -> str:
    here, there = Path.cwd(), folder.absolute()
    return str(there.relative_to(here)) if there.is_relative_to(here) else str(there)


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"


def _text(value: Any, exact: bool) -> str:
    if value is None:
        return "" if exact else "-"
    return f"{value:.4g}" if isinstance(value, float) and not exact else str(value)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
