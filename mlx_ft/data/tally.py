"""What became of every row: counted as it is read, so that nothing is lost without a word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mlx_ft.data.rows import FAULTS, BadRow, Fault
from mlx_ft.errors import DataError

SHOWN_FAULTS = 15
KEPT_KEYS, LONGEST_KEY = 1000, 80
KEPT_FAULTS = 50  # of each code; all of them are in the quarantine file
# What ends a file early: nobody knows how many rows behind it are lost.
FILE_FAULTS = ("file_unreadable", "archive_damaged")


@dataclass
class Tally:
    """Rows of one file: kept + truncated + rejected = rows, whatever the file holds.

    kept includes the rows set aside (undesirable ones). dropped: rejected because the
    configuration asks for it, which is no fault.
    """

    rows: int = 0
    kept: int = 0
    truncated: int = 0
    rejected: int = 0
    dropped: int = 0
    set_aside: int = 0
    blank_lines: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)

    def note_unused(self, keys: Iterable[str]) -> None:
        """Count the keys of a row that nothing looks at; of very many names, the first ones."""
        full = len(self.unused_keys) >= KEPT_KEYS
        named = (key[:LONGEST_KEY] for key in keys)
        self.unused_keys.update(key for key in named if not full or key in self.unused_keys)

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return {
            **counts,
            "formats": dict(self.formats),
            "unused_keys": dict(self.unused_keys.most_common(20)),
        }


COUNTS = ("rows", "kept", "truncated", "rejected", "dropped", "set_aside", "blank_lines")


@dataclass
class FaultLog:
    """The faults of all rows: counted, the first ones kept to be shown."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    _in_order: list[str] = field(default_factory=list)

    def add(self, where: str, found: Sequence[Fault]) -> None:
        """Note a rejected row with all its faults."""
        self.rows += 1
        for code, sentence in found:
            self.counts[code] += 1
            kept = self.first.setdefault(code, [])
            if len(kept) < KEPT_FAULTS:
                kept.append((where, sentence))
            if len(self._in_order) < SHOWN_FAULTS:
                self._in_order.append(f"{where}: {sentence}")

    def add_bad(self, row: BadRow) -> None:
        """Note a row that could not even be read."""
        self.add(row.where, [Fault(row.code, row.sentence)])

    def as_list(self) -> list[dict[str, Any]]:
        """For the report: the most frequent first."""
        return [
            {
                "code": code,
                "count": count,
                "mend": FAULTS[code],
                "first": [{"where": where, "fault": text} for where, text in self.first[code]],
            }
            for code, count in self.counts.most_common()
        ]

    def shown(self) -> list[str]:
        """The first faults, in the order of the rows, and how many more there are."""
        more = sum(self.counts.values()) - len(self._in_order)
        return [*self._in_order, *([f"... and {more} more"] if more else [])]


def refusal(
    faulty: int, rows: int, max_errors: int | str, shown: Sequence[str], hint: str = ""
) -> DataError:
    """What to raise when there are more faulty rows than allowed. hint: a sentence more."""
    limit = "" if max_errors == 0 else f", more than data.max_errors={max_errors} allows"
    plural = "row is" if rows == 1 else "rows are"
    return DataError(
        f"{faulty} of {rows} {plural} faulty{limit}. Mend them, or leave them out with "
        "data.max_errors=N or a share such as 5%; `mlx-ft validate` with the same arguments "
        f"writes the whole report and a file of the faulty rows.{hint and ' '}{hint}",
        shown,
    )


def allowed(max_errors: int | str, rows: int) -> int:
    """How many of so many rows may be faulty. max_errors: a number, or a share such as `5%`."""
    if isinstance(max_errors, int):
        return max_errors
    share = Fraction(re.sub(r"[%\s]", "", max_errors))  # 0.57% of 10,000 is 57, not 56.99...
    return int(share * rows / 100)


def refused(report: Mapping[str, Any], max_errors: int | str) -> DataError | None:
    """Why the rows of a report cannot be trained on; None: they can."""
    counts = report["rows"]
    faulty = counts["rejected"] - counts["dropped"]
    if faulty > allowed(max_errors, counts["rows"]):
        shown, hint = report["first_faults"], " ".join(too_long(report["cut_off"], faulty))
        return refusal(faulty, counts["rows"], max_errors, shown, hint)
    if short := cut_short(report):
        return DataError(
            "Not all of the data can be read, and data.max_errors is about rows, not files.", short
        )
    if empty := [file["path"] for file in report["files"] if file["rows"] == 0]:
        return DataError("The data has no rows.", [f"{path}: the file is empty" for path in empty])
    if not report["splits"]["train"]["examples"]:
        return DataError(
            f"No training row is left: of {counts['rows']} rows, {faulty} are faulty, "
            f"{counts['dropped']} longer than memory_profile.max_seq_length="
            f"{report['max_seq_length']} (data.overlong=drop), and {counts['set_aside']} set aside "
            "as undesirable. Give rows to learn from."
        )
    return DataError(report["unsplit"]) if report["unsplit"] else None


def too_long(cut_off: Mapping[str, int], faulty: int) -> list[str]:
    """What to do about rows that have no fault but their length, if there are any.

    cut_off: how many of the faulty rows these are, and the tokens of the longest.
    """
    if not (rows := cut_off["rows"]):
        return []
    which = f"{rows} of the {faulty} faulty rows {'is' if rows == 1 else 'are'}"
    if rows == faulty:
        which = "The faulty row is" if rows == 1 else "The faulty rows are"
    return [
        f"{which} only too long: memory_profile.max_seq_length={cut_off['longest']} takes "
        "everything, data.overlong=truncate_left keeps the ends of such rows, where the answers "
        "are, and data.overlong=drop leaves them out and counts them."
    ]


def cut_short(report: Mapping[str, Any]) -> list[str]:
    """`path:line: fault` of the files that were not read to their end."""
    return [
        f"{one['where']}: {one['fault']}"
        for fault in report["faults"]
        if fault["code"] in FILE_FAULTS
        for one in fault["first"]
    ]
