"""The key of a tokenizer that is not read yet: of everything that decides what it will be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_ft.models.load import Located
from mlx_ft.models.tokenizer import deferred_tokenizer
from tests.models import tiny


def key(folder: Path) -> str:
    return deferred_tokenizer(Located(folder, "tiny", "folder", None, {})).key


def test_what_decides_a_tokenizer_decides_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tmp_path / "model")
    tiny.save(tmp_path / "same")
    folder, seen = tmp_path / "model", [key(tmp_path / "model")]
    assert key(tmp_path / "same") == seen[0]
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert key(folder) == seen[0]
    (folder / "additional_chat_templates").mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        with (folder / name).open("a") as file:
            file.write(" ")
        seen.append(key(folder))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "another")
    seen.append(key(folder))
    assert len(set(seen)) == 5


def test_it_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    deferred = deferred_tokenizer(Located(tmp_path, "tiny", "folder", None, tiny.LLAMA))
    assert deferred.get().encode("a")
