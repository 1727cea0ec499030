"""`mlx-ft validate` and `mlx-ft data`: look at data, convert it, make it from documents."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft import cli_help
from mlx_ft.config import quoted
from mlx_ft.errors import DataError, MlxFtError, OutputError, UserError

if TYPE_CHECKING:
    from mlx_ft.config.schema import Config
    from mlx_ft.data.prepare import Dataset
    from mlx_ft.data.read import ReadStats
    from mlx_ft.data_report import Outlook

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands, given: Sequence[str]) -> None:
    """Add `validate` and `data`. given: the arguments; they decide what has to be imported."""
    raw = argparse.RawDescriptionHelpFormatter
    validate = commands.add_parser(
        "validate", help="a report on the data, before training",
        description=cli_help.VALIDATE, formatter_class=raw,
    )  # fmt: skip
    validate.add_argument("overrides", nargs="*", metavar="DATA or KEY=VALUE", action=_Overrides,
                          help="a file or folder of rows, a built-in dataset, settings; "
                               "default: the rows that `mlx-ft train` takes")  # fmt: skip
    validate.add_argument("--out", type=Path, metavar="FOLDER",
                          help="where the report goes; default: in outputs/validate")  # fmt: skip
    validate.add_argument("--json", action="store_true", help="print the report as JSON")
    validate.set_defaults(command=_validate)
    data = commands.add_parser("data", help="built-in datasets, conversion, data from documents")
    actions = data.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("list", help="the built-in datasets").set_defaults(command=_list)
    convert = actions.add_parser(
        "convert", help="rows from one format to another",
        description=cli_help.CONVERT, formatter_class=raw,
    )  # fmt: skip
    convert.add_argument("source", type=Path, metavar="IN", help="a file of rows, of any kind")
    convert.add_argument("target", type=Path, metavar="OUT", help="its name says its kind")
    convert.add_argument("--to", required=True, choices=TARGETS)
    convert.add_argument(
        "--format", default="auto", help="the rows' format; default: by their keys"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    convert.set_defaults(command=_convert)
    documents = actions.add_parser(
        "from-documents", help="questions and answers from Markdown, HTML, PDF, Word, Python files",
        usage="%(prog)s SOURCE --out FOLDER [options]", description=cli_help.DOCUMENTS,
        formatter_class=raw,
    )  # fmt: skip
    if given[:1] == ["data"]:  # the readers cost time to import
        from mlx_ft.documents import command

        command.add_arguments(documents)
        for action in documents._actions:
            about = cli_help.DOCUMENTS_OPTIONS.get(action.dest)
            action.metavar, action.help = about or (action.metavar, action.help)
        documents.set_defaults(command=command.main)


TARGETS = ("messages", "sharegpt", "alpaca", "chatml", "prompt-completion")
SHOWN_FAULTS = 15
NO_DATASETS = ("custom", "default")  # of conf/data: settings for rows that are named elsewhere


class _Overrides(argparse.Action):
    """The settings of `validate`, with data that is named alone made one of them."""

    def __call__(
        self, _parser: object, namespace: argparse.Namespace, values: Any, _option: object = None
    ) -> None:
        setattr(namespace, self.dest, _settings(values))


def _settings(words: Sequence[str]) -> list[str]:
    """`data=custom data.path=rows.jsonl` for `rows.jsonl`, `data=NAME` for a dataset's name.

    What else is no setting is left for the check of the arguments. Raises UserError for several
    names, and for one that is nearly a dataset's.
    """
    from mlx_ft.config.compose import CommandLine
    from mlx_ft.config.keys import keys, sections

    groups = CommandLine(()).groups
    keywords = {*keys(), *sections(), *groups.names()}  # a setting without value, or a folder
    alone = [
        word for word in words
        if "=" not in word and not word.startswith(("+", "~", "-"))
        and (word not in keywords or Path(word).exists())
    ]  # fmt: skip
    if not alone or any(word.startswith("data.path=") for word in words):
        return list(words)
    if len(alone) > 1:
        several = ",".join(quoted(word) for word in alone)
        raise UserError(
            f"One file, folder or dataset can be named alone; found {len(alone)}. Put quotes "
            "around a name with spaces. For several files: "
            f'mlx-ft validate data=custom "data.path=[{several}]"'
        )
    name, rest = alone[0], [word for word in words if word != alone[0]]
    if name.isidentifier() and not Path(name).exists():
        datasets = [choice for choice in groups.options("data") if choice not in NO_DATASETS]
        if name in datasets:
            return [f"data={name}", *rest]
        if close := difflib.get_close_matches(name, datasets, n=1):
            raise UserError(f"No file, folder or dataset {name!r}. Did you mean {close[0]}?")
    custom = [] if any(word.startswith("data=") for word in rest) else ["data=custom"]
    return [*custom, f"data.path={quoted(name)}", *rest]


def _validate(args: argparse.Namespace) -> int:
    from mlx_ft.config import compose

    command = compose.CommandLine(tuple(args.overrides))
    compose.check(command)
    config: Config = compose.resolve(compose.compose(compose.open_hydra(command), command))
    from mlx_ft import runtime

    cache_dir = Path(config.paths.cache_dir).expanduser()
    runtime.prepare(config.threads, cache_dir)
    from mlx_ft import data_report, memory
    from mlx_ft.console import configure_logging
    from mlx_ft.data import sources
    from mlx_ft.data.prepare import prepare
    from mlx_ft.data.tally import refused
    from mlx_ft.models.tokenizer import fetch_tokenizer

    configure_logging("warning" if args.json else config.log_level)
    found = sources.find(config.data)  # a missing file is told before anything is loaded
    if args.out is not None:
        _check_out(args.out, [source.path for source in found.all])
    device = runtime.select_device(config.device)
    resolved = memory.resolve(config, device)
    length = resolved.memory_profile.max_seq_length
    tokenizer = fetch_tokenizer(resolved.model, cache_dir)
    dataset = prepare(
        config.data, tokenizer, length, config.seed, cache_dir, accept_faults=True, found=found
    )
    ahead = _outlook(resolved, dataset, tokenizer, device) if len(dataset.train) else None
    folder = args.out or _default_folder(config, dataset.digest)
    try:
        written = data_report.write(folder, dataset, ahead)
    except OSError as error:
        reason = f"{error.strerror or error}. Choose another folder with --out"
        raise OutputError(f"the report cannot be written to {folder}: {reason}") from error
    refusal = refused(dataset.report, config.data.max_errors)
    if args.json:
        print(written[0].read_text("utf-8"), end="")
    else:
        print("\n".join(data_report.lines(dataset.report, ahead)))
        names = [str(written[0]), *(path.name for path in written[1:])]
        print(f"\nwritten: {', '.join(names)}")
        print(f"verdict: {_verdict(dataset.report, refusal)}")
    return 0 if refusal is None else 2


def _verdict(report: dict[str, Any], refusal: DataError | None) -> str:
    if refusal is None:
        faulty = report["rows"]["rejected"] - report["rows"]["dropped"]
        return "fit for training" + (f"; {faulty:,} faulty rows are left out" if faulty else "")
    return f"not fit for training: {refusal.message.partition('. Mend')[0]}"


def _check_out(folder: Path, read: Sequence[Path]) -> None:
    """Raises OutputError: not after minutes of work, and never in place of mended rows."""
    from mlx_ft.data.prepare import QUARANTINE
    from mlx_ft.runfolder import writable

    if reason := writable(folder, folder):
        raise OutputError(f"--out: cannot write to {folder}: {reason}. Choose another folder")
    if any(path.resolve() == (folder / QUARANTINE).resolve() for path in read):
        raise OutputError(
            f"--out: {folder / QUARANTINE} is among the rows to be read, and a new one may take "
            "its place. Choose another folder"
        )


def _outlook(config: Config, dataset: Dataset, tokenizer: Any, device: str) -> Outlook:
    """What training on the dataset will be."""
    from mlx_ft import data_report, trainer
    from mlx_ft.data.arrays import pad_id
    from mlx_ft.data.batch import Batches
    from mlx_ft.models.load import model_name

    profile = config.memory_profile
    batches = Batches(
        dataset.train, profile.micro_batch_size, config.seed, pad_id=pad_id(tokenizer),
        weights=dataset.weights,
    )  # fmt: skip
    plan = trainer.plan(config.train, len(batches), profile.grad_accumulation_steps)
    name = model_name(config.model.path)
    speed = data_report.measured_speed(Path(config.paths.output_dir), name, device)
    return data_report.outlook(dataset, batches, plan.steps, plan.epochs, speed, config)


def _default_folder(config: Config, digest: str) -> Path:
    path = config.data.path if isinstance(config.data.path, str) else "mixture"
    name = Path(path.rpartition(":")[2].rstrip("/")).name.split(".")[0] or "data"
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return Path(config.paths.output_dir) / "validate" / f"{safe}-{digest[:8]}"


def _list(_: argparse.Namespace) -> int:
    from mlx_ft.datasets import descriptions

    for name, about in descriptions().items():
        rows = ", ".join(f"{split} {count:,}" for split, count in about.rows.items())
        print(f"{name:<18}{about.title}")
        print(f"{'':<18}{rows}; {about.licence}; {about.source}")
    print("\nTrain on one with: python train.py data=NAME")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from mlx_ft.data import write
    from mlx_ft.data.convert import LOSSES
    from mlx_ft.data.formats import FORMATS
    from mlx_ft.data.read import ReadStats
    from mlx_ft.runfolder import writable

    if args.format not in ("auto", "sharegpt", *FORMATS):
        raise DataError(f"--format: found {args.format!r}; expected auto, {', '.join(FORMATS)}")
    if args.target.exists() and not args.overwrite:
        raise DataError(f"{args.target} exists. Give another name, or --overwrite")
    if not args.source.is_file():
        raise DataError(f"{args.source} is not a file")
    if args.target.exists() and args.target.samefile(args.source):
        raise DataError(f"{args.target} is read and cannot be written at once: give another name")
    if reason := writable(None, args.target.parent):
        raise OutputError(f"{args.target} cannot be written: {reason}. Give another name")
    lost: Counter[str] = Counter()
    faults: list[str] = []
    stats = ReadStats()
    try:
        args.target.parent.mkdir(parents=True, exist_ok=True)
        number = write.write_rows(args.target, _converted(args, stats, lost, faults))
    except OSError as error:
        raise OutputError(f"{args.target} cannot be written: {error.strerror or error}") from error
    for note in stats.notes:
        print(note, file=sys.stderr)
    for code, count in lost.most_common():
        print(f"{args.to} has no place for {LOSSES[code]}: {count:,} rows", file=sys.stderr)
    for fault in faults[:SHOWN_FAULTS]:
        print(f"left out: {fault}", file=sys.stderr)
    if (more := len(faults) - SHOWN_FAULTS) > 0:
        print(f"left out: {more:,} more", file=sys.stderr)
    print(f"{args.target}: {number:,} rows written, {len(faults):,} left out")
    return 1 if faults else 0


def _converted(
    args: argparse.Namespace, stats: ReadStats, lost: Counter[str], faults: list[str]
) -> Iterator[dict[str, Any]]:
    """The rows in their new format, one at a time; what cannot be expressed becomes a fault."""
    from mlx_ft.data.convert import convert
    from mlx_ft.data.formats import parse
    from mlx_ft.data.read import read
    from mlx_ft.data.rows import BadRow, RowError

    number = 0
    for record in read(args.source, stats):
        if isinstance(record, BadRow):
            faults.append(f"{record.where}: {record.sentence}")
            continue
        try:
            row, losses = convert(parse(record, args.format), args.to)
        except RowError as error:
            faults.append(f"{record.where}: {'; '.join(error.faults)}")
            continue
        lost.update(losses)
        number += 1
        yield row
    if not number:  # an empty file would take the place of what is there
        raise MlxFtError(f"No row of {args.source} can be converted.", faults[:SHOWN_FAULTS])
