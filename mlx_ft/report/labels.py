"""Names and numbers as people read them: of settings, figures and statuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_ft.config.screen import shown as printable
from mlx_ft.report.read import Row

LONGEST = 40  # characters of a value in a label
MOST_NAMED = 4  # settings in a name; beyond that a run's folder tells more


@dataclass(frozen=True)
class Figure:
    """A figure of `summary.json`. form: of its numbers; low: whether the lowest is the best."""

    label: str
    form: str
    low: bool


FIGURES = {
    "val_loss_after": Figure("validation loss", "{:.4f}", low=True),
    "perplexity_after": Figure("perplexity", "{:.4f}", low=True),
    "accuracy_after": Figure("accuracy", "{:.1%}", low=False),
    "wall_seconds": Figure("seconds", "{:,.0f}", low=True),
    "train_seconds": Figure("seconds of training", "{:,.0f}", low=True),
    "peak_memory_gb": Figure("peak memory (GB)", "{:#.3g}", low=True),
    "tokens_per_second": Figure("tokens per second", "{:,.0f}", low=False),
}


def figure_label(key: str) -> str:
    """What a figure is called."""
    return FIGURES[key].label if key in FIGURES else key.replace("_", " ")


def figure_text(key: str, value: float | None) -> str:
    """A figure with the digits that matter; `-` where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if key in ("wall_seconds", "train_seconds") and value < 10:
        return f"{value:.1f}"
    return FIGURES[key].form.format(value).rstrip(".") if key in FIGURES else f"{value:.4g}"


def step_text(key: str, value: float) -> str:
    """A difference of two figures: points of a percentage, or digits as of the figure."""
    if key == "accuracy_after":
        return f"{100 * value:.1f} points"
    return number_text(float(f"{value:.2g}")) if abs(value) < 0.001 else figure_text(key, value)


def value_text(value: Any) -> str:
    """A setting's value: 0.0001 is 1e-4, as people write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number_text(value)
    text = printable(str(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"


def number_text(value: float) -> str:
    """A number in three or four digits: 1e-4, 3.16e-4, 0.05."""
    if value and math.isfinite(value) and not 0.01 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where two would look the same."""
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    return {
        key: key if leaves[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys
    }


def name_of(row: Row, keys: Sequence[str]) -> str:
    """What tells a run from the others: the settings that vary, or its folder or id."""
    known = [key for key in keys if key in row.settings]
    if known and len(keys) <= MOST_NAMED:
        short = short_keys(keys)
        return " ".join(f"{short[key]}={value_text(row.settings[key])}" for key in known)
    return value_text(row.folder.name if row.folder else row.run_id or "a run without a folder")


def statuses(rows: Sequence[Row]) -> str:
    """`8 finished, 1 failed`."""
    counts: Mapping[str, int] = Counter(row.status.lower() for row in rows)
    first = sorted(counts, key=lambda status: (status != "finished", -counts[status]))
    return ", ".join(f"{counts[status]} {status}" for status in first)


def is_share(key: str) -> bool:
    """Whether a figure is shown in per cent."""
    return key in FIGURES and FIGURES[key].form.endswith("%}")


def percent_text(share: float) -> str:
    """Of a share: `93`, but `99.9` of all but everything, and `0.4`."""
    if share > 0.99:
        return f"{math.floor(1000 * share) / 10:g}"
    return f"{100 * share:.{1 if share < 0.01 else 0}f}"


def p_text(p: float) -> str:
    """`p = 0.031`; very small ones are only told to be small."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
