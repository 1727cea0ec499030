"""The report on a dataset: counts, statistics, likenesses, advice; a value that JSON can hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import advice, sources
from mlx_ft.data.batch import in_an_epoch
from mlx_ft.data.duplicates import Groups
from mlx_ft.data.encoded import SPLITS, Encoded, Examples
from mlx_ft.data.rows import Conversation
from mlx_ft.data.tally import COUNTS, FaultLog, Tally

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
SHOWN_LEAKS = 20
SHOWN_REPEATS = 20  # of each split, exact or near
SAMPLED_ROWS = 2000  # for the scripts
# Ranges of letters (Unicode blocks); what is in none of them is `other`.
SCRIPTS = {
    "Latin": r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]",
    "Greek": r"[\u0370-\u03ff]",
    "Cyrillic": r"[\u0400-\u052f]",
    "Hebrew": r"[\u0590-\u05ff]",
    "Arabic": r"[\u0600-\u06ff\u0750-\u077f]",
    "Devanagari": r"[\u0900-\u097f]",
    "Thai": r"[\u0e00-\u0e7f]",
    "Kana": r"[\u3040-\u30ff]",
    "Han": r"[\u3400-\u9fff]",
    "Hangul": r"[\uac00-\ud7af]",
}
_SCRIPTS = {name: re.compile(pattern) for name, pattern in SCRIPTS.items()}
_LETTER = re.compile(r"[^\W\d_]")


@dataclass
class Collected:
    """What is gathered from the text of the rows on the way. controls: the control tokens."""

    controls: Sequence[str] = ()
    rows: int = 0
    systems: set[str | None] = field(default_factory=set)  # no more than two are kept
    with_controls: int = 0
    first_control: str | None = None
    roles: Counter[str] = field(default_factory=Counter)
    scripts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, rows: Sequence[Conversation]) -> None:
        """Look at some rows."""
        pattern = re.compile("|".join(map(re.escape, self.controls))) if self.controls else None
        for row in rows:
            self.roles.update(message.role for message in row.messages)
            if len(self.systems) < 2:
                first = row.messages[:1]
                self.systems.add(first[0].content if first and first[0].role == "system" else None)
            said = row.text if row.text is not None else "\0".join(m.content for m in row.messages)
            if pattern is not None and pattern.search(said):
                self.with_controls += 1
                self.first_control = self.first_control or row.record.where
            if self.rows < SAMPLED_ROWS:
                self._scripts(row)
            self.rows += 1

    def _scripts(self, row: Conversation) -> None:
        said = [(message.role, message.content) for message in row.messages]
        for role, text in said or [("text", row.text or "")]:
            counts = self.scripts.setdefault(role, Counter())
            start = text[:500]
            letters = len(_LETTER.findall(start))
            for name, pattern in _SCRIPTS.items():
                if found := len(pattern.findall(start)):
                    counts[name] += found
                    letters -= found
            counts["other"] += max(0, letters)

    def system_prompt(self) -> str | None:
        """The system message that all rows begin with."""
        return next(iter(self.systems)) if len(self.systems) == 1 else None

    def script_shares(self) -> dict[str, dict[str, float]]:
        """For each role, the share of each script among its letters."""
        return {
            role: {
                name: round(count / sum(counts.values()), 4)
                for name, count in counts.most_common()
                if count
            }
            for role, counts in self.scripts.items()
            if sum(counts.values())
        }


def make(
    found: sources.Sources,
    tallies: Sequence[Tally],
    faults: FaultLog,
    encoded: Encoded,
    groups: Groups,
    collected: Collected,
    labels: Sequence[str | None],
    config: DataConfig,
    max_seq_length: int,
    noted: Sequence[str],
    digest: str,
) -> dict[str, Any]:
    """The report of a dataset; its keys are described in docs/data.md."""
    files = [
        {
            "path": str(source.path),
            "split": source.split,
            "weight": source.weight,
            **tally.as_dict(),
        }
        for source, tally in zip(found.all, tallies, strict=True)
    ]
    rows = {name: sum(getattr(tally, name) for tally in tallies) for name in COUNTS}
    report: dict[str, Any] = {
        "version": 1,
        "digest": digest,
        "files": files,
        "rows": rows,
        "faults": faults.as_list(),
        "first_faults": faults.shown(),
        "max_seq_length": max_seq_length,
        "splits": {name: _split(found, encoded, name, groups, labels) for name in SPLITS},
        "epoch": _epoch(found, encoded.of("train")),
        "overlap": _overlap(found, encoded, groups),
        "roles": dict(collected.roles),
        "scripts": collected.script_shares(),
        "system_prompt": collected.system_prompt(),
        "control_tokens": {"rows": collected.with_controls, "first": collected.first_control},
    }
    report["notes"] = [*noted, *advice.notes(report, config)]
    report["recommendations"] = advice.recommendations(report, config)
    return report


def _split(
    found: sources.Sources,
    encoded: Encoded,
    name: str,
    groups: Groups,
    labels: Sequence[str | None],
) -> dict[str, Any]:
    chosen = np.flatnonzero(encoded.rows["split"] == SPLITS.index(name))
    rows = encoded.rows[chosen]
    examples = encoded.of(name)
    label_counts = Counter(labels[label] for label in rows["label"].tolist())
    label_counts.pop(None, None)
    exact = len(rows) - len(np.unique(rows["fingerprint"]))
    return {
        "rows": len(rows),
        "set_aside": int(rows["set_aside"].sum()),
        "turns": int(rows["turns"].sum()),
        "labels": dict(label_counts),
        "duplicates": exact,
        "near_duplicates": Groups(groups.of[chosen]).repeats() - exact,
        "first_repeats": [
            [_where(found, encoded, row), _where(found, encoded, first)]
            for row, first in groups.pairs(chosen)[:SHOWN_REPEATS].tolist()
        ],
        "truncated_rows": int((rows["truncated"] > 0).sum()),
        "truncated_tokens": int(rows["truncated"].sum()),
        **token_stats(examples),
    }


def _epoch(found: sources.Sources, train: Examples) -> list[dict[str, Any]]:
    """Of each training file: its examples, and how many an epoch shows of them.

    exact: False where files share a weight such as 0.5, so that their shares vary by an example
    or two between epochs.
    """
    counts = np.bincount(train.sources, minlength=len(found.all)).tolist()
    used = Counter(source.weight for source, n in zip(found.train, counts, strict=False) if n)
    return [
        {
            "path": str(source.path),
            "weight": source.weight,
            "examples": count,
            "shown": in_an_epoch(count, source.weight),
            "exact": used[source.weight] < 2 or float(source.weight).is_integer(),
        }
        for source, count in zip(found.train, counts, strict=False)
    ]


def token_stats(examples: Examples) -> dict[str, Any]:
    """Tokens, targets, lengths and stop tokens of some examples."""
    table, lengths = examples.table, examples.lengths
    spans, endless = int(table["spans"].sum()), int(table["endless"].sum())
    tokens, targets = int(lengths.sum()), int(examples.target_counts.sum())
    return {
        "examples": len(examples),
        "tokens": tokens,
        "target_tokens": targets,
        "loss_share": targets / tokens if tokens else 0.0,
        "length": distribution(lengths),
        "targets": distribution(examples.target_counts),
        "answers": spans,
        "endless_turns": endless,
        "stop_coverage": 1 - endless / spans if spans else 1.0,
    }


def distribution(values: np.ndarray) -> dict[str, Any]:
    """Extremes, mean, percentiles and a histogram of 30 equal bins (`edges` has 31)."""
    if not len(values):
        return {}
    counts, edges = np.histogram(values, bins=30)
    found = np.percentile(values, PERCENTILES)
    return {
        "min": int(values.min()),
        "mean": round(float(values.mean()), 2),
        "max": int(values.max()),
        **{f"p{p}": round(float(value), 1) for p, value in zip(PERCENTILES, found, strict=True)},
        "histogram": {"counts": counts.tolist(), "edges": np.round(edges, 2).tolist()},
    }


def _overlap(found: sources.Sources, encoded: Encoded, groups: Groups) -> dict[str, Any]:
    """Validation and test rows that training has too: the same words, or nearly."""
    split = np.where(encoded.rows["set_aside"], -1, encoded.rows["split"])  # these teach nothing
    train = np.flatnonzero(split == 0)
    overlap = {}
    for name in ("valid", "test"):
        these = np.flatnonzero(split == SPLITS.index(name))
        if not len(these):
            continue
        shared = groups.shared(these, train)
        exact = np.isin(
            encoded.rows["fingerprint"][these], encoded.rows["fingerprint"][train]
        ).sum()
        overlap[name] = {
            "rows": len(these),
            "exact": int(exact),
            "near": len(shared) - int(exact),
            "first": [
                [_where(found, encoded, row), _where(found, encoded, groups.partner(row, train))]
                for row in shared[:SHOWN_LEAKS].tolist()
            ],
        }
    return overlap


def _where(found: sources.Sources, encoded: Encoded, row: int) -> str:
    about = encoded.rows[row]
    return f"{found.all[about['source']].path}:{about['line']}"
