"""HTML to sections: the main text, without what surrounds it on every page."""

from __future__ import annotations

import re
import warnings

from bs4 import BeautifulSoup, NavigableString, Tag
from bs4.element import PreformattedString

from mlx_ft.documents.prose import word_set
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
    listing,
    paragraph,
    strip_marks,
    table,
)

_DROPPED = [
    "script", "style", "nav", "footer", "aside", "form", "noscript", "template", "svg", "iframe",
    "object", "button", "select", "dialog", "canvas", "audio", "video", "head",
]  # fmt: skip
_CHROME = re.compile(
    r"^(?:headerlink|toc|toctree.*|sidebar.*|breadcrumbs?|navbar.*|navigation|menu|footer|related|"
    r"skip-link|edit-link|cookie.*|linenos|copybtn)$"
)
_ROLES = ("navigation", "banner", "contentinfo", "search", "complementary", "doc-toc")
_INLINE = word_set(
    "a abbr b bdi bdo br cite code data del dfn em font i img ins kbd label mark q s samp small "
    "span strike strong sub sup time tt u var wbr"
)


def read_html(text: str, file: str) -> Document:
    """An HTML file's sections; places are line numbers. Nothing is fetched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on XHTML, and on text that looks like a path
        soup = BeautifulSoup(text, "html.parser")
    name = strip_marks(soup.title.get_text()) if soup.title else ""
    for tag in soup.find_all(_DROPPED):
        tag.decompose()
    for tag in soup.find_all(_is_chrome):
        tag.decompose()
    outline = Outline(file, "html")
    _blocks(_main(soup), outline)
    document = outline.document()
    document.title = document.title or name
    return document


def _main(soup: BeautifulSoup) -> Tag:
    for found in (soup.find("main"), soup.find(attrs={"role": "main"}), soup.find("article")):
        if isinstance(found, Tag) and found.get_text(strip=True):
            return found
    return soup.body or soup


def _is_chrome(tag: Tag) -> bool:
    if tag.name in ("body", "main", "article", "html"):
        return False
    classes = tag.get("class") or []
    names = classes.split() if isinstance(classes, str) else classes
    hidden = tag.has_attr("hidden") or tag.get("aria-hidden") == "true"
    return hidden or tag.get("role") in _ROLES or any(_CHROME.match(name) for name in names)


def _blocks(parent: Tag, outline: Outline) -> None:
    """Add the blocks below an element; loose inline text between blocks is a paragraph."""
    loose, place = "", ""
    for child in parent.children:
        inline = _text_of(child)
        if inline is not None:
            if not loose.strip() and inline.strip():
                place = _place(child if isinstance(child, Tag) else parent)
            loose += inline
            continue
        outline.add(paragraph(loose, place))
        loose = ""
        if isinstance(child, Tag):
            _block(child, outline)
    outline.add(paragraph(loose, place))


def _text_of(child: object) -> str | None:
    """Inline text, or None for a block."""
    if isinstance(child, PreformattedString):
        return ""  # a comment, a doctype
    if isinstance(child, NavigableString):
        return str(child)
    if isinstance(child, Tag) and child.name in _INLINE and not child.find(["p", "div", "pre"]):
        return _inline(child)
    return None


def _block(tag: Tag, outline: Outline) -> None:
    place = _place(tag)
    if re.fullmatch(r"h[1-6]", tag.name):
        outline.heading(int(tag.name[1]), _inside(tag), place)
    elif tag.name == "p":
        outline.add(paragraph(_inside(tag), place))
    elif tag.name == "pre":
        outline.add(code(tag.get_text(), place, _language(tag)))
    elif tag.name in ("ul", "ol"):
        _list(tag, outline, place)
    elif tag.name == "dl":
        _terms(tag, outline, place)
    elif tag.name == "table":
        if tag.find("pre"):
            outline.warnings.append(f"line {place}: table with code left out")
            return
        rows = [[_inside(c) for c in row.find_all(["th", "td"])] for row in tag.find_all("tr")]
        outline.add(table(rows, place))
    else:
        _blocks(tag, outline)


def _list(tag: Tag, outline: Outline, place: str) -> None:
    entries = []
    for one in tag.find_all("li", recursive=False):
        inside = Outline(outline.file, outline.format)
        _blocks(one, inside)
        outline.warnings += inside.warnings
        entries.append(item(inside.document()))
    if found := [entry for entry in entries if entry]:
        outline.add(list_of(found, place, ordered=tag.name == "ol"))


def _terms(tag: Tag, outline: Outline, place: str) -> None:
    raws, term = [], ""
    for child in tag.find_all(["dt", "dd"], recursive=False):
        if child.name == "dt":
            term = _inside(child)
        elif term:
            raws.append(f"{BOLD}{strip_marks(term)}{END_BOLD}: {_inside(child)}")
            term = ""
    block = listing(raws, place)
    if block.entries:
        outline.add(block)


def _inside(tag: Tag) -> str:
    """The inline text of everything below a tag."""
    parts = []
    for child in tag.children:
        if isinstance(child, PreformattedString):
            continue
        if isinstance(child, NavigableString):
            parts.append(str(child))
        elif isinstance(child, Tag):
            parts.append(_inline(child))
    return "".join(parts)


def _inline(tag: Tag) -> str:
    if tag.name == "br":
        return " "
    if tag.name == "img":
        return LOST
    if tag.name in ("code", "tt", "kbd", "samp") and tag.get_text().strip():
        return f"`{' '.join(tag.get_text().split())}`"
    inner = _inside(tag)
    if tag.name in ("b", "strong") and strip_marks(inner):
        return f"{BOLD}{inner}{END_BOLD}"
    if tag.name == "a" and tag.has_attr("href") and strip_marks(inner):
        return f"{LINK}{inner}{END_LINK}"
    return inner if tag.name in _INLINE else f" {inner} "


def _language(tag: Tag) -> str:
    for holder in (tag, tag.find("code"), tag.parent, tag.parent.parent if tag.parent else None):
        if not isinstance(holder, Tag):
            continue
        classes = holder.get("class") or []
        for name in classes.split() if isinstance(classes, str) else classes:
            match = re.fullmatch(r"(?:language|highlight|lang)-([\w+#]+)", name)
            if match and match[1] not in ("default", "none"):
                return match[1].lower()
    return ""


def _place(tag: Tag) -> str:
    return str(tag.sourceline or 1)
