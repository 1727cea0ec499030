import importlib.util

import pytest

from mlx_ft.documents.read import read, require
from mlx_ft.documents.sections import Document
from mlx_ft.documents.walk import Found, Unread, walk
from mlx_ft.errors import DataError
from tests.documents.make_files import pdf, write

LIMIT = 10_000


def outcome(folder):
    """File -> its format, or why it was left out."""
    found = {}
    for one in walk(folder, LIMIT):
        result = read(one) if isinstance(one, Found) else one
        name = result.file
        found[name] = result.reason if isinstance(result, Unread) else result.format
    return found


def test_every_file_is_read_or_left_out_for_a_reason(tmp_path):
    outside = write(tmp_path / "outside", {"secret.md": "# Secret\n\nNobody reads it."})
    folder = write(
        tmp_path / "docs",
        {
            "a.md": "# A\n\nText.",
            "bom.txt": b"\xef\xbb\xbfText with a mark.",
            "utf16.txt": "Text in UTF-16.".encode("utf-16"),
            "latin.txt": "Käse".encode("latin-1"),
            "nul.md": b"a\0b",
            "blank.md": " \n",
            "empty.md": "",
            "large.md": "x" * (LIMIT + 1),
            "bad.pdf": b"%PDF-1.4 nothing",
            "scan.pdf": pdf([[]]),
            "bad.docx": b"PK no archive",
            "bad.py": "def f(:\n",
            "code.rs": "fn main() {}",
            "picture.png": b"\x89PNG",
            "sub/README": "Read me first.",
            ".git/config.md": "hidden",
        },
    )
    (folder / "link.md").symlink_to(outside / "secret.md")
    (folder / "linked").symlink_to(outside)
    found = outcome(folder)
    assert found["bad.pdf"].startswith("damaged: ")
    assert found["bad.docx"].startswith("damaged: ")
    assert {k: v for k, v in found.items() if not k.startswith("bad.")} == {
        "a.md": "markdown",
        "bom.txt": "text",
        "utf16.txt": "text",
        "code.rs": "source",
        "sub/README": "text",
        "latin.txt": "not UTF-8 text (byte 1): save it as UTF-8",
        "nul.md": "binary: it has NUL bytes",
        "blank.md": "no text in it",
        "empty.md": "empty",
        "large.md": f"{LIMIT + 1:,} bytes: larger than the limit of {LIMIT:,}",
        "scan.pdf": "no text on its 1 page(s): scanned or drawn; it needs OCR first",
        "picture.png": "no reader for .png",
        ".git/": "a hidden, installed or built folder: not entered",
        "link.md": "a symbolic link: not followed",
        "linked": "a symbolic link: not followed",
    }
    assert found["bad.py"].startswith("not Python that this version reads")


def test_deep_nesting_is_a_reason_and_no_crash(tmp_path):
    folder = write(tmp_path, {"deep.html": "<div>" * 1900 + "text"})
    result = read(Found(folder / "deep.html", "deep.html", "html"))
    assert isinstance(result, Document) or result.reason == "nested too deeply"


def test_a_missing_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        list(walk(tmp_path / "none", LIMIT))


def test_a_missing_library_names_the_extra(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pypdf" else real(name)
    )
    files = [
        Found(tmp_path / "a.pdf", "a.pdf", "pdf"),
        Found(tmp_path / "a.md", "a.md", "markdown"),
    ]
    with pytest.raises(DataError, match=r"mlx-ft\[documents\]") as raised:
        require(files)
    assert raised.value.faults == ("pdf files need the Python module pypdf",)


def test_the_readers_marks_do_not_come_in_from_outside(tmp_path):
    folder = write(tmp_path, {"a.txt": "A \ue000mark\ue001 in the text."})
    document = read(Found(folder / "a.txt", "a.txt", "text"))
    assert document.sections[0].blocks[0].text == "A mark in the text."
