"""Markdown (CommonMark with tables; the admonitions of MkDocs and MyST) to sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from mlx_ft.documents.sections import (
    BOLD,
    END_BOLD,
    END_LINK,
    LINK,
    LOST,
    Document,
    Outline,
    code,
    item,
    list_of,
    paragraph,
    strip_marks,
    table,
)

ADMONITIONS = ("note", "tip", "hint", "important", "warning", "caution", "attention", "danger")
_ROLE = re.compile(r"\{([\w:.+-]+)\}$")
_NOTE_LINE = re.compile(r"(?:!!!|\?\?\?\+?|===)\s+[\w\"'“]")
# Directives of MkDocs plug-ins that fill in text we do not have.
_DROPPED_LINE = re.compile(r"(?:::: ?\S.*|\{[!*].*[!*]\}|\[TOC\]|\[\[_?toc_?\]\])\s*$", re.I)


def read_markdown(text: str, file: str) -> Document:
    """A Markdown file's sections; places are line numbers."""
    outline = Outline(file, "markdown")
    title, body = _front_matter(text)
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    _blocks(SyntaxTreeNode(parser.parse(_plain(body))).children, outline, 1)
    return outline.document(title)


def _front_matter(text: str) -> tuple[str, str]:
    """The title given in YAML front matter, and the text with it blanked out."""
    match = re.match(r"---\s*\n(.*?\n)---\s*(?:\n|$)", text, re.DOTALL)
    if not match:
        return "", text
    title = re.search(r"^title:\s*[\"']?(.+?)[\"']?\s*$", match[1], re.MULTILINE)
    return (title[1] if title else ""), "\n" * match[0].count("\n") + text[match.end() :]


def _plain(text: str) -> str:
    """Indented admonitions as ordinary blocks; directives dropped. Line numbers stay."""
    lines, inside, fenced = [], False, False
    for line in text.split("\n"):
        fenced ^= bool(re.match(r" {0,3}(?:```|~~~)", line)) and not inside
        if not fenced and _NOTE_LINE.match(line):
            inside = True
            lines.append("")
            continue
        if inside and line.strip() and not line.startswith("    "):
            inside = False
        if inside:
            line = line[4:]
        lines.append("" if not fenced and _DROPPED_LINE.match(line) else line)
    return "\n".join(lines)


def _blocks(nodes: Sequence[SyntaxTreeNode], outline: Outline, first: int) -> None:
    """Add blocks. first: the line at which their text begins."""
    for node in nodes:
        place = str((node.map[0] if node.map else 0) + first)
        if node.type == "heading":
            outline.heading(int(node.tag[1]), _inline(node), place)
        elif node.type == "paragraph":
            outline.add(paragraph(_inline(node), place))
        elif node.type in ("bullet_list", "ordered_list"):
            _list(node, outline, place, first)
        elif node.type == "fence":
            _fence(node, outline, int(place))
        elif node.type == "code_block":
            outline.add(code(node.content, place))
        elif node.type == "table":
            outline.add(table(list(_rows(node)), place))
        elif node.type == "blockquote":
            _blocks(node.children, outline, first)
        elif node.type == "html_block" and _has_words(node.content):
            outline.warnings.append(f"line {place}: raw HTML left out")


def _has_words(markup: str) -> bool:
    text = re.sub(r"<!--.*?-->|<[^>]*>", " ", markup, flags=re.DOTALL)
    return len(text.split()) > 5


def _fence(node: SyntaxTreeNode, outline: Outline, place: int) -> None:
    """Code, or a MyST directive: admonitions are text, other directives have none for us."""
    info = node.info.strip()
    directive = re.match(r"\{([\w:-]+)\}", info)
    if not directive:
        language = re.match(r"[\w+#-]*", info.split("{")[0].strip())
        outline.add(code(node.content, str(place), (language[0] if language else "").lower()))
    elif directive[1] in ADMONITIONS:
        inner = MarkdownIt("commonmark").parse(re.sub(r"(?m)^:\w+:.*$", "", node.content))
        _blocks(SyntaxTreeNode(inner).children, outline, place + 1)
    elif directive[1] in ("code", "code-block", "sourcecode", "doctest"):
        body = re.sub(r"\A(?::\w+:.*\n|\s*\n)+", "", node.content)
        outline.add(code(body, str(place), info[directive.end() :].strip().lower()))
    else:
        outline.warnings.append(f"line {place}: directive {{{directive[1]}}} left out")


def _list(node: SyntaxTreeNode, outline: Outline, place: str, first: int) -> None:
    entries = []
    for one in node.children:
        inside = Outline(outline.file, outline.format)
        _blocks(one.children, inside, first)
        outline.warnings += inside.warnings
        entries.append(item(inside.document()))
    if found := [entry for entry in entries if entry]:
        outline.add(list_of(found, place, ordered=node.type == "ordered_list"))


def _rows(node: SyntaxTreeNode) -> Iterator[list[str]]:
    for row in node.walk():
        if row.type == "tr":
            yield [_inline(cell) for cell in row.children]


def _inline(node: SyntaxTreeNode) -> str:
    """The inline text below a block, with marks; roles of MyST become code."""
    return re.sub(r"\[\^[^\]]+\]:?", "", "".join(_spans(child) for child in node.children))


def _spans(node: SyntaxTreeNode) -> str:
    before, after = node.previous_sibling, node.next_sibling
    if node.type == "text":
        named = after is not None and after.type == "code_inline"
        return _ROLE.sub("", node.content) if named else node.content
    if node.type == "code_inline":
        named = before is not None and before.type == "text"
        role = _ROLE.search(before.content) if before is not None and named else None
        return role_text(role[1], node.content) if role else f"`{node.content}`"
    if node.type in ("softbreak", "hardbreak"):
        return " "
    if node.type == "html_inline":
        return " " if node.content.lower().startswith("<br") else ""
    inner = "".join(_spans(child) for child in node.children)
    if node.type == "image":
        return LOST
    if node.type == "strong":
        return f"{BOLD}{inner}{END_BOLD}"
    if node.type == "link":
        return f"{LINK}{inner}{END_LINK}" if strip_marks(inner) else LOST
    return inner


def role_text(name: str, content: str) -> str:
    """Inline text of a Sphinx role: what Sphinx would show, as far as that can be known here."""
    named = re.fullmatch(r"(.+?)\s*<[^<>]*>", content, re.DOTALL)
    role = name.rsplit(":", 1)[-1]
    if role in ("doc", "ref", "numref", "any", "download", "eq"):
        return f"{LINK}{named[1]}{END_LINK}" if named else LOST  # a title that is written elsewhere
    if role in ("term", "abbr", "emphasis", "strong", "dfn", "menuselection", "guilabel"):
        return named[1] if named else content
    if role in ("pep", "rfc"):
        return f"{role.upper()} {content}"
    if named:
        return f"`{named[1]}`"
    last = content.rsplit(".", 1)[-1].lstrip("~")
    return f"`{last if content[0] == '~' else content.lstrip('!')}`"
