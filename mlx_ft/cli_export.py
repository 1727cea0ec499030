"""`mlx-ft fuse`, `mlx-ft export` and `mlx-ft import`: adapters for other programs, and back."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft import cli_help
from mlx_ft.config.keys import QUANTIZATION
from mlx_ft.errors import UserError

if TYPE_CHECKING:
    from mlx_ft.export.options import Options
    from mlx_ft.export.source import Source

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

TARGETS = ("peft", "mlx", "hf", "gguf", "ollama")
FLOATS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16",
          "f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # fmt: skip
PACKED = {"float32": "float32", "float16": "float16", "f32": "float32", "f16": "float16",
          "q8_0": "q8_0"}  # fmt: skip
# What each target can be written in; none: an adapter is float32.
DTYPES: Mapping[str, Mapping[str, str]] = {"hf": FLOATS, "gguf": PACKED, "ollama": PACKED}
TOLERANCE = 0.01  # nats per token


def add_commands(commands: Commands) -> None:
    """Add all three."""
    fuse = cli_help.add(commands, "fuse", "base and adapter as one model", cli_help.FUSE)
    _add_source(fuse)
    fuse.add_argument(
        "--quantize", type=_quantize, metavar="BITS[,GROUP]",
        help="e.g. 8 or 4,32: measures what is lost; default: not quantized",
    )  # fmt: skip
    _add_measuring(fuse)
    fuse.set_defaults(command=_fuse)

    export = cli_help.add(
        commands, "export", f"for other programs: {' | '.join(TARGETS)}", cli_help.EXPORT
    )
    _add_source(export)
    export.add_argument("--to", required=True, choices=TARGETS, help="(needed)")
    _add_measuring(export)
    export.set_defaults(command=_export)

    text = "take an adapter that PEFT wrote, to train it further or to use it"
    take = cli_help.add(commands, "import", text, cli_help.IMPORT)
    take.add_argument("folder", type=Path, metavar="PEFT_FOLDER")
    take.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="(needed)")
    take.add_argument("--model", metavar="MODEL", help="default: the base that the adapter names")
    take.set_defaults(command=_import)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", metavar="RUN",
        help="run folder or id, models:/NAME/VERSION, a checkpoint, or an adapter's folder; "
        "default: the newest in outputs",
    )  # fmt: skip
    parser.add_argument("--run", dest="named", metavar="RUN", help="the same")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PLACE",
        help="where it goes; nothing that is there is overwritten (needed)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="MODEL", help="the base model, as model.path; default: the run's"
    )
    parser.add_argument(
        "--base", metavar="NAME", help="the base model's name on the hub; default: as far as known"
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", help="float32, bfloat16, float16; for gguf and ollama float32, float16, q8_0; "
        "default: the base's own, for gguf float16",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=_tolerance, default=TOLERANCE, metavar="NATS",
        help="refuse what raises the loss by more than this; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write it all the same")
    parser.add_argument(
        "--no-measure", dest="measure", action="store_false",
        help="do not look at what is lost: for models that are larger than memory",
    )  # fmt: skip


def _quantize(text: str) -> dict[str, Any]:
    bits, _, group = text.partition(",")
    known, groups = QUANTIZATION["affine"]
    if not bits.isdecimal() or int(bits) not in known or (group and group not in map(str, groups)):
        raise argparse.ArgumentTypeError(
            f"found {text!r}; expected BITS or BITS,GROUP with bits of "
            f"{', '.join(map(str, sorted(known)))} and groups of "
            f"{', '.join(map(str, sorted(groups)))}"
        )
    return {"bits": int(bits), "group_size": int(group or groups[0]), "mode": "affine"}


def _tolerance(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number of at least 0")
    return number


def _fuse(args: argparse.Namespace) -> int:
    source, options = _asked(args, FLOATS)
    from mlx_ft.export import targets

    targets.fuse(source, options, args.quantize)
    return 0


def _export(args: argparse.Namespace) -> int:
    source, options = _asked(args, DTYPES.get(args.to, {}))
    from mlx_ft.export import llama_cpp, targets

    writers: Mapping[str, Callable[[Source, Options], None]] = {
        "peft": targets.to_peft,
        "mlx": targets.to_mlx,
        "hf": targets.to_hf,
        "gguf": llama_cpp.to_gguf,
        "ollama": llama_cpp.to_ollama,
    }
    writers[args.to](source, options)
    return 0


def _asked(args: argparse.Namespace, dtypes: Mapping[str, str]) -> tuple[Source, Options]:
    """What is to be exported, and how; the cheapest mistakes are told first."""
    if args.run is not None and args.named is not None:
        raise UserError(f"two runs were named: {args.run} and {args.named}. One is enough")
    if args.dtype is not None and args.dtype not in dtypes:
        words = ", ".join(dtypes) or "nothing: an adapter is written in float32"
        raise UserError(f"--dtype: found {args.dtype!r}; expected {words}")
    _prepare()
    from mlx_ft.export import place, source
    from mlx_ft.export.options import Options

    place.check_free(args.out.expanduser())
    found = source.find(args.run or args.named, args.model)
    options = Options(
        out=args.out.expanduser(),
        dtype=None if args.dtype is None else dtypes[args.dtype],
        base=args.base,
        tolerance=args.tolerance,
        force=args.force,
        measure=args.measure,
    )
    return found, options


def _import(args: argparse.Namespace) -> int:
    from mlx_ft import runtime

    _prepare()
    from mlx_ft.export import taking

    taking.take(args.folder, args.out.expanduser(), args.model, runtime.default_cache_dir())
    return 0


def _prepare() -> None:
    """Everything from here on computes."""
    from mlx_ft import runtime

    runtime.prepare(cache_dir=runtime.default_cache_dir())
    from mlx_ft.console import configure_logging

    configure_logging("warning")
