"""A ChromaDB collection as a source of documents, read in pages."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from mlx_ft.documents.markdown import read_markdown
from mlx_ft.documents.plain import read_plain
from mlx_ft.documents.sections import Document, Section
from mlx_ft.errors import DataError

PAGE = 256  # records at a time
# Metadata that names the file a record is from, and the headings it stands under.
_FILE_KEYS = ("source", "file", "filename", "file_name", "file_path", "path", "url", "document")
_TITLE_KEYS = ("title", "heading", "section", "chapter")


class Collection(Protocol):
    """What we use of `chromadb.Collection`."""

    def count(self) -> int:
        """The number of records."""

    def get(self, *, limit: int, offset: int, include: list[str]) -> Mapping[str, Any]:
        """A page of records."""


def read_collection(source: str) -> list[Document]:
    """The records of `chroma:PATH/COLLECTION`, one document for each file that they name.

    Raises DataError: the library is missing, no database, no such collection.
    """
    place, _, name = source.removeprefix("chroma:").rpartition("/")
    if not place or not name:
        raise DataError(f"{source!r} names no collection; expected chroma:PATH/COLLECTION.")
    return documents(open_collection(Path(place), name), name)


def open_collection(folder: Path, name: str) -> Collection:
    """Open a collection of an embedded database. Raises DataError."""
    if importlib.util.find_spec("chromadb") is None:
        raise DataError(
            "Reading a Chroma collection needs the package chromadb; add the extra: "
            "pip install 'mlx-ft[chroma]'."
        )
    # The client would make a new, empty database.
    if not (folder / "chroma.sqlite3").is_file():
        raise DataError(f"There is no Chroma database in {folder} (no chroma.sqlite3).")
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
    names = sorted(found.name for found in client.list_collections())
    if name not in names:
        known = ", ".join(names) or "none"
        raise DataError(f"There is no collection {name!r} in {folder}; it has: {known}.")
    # Without an embedding function: the default one would fetch a model.
    collection: Collection = client.get_collection(name, embedding_function=None)
    return collection


def documents(collection: Collection, name: str) -> list[Document]:
    """The records of a collection in the order of their files and ids."""
    files: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    empty = 0
    for key, text, metadata in _records(collection):
        if not text.strip():
            empty += 1
            continue
        file = next((str(metadata[k]) for k in _FILE_KEYS if metadata.get(k)), name)
        files.setdefault(file, []).append((key, text, metadata))
    found = [_document(file, files[file]) for file in sorted(files)]
    if empty and found:
        found[0].warnings.append(f"{empty} record(s) of {name} without a document")
    return found


def _records(collection: Collection) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    total = collection.count()
    for offset in range(0, total, PAGE):
        page = collection.get(limit=PAGE, offset=offset, include=["documents", "metadatas"])
        texts = page["documents"] or [None] * len(page["ids"])
        metadatas = page["metadatas"] or [None] * len(page["ids"])
        for key, text, metadata in zip(page["ids"], texts, metadatas, strict=True):
            yield key, text or "", metadata or {}


def _document(file: str, records: list[tuple[str, str, Mapping[str, Any]]]) -> Document:
    sections: list[Section] = []
    for key, text, metadata in records:
        marked = re.search(r"(?m)^#{1,6} \S|^```|^[-*] \S|\*\*\w", text)
        inner = read_markdown(text, file) if marked else read_plain(text, file)
        titles = _titles(metadata)
        for section in inner.sections:
            place = f"record {key}"
            blocks = tuple(replace(b, place=place) for b in section.blocks)
            own = section.titles if section.titles[: len(titles)] != titles else ()
            sections.append(
                Section(file, (*titles, *own) if own else titles or section.titles, place, blocks)
            )
    title = next((s.titles[0] for s in sections if s.titles), "")
    return Document(file, "chroma", title, sections)


def _titles(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings from metadata: `Header 1`, `Header 2`, ... or a title."""
    headers = {
        int(match[1]): str(value)
        for key, value in metadata.items()
        if value and (match := re.fullmatch(r"(?:header|heading|h)[ _]?(\d)", str(key), re.I))
    }
    if headers:
        return tuple(headers[level] for level in sorted(headers))
    return tuple(str(metadata[key]) for key in _TITLE_KEYS if metadata.get(key))
