import argparse
import json
import subprocess
import sys

import pytest

from mlx_ft.data.formats import unused_keys
from mlx_ft.documents import write as writing
from mlx_ft.documents.build import BuildOptions, build
from mlx_ft.documents.command import add_arguments, main
from mlx_ft.documents.split import RUN
from mlx_ft.errors import DataError
from tests.documents.make_files import GUIDE, write


def long_guide(parts=30):
    """Sections that each give a definition and a question, all different."""
    sections = []
    for n in range(parts):
        name = f"gadget{'abcdefghijklmnopqrstuvwxyz'[n % 26]}{n}"
        sections.append(
            f"## The {name} of the house\n\n`{name}` creates {n} lamps and sends them to floor {n} "
            f"of house {n}, where the people of flat {n} use them. Every {name} has {n} doors and "
            f"{n} windows, so that {n} cats can come in through door {n} at night.\n"
        )
    return "# House\n\n" + "\n".join(sections)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "docs", {"guide.md": GUIDE, "house.md": long_guide(), "x.png": b"x"})


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_folder_that_is_written(folder, tmp_path):
    out = tmp_path / "out"
    result = build(folder, BuildOptions(out, test_fraction=0.1, chunk_words=60))
    names = {path.name for path in out.iterdir()}
    assert names == {*writing.FILES}
    written = {side: rows(out / f"{side}.jsonl") for side in ("train", "valid", "test")}
    assert written == result.items
    assert all(len(found) > 3 for found in written.values())
    row = written["train"][0]
    assert set(row) == {
        "messages", "source", "section", "kind", "quality", "quality_reasons",
    }  # fmt: skip
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    report = json.loads((out / "report.json").read_text())
    assert report == result.report
    assert report["unread"] == [{"file": "x.png", "reason": "no reader for .png"}]
    assert sum(report["items"].values()) == sum(sum(f["items"].values()) for f in report["files"])
    assert [f["sections"] for f in report["files"]] == [5, 31]
    assert rows(out / "chunks.jsonl")[0]["text"].startswith("# ")


def test_what_is_written_of_a_rows_origin_is_no_unused_key(folder, tmp_path):
    result = build(folder, BuildOptions(tmp_path / "out", chunk_words=60))
    for row in (*result.items["train"][:9], *result.chunks["train"][:3]):
        assert unused_keys(row) == []
        assert unused_keys({**row, "id": 3}) == ["id"]
    assert unused_keys({"text": "a", "source": "web", "quality": 1}) == ["source", "quality"]


def runs(text):
    found = text.split()
    return {tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)}


def test_sections_and_words_are_on_one_side_only(folder, tmp_path):
    out = tmp_path / "out"
    build(folder, BuildOptions(out, valid_fraction=0.3, chunk_words=80))
    train, valid = rows(out / "train.jsonl"), rows(out / "valid.jsonl")
    sections = [
        {(r["source"].split(":")[0], *r["section"]) for r in side} for side in (train, valid)
    ]
    assert not sections[0] & sections[1]
    held_out = set().union(*(runs(r["messages"][1]["content"]) for r in valid))
    trained = [r["messages"][1]["content"] for r in train]
    trained += [r["text"] for r in rows(out / "chunks.jsonl")]
    assert held_out
    assert not any(runs(text) & held_out for text in trained)


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from mlx_ft.documents.build import BuildOptions, build\n"
        "build(Path(sys.argv[1]), BuildOptions(Path(sys.argv[2])))"
    )
    contents = []
    for n in range(2):  # other hash seeds, so another order of sets
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(tmp_path / f"out{n}")],
            check=True,
            env={"PYTHONHASHSEED": str(n), "PATH": "/usr/bin"},
        )
        contents.append({p.name: p.read_bytes() for p in (tmp_path / f"out{n}").iterdir()})
    assert contents[0] == contents[1]
    build(folder, BuildOptions(tmp_path / "other", seed=7))
    assert (tmp_path / "other" / "train.jsonl").read_bytes() != contents[0]["train.jsonl"]


def test_an_earlier_result_is_replaced_only_when_asked_to(folder, tmp_path):
    out = tmp_path / "out"
    build(folder, BuildOptions(out, test_fraction=0.2))
    with pytest.raises(DataError, match="already holds a result"):
        build(folder, BuildOptions(out))
    build(folder, BuildOptions(out, overwrite=True))
    assert not (out / "test.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_that_are_not_ours_are_never_replaced(folder):
    with pytest.raises(DataError, match=r"guide\.md"):
        build(folder, BuildOptions(folder, overwrite=True))
    assert (folder / "guide.md").read_text() == GUIDE


def test_a_result_inside_the_folder_is_not_read_again(folder):
    out = folder / "data"
    first = build(folder, BuildOptions(out)).report
    assert build(folder, BuildOptions(out, overwrite=True)).report == first


def test_a_failed_write_leaves_the_earlier_result(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(folder, BuildOptions(out))
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        build(folder, BuildOptions(out, seed=9, overwrite=True))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["docs", "out"]


def test_all_faults_of_the_options_come_at_once(folder, tmp_path):
    options = BuildOptions(
        tmp_path / "out", valid_fraction=2, min_quality=-1, kinds=("poem",), chunk_words=3
    )
    with pytest.raises(DataError) as raised:
        build(folder, options)
    assert len(raised.value.faults) == 5
    assert not (tmp_path / "out").exists()


def test_documents_without_anything_usable_are_an_error_with_the_reasons(tmp_path):
    folder = write(tmp_path / "docs", {"a.md": "", "b.bin": "x"})
    with pytest.raises(DataError) as raised:
        build(folder, BuildOptions(tmp_path / "out"))
    assert raised.value.faults == ("a.md: empty", "b.bin: no reader for .bin")
    assert not (tmp_path / "out").exists()


def test_options_choose_what_is_made(folder, tmp_path):
    options = BuildOptions(
        tmp_path / "out", valid_fraction=0, kinds=("definition",), chunk_words=0, subject="Home"
    )
    result = build(folder, options)
    assert set(result.report["kinds"]) == {"definition"}
    assert result.chunks == {"train": []}
    assert list(result.items) == ["train"]
    assert all(
        r["messages"][0]["content"].startswith(("In Home, ", "According"))
        for r in result.items["train"]
    )


def test_long_blocks_are_cut_and_nothing_is_lost(tmp_path):
    sentences = [f"Sentence number {n} has a few words of its own." for n in range(60)]
    folder = write(tmp_path / "docs", {"a.md": "# A\n\n" + " ".join(sentences)})
    result = build(folder, BuildOptions(tmp_path / "out", chunk_words=50))
    texts = [r["text"] for r in result.chunks["train"]]
    assert max(len(text.split()) for text in texts) <= 52  # with the heading
    assert " ".join(texts).removeprefix("# A\n\n") == " ".join(sentences)


def test_the_command_prints_a_summary(folder, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args([str(folder), "--out", str(tmp_path / "out"), "--seed", "3"])
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 documents read, 1 files left out" in said
    assert "x.png: no reader for .png" in said
    assert f"data.path={tmp_path / 'out'}" in said
