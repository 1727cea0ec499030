"""reStructuredText to sections: the part of it that documentation is written in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mlx_ft.documents.markdown import ADMONITIONS, role_text
from mlx_ft.documents.sections import (
    BOLD,
    END_BOLD,
    END_LINK,
    LINK,
    LOST,
    Document,
    Outline,
    code,
    listing,
    paragraph,
)

_RULE = re.compile(r"([=\-~^\"'`#*+:.<>_])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"\.\. ([\w:-]+)::\s*(.*)$")
_BULLET = re.compile(r"([-*+•]|\(?(?:\d+|[a-z#])[.)])\s+(\S.*)$")
_OPTION = re.compile(r":[\w -]+:(?:\s|$)")
_CODE = ("code", "code-block", "sourcecode", "highlight", "parsed-literal")
_SHOWN = (*ADMONITIONS, "seealso", "versionadded", "admonition", "epigraph")
# What these hold describes itself elsewhere, or only in its own version.
_HIDDEN = ("seealso", "versionadded", "versionchanged", "deprecated")
_PARENTS = ("tab", "tabs", "group-tab", "tab-item", "tab-set", "container", "rst-class")


@dataclass
class _Reader:
    outline: Outline
    styles: list[str] = field(default_factory=list)

    def blocks(self, lines: list[str], first: int) -> None:
        """Add the blocks of lines whose margin is 0. first: number of the first line."""
        at = 0
        while at < len(lines):
            at = self._block(lines, at, first)

    def _block(self, lines: list[str], at: int, first: int) -> int:
        """Add the block that begins at a line; returns the line after it."""
        line = lines[at]
        if not line.strip():
            return at + 1
        if heading := self._heading(lines, at, first):
            return heading
        if line.startswith(".."):
            end = _indented_end(lines, at + 1)
            self._directive(line, lines[at + 1 : end], first + at)
            return end
        if line.startswith((">>> ", "$ ")):
            end = _blank(lines, at)
            outline_code(self.outline, lines[at:end], first + at, "pycon" if line[0] == ">" else "")
            return end
        if _BULLET.match(line):
            return self._list(lines, at, first)
        if line[0].isspace():  # a quotation
            end = _indented_end(lines, at)
            self.blocks(_dedent(lines[at:end]), first + at)
            return end
        return self._text(lines, at, first)

    def _heading(self, lines: list[str], at: int, first: int) -> int:
        """The line after a heading that begins here, or 0."""
        over = at + 2 < len(lines) and _RULE.match(lines[at]) and lines[at + 1].strip()
        if over and lines[at + 2].strip() == lines[at].strip():
            style, title, end = lines[at][0] * 2, lines[at + 1], at + 3
        elif at + 1 < len(lines) and _RULE.match(lines[at + 1]) and not _RULE.match(lines[at]):
            if len(lines[at + 1].strip()) < len(lines[at].strip()) or lines[at][0].isspace():
                return 0
            style, title, end = lines[at + 1][0], lines[at], at + 2
        else:
            return 0
        if style not in self.styles:
            self.styles.append(style)
        self.outline.heading(self.styles.index(style) + 1, inline(title.strip()), str(first + at))
        return end

    def _directive(self, line: str, body: list[str], place: int) -> None:
        match = _DIRECTIVE.match(line)
        if not match:
            return  # a comment or a target
        name, argument, begin = match[1], match[2].strip(), place
        body = _dedent(body)
        while body and (not body[0].strip() or _OPTION.match(body[0])):
            body, place = body[1:], place + 1
        if name in _CODE:
            outline_code(self.outline, body, place + 1, argument)
        elif name in (*_SHOWN, *_PARENTS) and name not in _HIDDEN:
            keep = argument if name in ADMONITIONS else ""
            self.blocks([keep, *body], place)
        elif name not in (*_HIDDEN, "highlight", "currentmodule", "module", "index", "toctree"):
            self.outline.warnings.append(f"line {begin}: directive {name} left out")

    def _list(self, lines: list[str], at: int, first: int) -> int:
        raws: list[str] = []
        begin, more = at, False
        ordered = not re.match(r"[-*+•]", lines[at])
        while at < len(lines):
            match = _BULLET.match(lines[at])
            if not match:
                break
            end = _indented_end(lines, at + 1)
            item = [match[2], *(text.strip() for text in lines[at + 1 : end])]
            head = item.index("") if "" in item else len(item)
            raws.append(inline(" ".join(item[:head])))
            more |= any(item[head:])
            at = end
        self.outline.add(listing(raws, str(first + begin), ordered=ordered, more=more))
        return at if at > begin else begin + 1

    def _text(self, lines: list[str], at: int, first: int) -> int:
        """A paragraph with the literal block that it may announce, or a definition list."""
        if at + 1 < len(lines) and lines[at + 1][:1].isspace() and lines[at + 1].strip():
            return self._definitions(lines, at, first)
        end = _blank(lines, at)
        text = lines[at:end]
        if _OPTION.match(text[0]) or _RULE.match(text[0]) or text[0][0] in "+|":
            if text[0][0] in "+=":
                self.outline.warnings.append(f"line {first + at}: table left out")
            return end
        joined = " ".join(part.strip() for part in text)
        literal = joined.endswith("::")
        joined = re.sub(r"(?<=[.!?][\"” ])\s*::$|(?<=[.!?])\s*::$", "", joined)
        joined = re.sub(r"\s*::$", ":", joined)
        if joined != ":":
            self.outline.add(paragraph(inline(joined), str(first + at)))
        if literal:
            after = _indented_end(lines, end)
            outline_code(self.outline, _dedent(lines[end:after]), first + end + 1, "")
            return after
        return end

    def _definitions(self, lines: list[str], at: int, first: int) -> int:
        """Terms at the margin, each with indented text, as a list of terms."""
        raws, begin, more = [], at, False
        while at + 1 < len(lines) and lines[at].strip() and not lines[at][0].isspace():
            if not lines[at + 1].strip() or not lines[at + 1][0].isspace():
                break
            end = _indented_end(lines, at + 1)
            body = [text.strip() for text in lines[at + 1 : end]]
            head = body.index("") if "" in body else len(body)
            term = inline(re.sub(r" : .*$", "", lines[at].strip()))
            raws.append(f"{BOLD}{term}{END_BOLD}: {inline(' '.join(body[:head]))}")
            more |= any(body[head:])
            at = end
        self.outline.add(listing(raws, str(first + begin), more=more))
        return at


def read_rst(text: str, file: str) -> Document:
    """A reStructuredText file's sections; places are line numbers. Tables are left out."""
    outline = Outline(file, "rst")
    _Reader(outline).blocks(text.expandtabs(8).split("\n"), 1)
    return outline.document()


def outline_code(outline: Outline, lines: list[str], place: int, language: str) -> None:
    """Add code; a doctest is named as such."""
    text = "\n".join(lines)
    if text.lstrip().startswith(">>>"):
        language = "pycon"
    outline.add(code(text, str(place), language.lower()))


def inline(text: str) -> str:
    """Inline markup as inline text with our marks."""
    held: list[str] = []

    def hold(found: str) -> str:
        held.append(found)
        return f"\uf000{len(held) - 1}\uf001"

    text = re.sub(r"``(.+?)``", lambda m: hold(f"`{m[1]}`"), text)
    text = re.sub(r":([\w:.+-]+):`([^`]+)`", lambda m: hold(role_text(m[1], m[2])), text)
    text = re.sub(r"`([^`<]+?)\s*<[^<>`]*>`__?", lambda m: f"{LINK}{m[1]}{END_LINK}", text)
    text = re.sub(r"`([^`]+)`__?", lambda m: f"{LINK}{m[1]}{END_LINK}", text)
    text = re.sub(r"`([^`]+)`", lambda m: hold(f"`{m[1]}`"), text)
    text = re.sub(r"\*\*(.+?)\*\*", lambda m: f"{BOLD}{m[1]}{END_BOLD}", text)
    text = re.sub(r"(?<![\w*])\*([^\s*][^*]*?)\*(?![\w*])", r"\1", text)
    text = re.sub(r"\|[\w .-]+\|_?", LOST, text)
    text = re.sub(r"\[[\w#*-]+\]_", "", text)
    text = re.sub(r"\b(\w+)_(?=[\s.,;:)]|$)", r"\1", text)
    text = re.sub(r"\\(.)", r"\1", text)
    return re.sub("\uf000(\\d+)\uf001", lambda m: held[int(m[1])], text)


def _blank(lines: list[str], at: int) -> int:
    """The next blank line, or the end."""
    while at < len(lines) and lines[at].strip():
        at += 1
    return at


def _indented_end(lines: list[str], at: int) -> int:
    """The end of the indented lines, blank ones among them included, that begin here."""
    end = at
    for number in range(at, len(lines)):
        if lines[number].strip():
            if not lines[number][0].isspace():
                break
            end = number + 1
    return end


def _dedent(lines: list[str]) -> list[str]:
    depth = min((len(s) - len(s.lstrip()) for s in lines if s.strip()), default=0)
    return [line[depth:] for line in lines]
