"""What reading met beside the rows."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReadStats:
    """Counts of one file or of several. kind: of the last file, as a person would say it.

    rows: good ones. bad: rejected ones. blank_lines: these are no rows. notes: sentences.
    """

    rows: int = 0
    bad: int = 0
    blank_lines: int = 0
    kind: str = ""
    notes: list[str] = field(default_factory=list)

    def add(self, other: ReadStats) -> None:
        """Add what another process or file met."""
        self.rows += other.rows
        self.bad += other.bad
        self.blank_lines += other.blank_lines
        self.kind = other.kind or self.kind
        self.notes += other.notes
