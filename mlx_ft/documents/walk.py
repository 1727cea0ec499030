"""The files of a folder: each one is either to be read or left out for a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_ft.errors import DataError

# Extension -> reader. Other languages than Python have no reader: they are raw chunks.
FORMATS = {
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown", ".txt": "text", ".text": "text",
    ".rst": "rst", ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf",
    ".docx": "docx", ".py": "python",
    **dict.fromkeys(
        [".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".jsx", ".ts", ".tsx",
         ".kt", ".m", ".mm", ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift",
         ".lua", ".jl", ".hs", ".ex", ".erl", ".clj", ".metal", ".cu"],
        "source",
    ),
}  # fmt: skip
SKIPPED_FOLDERS = ("__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist")


@dataclass(frozen=True)
class Found:
    """A file to read. name: relative to the folder, with forward slashes. format: of `FORMATS`."""

    path: Path
    name: str
    format: str


@dataclass(frozen=True)
class Unread:
    """A file or folder that was left out, and why."""

    file: str
    reason: str


def walk(folder: Path, max_bytes: int, out: Path | None = None) -> Iterator[Found | Unread]:
    """Everything below a folder (or the one file), sorted by name. Links are not followed.

    out: a folder of ours to pass over. Raises DataError when there is no such folder.
    """
    if not folder.exists():
        raise DataError(f"There is no folder or file {folder}; check the path.")
    root = folder.resolve()
    if root.is_file():
        yield _judge(root, root.name, max_bytes)
        return
    yield from _walk(root, root, max_bytes, out.resolve() if out else None)


def _walk(root: Path, folder: Path, max_bytes: int, out: Path | None) -> Iterator[Found | Unread]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Unread(folder.relative_to(root).as_posix(), f"cannot be listed: {error.strerror}")
        return
    for entry in entries:
        path = Path(entry.path)
        name = path.relative_to(root).as_posix()
        name = name.encode("utf-8", "backslashreplace").decode()
        if entry.is_symlink():
            yield Unread(name, "a symbolic link: not followed")
        elif entry.is_dir(follow_symlinks=False):
            if path == out:
                continue
            if entry.name.startswith(".") or entry.name in SKIPPED_FOLDERS:
                yield Unread(name + "/", "a hidden, installed or built folder: not entered")
            else:
                yield from _walk(root, path, max_bytes, out)
        elif entry.is_file(follow_symlinks=False):
            yield _judge(path, name, max_bytes)
        else:
            yield Unread(name, "neither a file nor a folder")


def _judge(path: Path, name: str, max_bytes: int) -> Found | Unread:
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        if path.suffix or path.stem.upper() not in ("README", "INSTALL", "NEWS"):
            return Unread(name, f"no reader for {path.suffix or 'a file without an extension'}")
        format = "text"
    size = path.stat().st_size
    if size == 0:
        return Unread(name, "empty")
    if size > max_bytes:
        return Unread(name, f"{size:,} bytes: larger than the limit of {max_bytes:,}")
    return Found(path, name, format)
