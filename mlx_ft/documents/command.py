"""`mlx-ft data from-documents`: its arguments, and the summary it prints."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from mlx_ft.documents.build import BuildOptions, BuildResult, build
from mlx_ft.documents.items import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; each one is a field of `BuildOptions`."""
    default = BuildOptions(out=Path())
    parser.add_argument("source", help="a folder, a file, or chroma:PATH/COLLECTION")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--subject",
        default="",
        help='what the documents are about, e.g. "Flask": named in questions',
    )
    parser.add_argument("--valid-fraction", type=float, default=default.valid_fraction)
    parser.add_argument("--test-fraction", type=float, default=default.test_fraction)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--min-quality", type=float, default=default.min_quality, help="from 0 to 1"
    )
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help="kinds of items, with commas: %(default)s"
    )
    parser.add_argument(
        "--chunk-words", type=int, default=default.chunk_words, help="0: no raw chunks"
    )
    parser.add_argument("--max-file-bytes", type=int, default=default.max_file_bytes)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")


def main(arguments: argparse.Namespace) -> int:
    """Build, and print a summary. Raises DataError."""
    options = BuildOptions(
        out=arguments.out,
        subject=arguments.subject,
        valid_fraction=arguments.valid_fraction,
        test_fraction=arguments.test_fraction,
        seed=arguments.seed,
        min_quality=arguments.min_quality,
        kinds=tuple(kind.strip() for kind in arguments.kinds.split(",") if kind.strip()),
        chunk_words=arguments.chunk_words,
        max_file_bytes=arguments.max_file_bytes,
        overwrite=arguments.overwrite,
    )
    print("\n".join(summary(build(arguments.source, options))))
    return 0


def summary(result: BuildResult) -> list[str]:
    """What was made and what was left out, as lines for a terminal."""
    report = result.report
    rejected: Counter[str] = Counter()
    for file in report["files"]:
        rejected.update(file["rejected"])
    lines = [
        f"{len(report['files'])} documents read, {len(result.unread)} files left out",
        f"items: {_counts(report['items'])} ({_counts(report['kinds'])})",
        f"raw chunks: {_counts(report['chunks'])}",
    ]
    if rejected:
        lines.append("not made into items:")
        lines += [f"  {count:>5}  {reason}" for reason, count in rejected.most_common()]
    for what, count in report["overlap"]["chunks_dropped"].items():
        lines.append(f"raw chunks dropped: {count} ({what})")
    if result.unread:
        lines.append("left out:")
        lines += [f"  {one.file}: {one.reason}" for one in result.unread[:20]]
        if len(result.unread) > 20:
            lines.append(f"  and {len(result.unread) - 20} more: see report.json")
    warned = [(f["file"], said) for f in report["files"] for said in f["warnings"]]
    if warned:
        lines.append(f"warnings: {len(warned)}; see report.json. The first: {': '.join(warned[0])}")
    if not any(report["items"].values()):
        lines.append("no item was good enough: only raw chunks were written")
    lines.append(f"written to {result.out}; train with: data=custom data.path={result.out}")
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
