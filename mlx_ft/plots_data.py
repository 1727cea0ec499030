"""The report on a dataset -> one page of figures. Pure, like `plots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, as in `plots`.
COLORS = {"train": "#0072B2", "valid": "#D55E00", "test": "#009E73"}
KEPT, CUT, REJECTED, ASIDE = "#009E73", "#E69F00", "#D55E00", "#C8C8C8"
INK = "#222222"
SIZE = (11.0, 7.5)  # inches
TITLES = {"train": "training", "valid": "validation", "test": "test"}


def data_figure(report: Mapping[str, Any]) -> Figure:
    """What became of the rows, how long they are, what carries loss, and what to look at."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=SIZE, dpi=130, layout="constrained")
        upper, lower = figure.subplots(2, 2)
        rows = report["rows"]
        set_aside = rows.get("set_aside", 0)
        aside = f" ({set_aside:,} set aside)" if set_aside else ""
        figure.suptitle(
            f"{rows['rows']:,} rows: {rows['kept']:,} kept{aside}, "
            f"{rows['truncated']:,} truncated, {rows['rejected']:,} rejected",
            fontsize=14, x=0.01, ha="left",
        )  # fmt: skip
        _lengths(upper[0], report, "length", "Tokens of an example")
        limit = report["max_seq_length"]
        if upper[0].get_xlim()[1] > 0.7 * limit:
            upper[0].axvline(limit, color=INK, linestyle=":", linewidth=1)
        _lengths(upper[1], report, "targets", "Target tokens of an example (they carry loss)")
        _fates(lower[0], report)
        _words(lower[1], report)
        return figure


def _lengths(axes: Axes, report: Mapping[str, Any], key: str, title: str) -> None:
    for name, stats in report["splits"].items():
        if not stats[key]:
            continue
        histogram = stats[key]["histogram"]
        total, median, high = sum(histogram["counts"]), stats[key]["p50"], stats[key]["p95"]
        shares = [100 * count / total for count in histogram["counts"]]
        axes.stairs(
            shares, histogram["edges"], fill=name == "train", alpha=0.45 if name == "train" else 1,
            color=COLORS[name], linewidth=1.8,
            label=f"{TITLES[name]}: median {median:.0f}, 95% below {high:.0f}",
        )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_ylabel("% of examples")
    axes.xaxis.set_major_locator(_whole_numbers())
    if axes.get_legend_handles_labels()[0]:  # else no row could be used
        _legend(axes, 1)


def _fates(axes: Axes, report: Mapping[str, Any]) -> None:
    """One bar a file: kept, cut, set aside, rejected."""
    files = report["files"][:8]
    names = [f"{file['path'].rsplit('/', 1)[-1][-28:]} ({file['split']})" for file in files]
    places = range(len(files))  # names repeat: a/rows.jsonl and b/rows.jsonl
    left = [0.0] * len(files)
    for title, color, counts in (
        ("kept", KEPT, [file["kept"] - file["set_aside"] for file in files]),
        ("truncated", CUT, [file["truncated"] for file in files]),
        ("set aside", ASIDE, [file["set_aside"] for file in files]),
        ("rejected", REJECTED, [file["rejected"] for file in files]),
    ):
        if any(counts):
            axes.barh(places, counts, left=left, color=color, label=title, height=0.6)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    more = len(report["files"]) - len(files)
    axes.set_title(
        "Rows of each file" + (f" (and {more} more files)" if more else ""), loc="left", fontsize=11
    )
    axes.set_xlim(0, 1.02 * max([*left, 1]))
    if axes.get_legend_handles_labels()[0]:
        axes.xaxis.set_major_locator(_whole_numbers())
    _legend(axes, 4)


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _legend(axes: Axes, columns: int) -> None:
    """Below the axes, where no bar can be in its way."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            frameon=False, fontsize=9, ncols=columns, loc="upper left", bbox_to_anchor=(0, -0.1)
        )


def _words(axes: Axes, report: Mapping[str, Any]) -> None:
    import textwrap

    axes.axis("off")
    axes.set_title("To know", loc="left", fontsize=11)
    train = report["splits"]["train"]
    lines = [
        f"tokens {train['tokens']:,}; {train['loss_share']:.0%} carry loss",
        f"answers that end with a stop token: {train['stop_coverage']:.1%}",
        f"repeats: {train['duplicates']} exact, {train['near_duplicates']} near",
    ]
    lines += [
        f"{TITLES[name]} rows that training has too: {found['exact']} exact, {found['near']} near"
        for name, found in report["overlap"].items()
    ]
    lines += [f"fault {fault['code']}: {fault['count']}" for fault in report["faults"][:4]]
    lines += [
        textwrap.shorten(f"! {line}", 240)
        for line in [*report["notes"], *report["recommendations"]][:5]
    ]
    text = "\n".join("\n".join(textwrap.wrap(line, 70, subsequent_indent="   ")) for line in lines)
    axes.text(0, 0.98, text, va="top", fontsize=9.5, color=INK, linespacing=1.45, parse_math=False)
