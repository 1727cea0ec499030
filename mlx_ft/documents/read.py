"""A file to its sections, or the reason why not."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Iterable, Sequence

from mlx_ft.documents.sections import BOLD, LOST, Document, Outline, code
from mlx_ft.documents.walk import Found, Unread
from mlx_ft.errors import DataError

logger = logging.getLogger(__name__)

# Format -> the libraries that its reader is built on.
NEEDED = {
    "markdown": ("markdown_it",),
    "rst": ("markdown_it",),
    "html": ("bs4",),
    "pdf": ("pypdf",),
    "docx": ("docx",),
}
_STRIPPED = re.compile(f"[{BOLD}-{LOST}\ufeff\u200b\u00ad]")


def require(files: Iterable[Found]) -> None:
    """Raise DataError when a file's reader needs a library that is not installed."""
    formats = sorted({file.format for file in files})
    missing = [
        f"{format} files need the Python module {module}"
        for format in formats
        for module in NEEDED.get(format, ())
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise DataError(
            "A library for reading documents is not installed; add the extra: "
            "pip install 'mlx-ft[documents]'.",
            missing,
        )


def read(file: Found) -> Document | Unread:
    """The sections of a file; when it cannot be used, why. Never raises for a bad file."""
    try:
        content = file.path.read_bytes()
        document = _read(content, file)
    except (OSError, MemoryError) as error:
        return Unread(file.name, f"cannot be read: {error}")
    except RecursionError:
        return Unread(file.name, "nested too deeply")
    except Exception as error:  # the readers' libraries raise anything on damaged files
        known = type(error).__name__ in ("PdfRefused", "DocxRefused", "_Refused")
        logger.debug("%s could not be read", file.name, exc_info=not known)
        said = " ".join(str(error).split())[:200]
        return Unread(file.name, said if known else f"damaged: {type(error).__name__}: {said}")
    if isinstance(document, Document) and not any(s.blocks for s in document.sections):
        return Unread(file.name, "no text in it")
    return document


class _Refused(Exception):
    """The file cannot be used; the message is the reason."""


def _read(content: bytes, file: Found) -> Document:
    if file.format == "pdf":
        from mlx_ft.documents.pdf import read_pdf

        return read_pdf(content, file.name)
    if file.format == "docx":
        from mlx_ft.documents.word import read_docx

        return read_docx(content, file.name)
    return _read_text(_decode(content), file)


def _read_text(text: str, file: Found) -> Document:
    if file.format == "markdown":
        from mlx_ft.documents.markdown import read_markdown

        return read_markdown(text, file.name)
    if file.format == "rst":
        from mlx_ft.documents.rst import read_rst

        return read_rst(text, file.name)
    if file.format == "html":
        from mlx_ft.documents.html import read_html

        return read_html(text, file.name)
    if file.format == "python":
        return _read_python(text, file)
    if file.format == "source":
        outline = Outline(file.name, "source")
        outline.add(code(text, "1", file.path.suffix[1:].lower()))
        return outline.document(f"`{file.name}`")
    from mlx_ft.documents.plain import read_plain

    return read_plain(text, file.name)


def _read_python(text: str, file: Found) -> Document:
    from mlx_ft.documents.python_source import read_python

    try:
        return read_python(text, file.name)
    except (SyntaxError, ValueError) as error:
        raise _Refused(f"not Python that this version reads: {error}") from None


def _decode(content: bytes) -> str:
    """Bytes as text with `\\n` line ends. UTF-8, or UTF-16 with its mark."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content:
        raise _Refused("binary: it has NUL bytes")
    else:
        encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _Refused(f"not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    text = _STRIPPED.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.strip():
        raise _Refused("no text in it")
    if sum(c < " " and c not in "\t\n\f" for c in text) > len(text) / 100:
        raise _Refused("binary: control characters")
    return text


def reasons(unread: Sequence[Unread]) -> list[str]:
    """One line for each file that was left out."""
    return [f"{one.file}: {one.reason}" for one in unread]
