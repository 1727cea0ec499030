"""Text for a terminal: on one screen, and without control characters of what was given."""

from __future__ import annotations

LINES, COLUMNS = 32, 100  # what an error may fill; notes may follow
LONGEST = 600  # of a line


def shown(text: str, longest: int = 120) -> str:
    """The text on one line: what is not printable escaped, the middle of a long one left out."""
    if len(text) > longest:
        head, tail = 2 * longest // 3, longest // 4
        text = f"{text[:head]}[... {len(text) - head - tail:,} characters ...]{text[-tail:]}"
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return repr(letter)[1:-1]


def fit(text: str) -> str:
    """The text within one screen; lines that are left out are counted."""
    lines = [shown(line, LONGEST) for line in text.split("\n")]
    height = 0
    for number, line in enumerate(lines):
        height += max(1, -(-len(line) // COLUMNS))
        if height > LINES and number:
            return "\n".join([*lines[:number], f"  and {len(lines) - number:,} more lines"])
    return "\n".join(lines)
