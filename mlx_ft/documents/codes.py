"""Code with the text around it, both ways; Python functions from their docstrings."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator

from mlx_ft.documents.grammar import DOES, VERBS, how_to, mine, small
from mlx_ft.documents.items import Candidate
from mlx_ft.documents.prose import complete, content_words, pointing, sentences, words
from mlx_ft.documents.python_source import Function, functions
from mlx_ft.documents.sections import Block, Section

SHELL = frozenset(("sh", "bash", "shell", "zsh", "console", "shell-session", "powershell"))
PYTHON = frozenset(("py", "python", "python3", "pycon"))
_TO = re.compile(r"To (\w+ .+?), .*", re.DOTALL)
_CAN = re.compile(
    r"You can (?:also )?(\w+ .+?)(?: by \w+ing.*| with| using.*| like so| as in)?", re.S
)
_TAIL = re.compile(
    r",? (?:with|by|using|like so|like this|as in|as follows|via|by running|by using|for "
    r"example|e\.g\.)$"
)
_LEANS = re.compile(
    r"\b(?:it|this|that|these|those|they|them|its|their|here|following|instead|so|same)\b"
)
_ABOUT = re.compile(
    rf"(?:This|The) ?(?:code|command|example|snippet|script|program|configuration|query|function)?"
    rf" ?(?:{'|'.join(sorted(DOES))}|will (?:{'|'.join(sorted(VERBS))}))\b"
)


def codes(section: Section) -> Iterator[Candidate]:
    """Code asked for by the sentence before it, and explained by the paragraph after it."""
    blocks = section.blocks
    for n, block in enumerate(blocks):
        if block.kind != "code" or not sound(block) or not 2 <= len(block.text.split()) <= 160:
            continue
        before = blocks[n - 1] if n else None
        after = blocks[n + 1] if n + 1 < len(blocks) else None
        if before is not None and before.kind == "paragraph" and not before.lost:
            yield from _wanted(before, block, section)
        if after is not None and after.kind == "paragraph" and not after.lost:
            yield from _explained(block, after, section)


def sound(block: Block) -> bool:
    """Whether a block of code is whole: it parses, as far as its language can be told."""
    text = block.text
    if re.search(r"^\s*(?:\.\.\.|…|\[\.\.\.\]|# \.\.\.|// \.\.\.|<snip>)\s*$", text, re.MULTILINE):
        return False
    if text.lstrip().startswith(">>>"):
        return True
    try:
        if block.language in PYTHON:
            ast.parse(text)
        elif block.language == "json":
            [json.loads(line) for line in ([text] if text.lstrip()[0] in "[{" else [])]
        elif block.language in SHELL:
            for line in text.replace("\\\n", " ").split("\n"):
                shlex.split(line, comments=True)
    except (SyntaxError, ValueError):
        return block.language == "json" and _json_lines(text)
    return True


def _json_lines(text: str) -> bool:
    try:
        return all(json.loads(line) is not None for line in text.split("\n") if line.strip())
    except ValueError:
        return False


def _wanted(before: Block, block: Block, section: Section) -> Iterator[Candidate]:
    """The question that the last sentence before a block of code answers with it."""
    said = sentences(before.text)[-1].strip()
    if not said.endswith((":", ".")):
        return
    said = said.rstrip(":.").strip()
    wish = ""
    if (match := _TO.fullmatch(said)) or (match := _CAN.fullmatch(said)):
        wish = match[1]
    elif before.text.endswith(":") and (doing := how_to(said)):
        wish = doing
    wish = _TAIL.sub("", wish)
    if not wish or _LEANS.search(wish) or pointing(wish) or wish.split()[0].lower() not in VERBS:
        return
    if not 2 <= len(words(wish)) <= 25:
        return
    shared = set(content_words(wish)) & set(content_words(_spread(block.text)))
    why = "sentence before the code asks for it"
    score = 0.9 if shared else 0.6
    note = f"shares {len(shared)} word(s) with the code"
    ask = f"how do I {mine(small(wish))}?"
    yield Candidate("text_to_code", ask, block.markdown, section, block.place, score, (why, note))


def _explained(block: Block, after: Block, section: Section) -> Iterator[Candidate]:
    found = sentences(after.text)
    named = {word for word in re.findall(r"`([^`]+)`", after.text) if _inside(word, block.text)}
    about = _ABOUT.match(found[0])
    begins = re.match(r"`([^`]+)`", after.text)
    subject = begins is not None and begins[1] in named
    if not (about or (subject and len(named) >= 2)) or not all(complete(s) for s in found):
        return
    if len(words(after.text)) < 10:
        return
    what = "command" if block.language in SHELL and "\n" not in block.text else "code"
    why = "paragraph after the code " + (
        "speaks of it" if about else f"explains {len(named)} names"
    )
    score = min(0.95, 0.75 + 0.07 * len(named))
    yield Candidate(
        "code_to_text",
        f"what does this {what} do?",
        after.text,
        section,
        block.place,
        score,
        (why,),
        block.markdown,
        alone=True,
    )


def _inside(name: str, code: str) -> bool:
    stem = re.sub(r"\(.*", "", name)
    return len(stem) > 1 and re.search(rf"(?<!\w){re.escape(stem)}(?!\w)", code) is not None


def _spread(code: str) -> str:
    """Code with its identifiers as words."""
    return re.sub(r"([a-z])([A-Z])", r"\1 \2", re.sub(r"[_\W]+", " ", code))


def bodies(section: Section) -> Iterator[Candidate]:
    """Functions of a Python file: from signature and docstring to the body."""
    for block in section.blocks:
        if block.kind == "code":
            for function in functions(block.text, int(block.place)):
                yield from _body(function, section)


def _body(function: Function, section: Section) -> Iterator[Candidate]:
    lines = [row for row in function.body.split("\n") if row.strip()]
    first = sentences(function.docstring.split("\n\n")[0])
    trivial = re.fullmatch(r"\s*(?:pass|\.\.\.|raise NotImplementedError.*)\s*", function.body)
    if not 2 <= len(lines) <= 40 or trivial or not first or "/test" in f"/{section.file}":
        return
    described = len(words(function.docstring))
    if described < 8 or not re.match(r"[A-Z`]", first[0]) or function.name.startswith("test_"):
        return
    outside = len(function.outside)
    score = 0.95 - 0.03 * outside - (0.1 if described < 12 else 0.0)
    why = (
        f"docstring of {described} words, body of {len(lines)} lines, "
        f"{outside} name(s) from outside"
    )
    within = f" of the class `{function.owner}`" if function.owner != function.name else ""
    ask = f"write the body of this Python function{within} in `{section.file}`:"
    yield Candidate(
        "function",
        ask,
        f"```python\n{function.body}\n```",
        section,
        str(function.line),
        score,
        (why,),
        f"```python\n{function.head}\n```",
        alone=True,
    )
