"""Figures of one model or two: as a table to read, and as what MLflow is told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlx_ft.intervals import Gap
from mlx_ft.outcome import side_by_side
from mlx_ft.saved import SavedRun
from mlx_ft.tracking.later import Findings
from mlx_ft.verdicts import Comparison, Evaluation, Score

if TYPE_CHECKING:
    from mlx_ft.standard_tasks import Figure

TINY = 1e-4  # a p below it is not told in full


def text(result: Evaluation | Comparison) -> str:
    """A line for each figure, with intervals; of two models side by side."""
    if isinstance(result, Evaluation):
        lines = _losses([result])
        for name, score in result.scores.items():
            lines += _alone(name, score)
        return "\n".join(_aligned(lines))
    first, second = result.first, result.second
    lines = [["", *result.names, "difference"], *_losses([first, second], result.same_targets)]
    for name, gap in result.gaps.items():
        lines += _beside(name, first.scores[name], second.scores[name], gap)
    return "\n".join([*_aligned(lines), *_apart(result)])


def _losses(models: Sequence[Evaluation], comparable: bool = False) -> list[list[str]]:
    return [
        _figures("validation loss", [one.loss for one in models], 4, comparable),
        _figures("perplexity", [one.perplexity for one in models], 3, comparable),
        _targets(models),
    ]


def _targets(models: Sequence[Evaluation]) -> list[str]:
    """What the two lines above it are means of."""
    counts = ["-" if one.target_tokens is None else f"{one.target_tokens:,}" for one in models]
    return ["  target tokens", *counts, *([""] if len(models) == 2 else [])]


def _figures(name: str, values: Sequence[float | None], digits: int, comparable: bool) -> list[str]:
    cells = ["-" if value is None else f"{value:.{digits}f}" for value in values]
    known = [value for value in values if value is not None]
    if len(values) == 2:
        both = comparable and len(known) == 2
        cells.append(f"{known[1] - known[0]:+.{digits}f}" if both else "-")
    return [name, *cells]


def _apart(result: Comparison) -> list[str]:
    """Why no difference of losses is shown."""
    one, other = result.first.target_tokens, result.second.target_tokens
    if result.same_targets or one is None or other is None:
        return []
    return [
        f"Losses and perplexities are of different tokens ({one:,} and {other:,} targets) and "
        "cannot be compared: the two have not the same tokenizer and chat template."
    ]


def _alone(name: str, score: Score) -> list[list[str]]:
    lines = [[name, _mean(score)], ["  95% interval", _ends(score)]]
    right = f"{round(sum(score.values))} of {len(score.values)}"
    return [*lines, ["  right answers" if score.share else "  answers",
                     right if score.share else str(len(score.values))]]  # fmt: skip


def _beside(name: str, first: Score, second: Score, gap: Gap) -> list[list[str]]:
    share = first.share and second.share
    form = "{:+.1%}" if share else "{:+.4f}"
    low, high = (form.format(end) for end in gap.interval)
    lines = [
        [name, _mean(first), _mean(second), form.format(gap.mean)],
        ["  95% interval", _ends(first), _ends(second), f"{low} to {high}"],
    ]
    if not share or gap.p is None:
        return lines
    p = f"p < {TINY:.4f}" if gap.p < TINY else f"p = {gap.p:.4f}"
    counts = (f"{round(sum(one.values))} of {len(one.values)}" for one in (first, second))
    return [*lines, ["  right answers", *counts, f"{p} (McNemar, exact)"],
            ["  right alone", str(gap.only_first), str(gap.only_second), ""]]  # fmt: skip


def _mean(score: Score) -> str:
    return f"{score.mean:.1%}" if score.share else f"{score.mean:.4f}"


def _ends(score: Score) -> str:
    form = "{:.1%}" if score.share else "{:.4f}"
    return " to ".join(form.format(end) for end in score.interval)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def show_differing(comparison: Comparison, most: int) -> None:
    """Some rows that the first metric judges differently, on stdout; how many there are."""
    if not comparison.gaps:
        return
    metric = next(iter(comparison.gaps))
    worse, better = comparison.differing(metric)
    console = Console(soft_wrap=False)
    number = len(worse) + len(better)
    total = len(comparison.first.answers)
    console.print(f"\n{metric} differs for {number} of {total} answers.", highlight=False)
    shown = sorted([*better[: most - len(worse[: most // 2])], *worse[: most // 2]])
    if shown:
        pairs = [(comparison.first.answers[row], comparison.second.answers[row]) for row in shown]
        console.print(side_by_side(pairs, console.width, comparison.names))


def tasks_text(found: Mapping[str, Sequence[Figure]]) -> str:
    """Standard tasks: a line for each figure, a column for each model."""
    lines = [["task", "metric", *found]]
    for figures in zip(*found.values(), strict=True):
        cells = [
            f"{one.value:.4f}" + ("" if one.error is None else f" ± {one.error:.4f}")
            for one in figures
        ]
        lines.append([figures[0].task, figures[0].metric, *cells])
    return "\n".join(_aligned(lines))


def findings(
    result: Evaluation | Comparison,
    rows: Sequence[Mapping[str, Any]],
    run: SavedRun,
    *,
    base: bool,
    data: str | None,
) -> Findings:
    """What MLflow is told: `evaluation/exact_match`, on other rows `evaluation/NAME/exact_match`.

    Of the model that the run's is compared with: `evaluation_against/...`; of the base alone,
    `evaluation_base/...`.
    """
    where = "" if data is None else re.sub(r"[^\w.-]+", "_", data).strip("_") + "/"
    figures: dict[str, float] = {}
    if isinstance(result, Evaluation):
        evaluation = result
        figures |= _told(f"evaluation{'_base' if base else ''}/{where}", result)
    else:
        evaluation = result.second
        other = "base" if result.names[0] == "base" else "against"
        figures |= _told(f"evaluation_{other}/{where}", result.first)
        figures |= _told(f"evaluation/{where}", result.second)
        for name, gap in result.gaps.items():
            figures[f"evaluation/{where}{name}_gain"] = gap.mean
            figures |= {} if gap.p is None else {f"evaluation/{where}{name}_p": gap.p}
    step, stamp = run.summary.get("steps"), datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Findings(
        figures, step if isinstance(step, int) else 0, f"evaluation_{stamp}", rows,
        (evaluation.rows[:500], evaluation.digest),
    )  # fmt: skip


def _told(prefix: str, evaluation: Evaluation) -> dict[str, float]:
    found = {}
    for name, value in (("loss", evaluation.loss), ("perplexity", evaluation.perplexity)):
        if value is not None:
            found[f"{prefix}{name}"] = value
    for name, score in evaluation.scores.items():
        low, high = score.interval
        found |= {f"{prefix}{name}": score.mean, f"{prefix}{name}_low": low,
                  f"{prefix}{name}_high": high}  # fmt: skip
    return found
