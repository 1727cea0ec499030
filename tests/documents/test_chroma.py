import importlib.util

import pytest

from mlx_ft.documents import chroma
from mlx_ft.documents.build import BuildOptions, build
from mlx_ft.errors import DataError
from tests.documents.make_files import GUIDE


class FakeCollection:
    """Records as Chroma returns them, with the calls that were made."""

    def __init__(self, records):
        self.records = records
        self.calls = []

    def count(self):
        return len(self.records)

    def get(self, *, limit, offset, include):
        self.calls.append((limit, offset))
        page = self.records[offset : offset + limit]
        return {
            "ids": [key for key, _, _ in page],
            "documents": [text for _, text, _ in page],
            "metadatas": [metadata for _, _, metadata in page],
        }


def test_a_collection_is_read_in_pages():
    records = [(f"k{n}", f"Text number {n}.", {"source": f"f{n % 2}"}) for n in range(600)]
    collection = FakeCollection(records)
    found = chroma.documents(collection, "notes")
    assert collection.calls == [(256, 0), (256, 256), (256, 512)]
    assert [(d.file, len(d.sections)) for d in found] == [("f0", 300), ("f1", 300)]


def test_titles_come_from_metadata_or_from_the_text():
    records = [
        ("a", "Text.", {"Header 1": "One", "Header 2": "Two", "source": "x.md"}),
        ("b", "# Three\n\nMore text.", None),
        ("c", "  ", {}),
        ("d", None, {}),
    ]
    notes, x = chroma.documents(FakeCollection(records), "notes")
    assert [s.titles for s in x.sections] == [("One", "Two")]
    assert [(s.titles, s.blocks[0].place) for s in notes.sections] == [(("Three",), "record b")]
    assert notes.warnings == ["2 record(s) of notes without a document"]


def test_records_become_items_with_their_ids(tmp_path, monkeypatch):
    records = [("guide-1", GUIDE, {"source": "guide.md"})]
    monkeypatch.setattr(chroma, "open_collection", lambda folder, name: FakeCollection(records))
    result = build("chroma:somewhere/notes", BuildOptions(tmp_path / "out", valid_fraction=0))
    sources = {row["source"] for row in result.items["train"]}
    assert sources == {"guide.md#record=guide-1"}
    assert result.report["source"] == "chroma:somewhere/notes"


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="chroma:PATH/COLLECTION"):
        chroma.read_collection("chroma:notes")
    real = importlib.util.find_spec
    found = {"chromadb": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name, real(name)))
    with pytest.raises(DataError, match=r"mlx-ft\[chroma\]"):
        chroma.read_collection(f"chroma:{tmp_path}/notes")
    found["chromadb"] = True
    with pytest.raises(DataError, match=r"no chroma\.sqlite3"):
        chroma.read_collection(f"chroma:{tmp_path}/notes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("chromadb") is None, reason="the extra chroma")
def test_the_real_library(tmp_path):
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(tmp_path), Settings(anonymized_telemetry=False))
    made = client.create_collection("notes", embedding_function=None)
    ids = [f"k{n:03}" for n in range(300)]
    made.add(ids=ids, documents=[f"Text {key}." for key in ids], embeddings=[[1.0, 2.0]] * 300)
    (document,) = chroma.read_collection(f"chroma:{tmp_path}/notes")
    assert len(document.sections) == 300
    with pytest.raises(DataError, match="it has: notes"):
        chroma.read_collection(f"chroma:{tmp_path}/none")
