"""What the rules make of a section, before it is judged and put into words."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_ft.documents.sections import Section

# Kinds of item, with what each one asks for.
KINDS = {
    "definition": "what a term is or does: a sentence, a list item or a table row that says so",
    "question": "a heading, or the bold words a paragraph begins with, answered by what follows",
    "list": "name the members of a list",
    "summary": "a section's own leading sentences, where they cover its main words (extractive)",
    "text_to_code": "the code that a sentence announces",
    "code_to_text": "the text that explains a piece of code",
    "function": "a Python function's body, from its signature and docstring",
}


@dataclass(frozen=True)
class Candidate:
    """A question with its answer.

    ask: the question in sentence form, its first letter small unless it is a name; `.` or `?` at
    its end. given: what the question shows (a passage, code). answer: as in the document. place:
    line or page. score: before the checks, by how sure the rule is. reasons: why.
    alone: the question needs no words about where it is from. common: its term is a plain word,
    which means something only in its section.
    """

    kind: str
    ask: str
    answer: str
    section: Section
    place: str
    score: float
    reasons: tuple[str, ...]
    given: str = ""
    alone: bool = False
    common: bool = False
