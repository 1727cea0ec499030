"""A run's folder: one run each, whole files, nothing written where it is refused."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_ft import durable
from mlx_ft.errors import OutputError
from mlx_ft.runfolder import RunFolder, writable


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_makes_a_new_folder_each_time(tmp_path: Path) -> None:
    made = [RunFolder.create(None, tmp_path / "outputs") for _ in range(3)]
    paths = {folder.path for folder in made}
    assert len(paths) == 3
    assert all(path.parent == tmp_path / "outputs" / "runs" for path in paths)
    for folder in made:
        folder.release()


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_refuses_a_folder_that_holds_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("earlier")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=rf"already holds a run \({name}\)") as error:
        RunFolder.create(tmp_path, Path("unused"))
    assert error.value.exit_code == 2
    assert contents(tmp_path) == before


HOLDER = """
import sys
from pathlib import Path
from mlx_ft.runfolder import RunFolder
folder = RunFolder.create(Path(sys.argv[1]), Path("unused"))
print("held", flush=True)
sys.stdin.read()
folder.release()
"""


def test_a_second_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="in use by another run"):
            RunFolder.create(tmp_path, Path("unused"))
        holder.stdin.close()
    assert holder.returncode == 0
    RunFolder.create(tmp_path, Path("unused")).release()
    assert set(contents(tmp_path)) == {".lock"}


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    RunFolder.create(tmp_path, Path("unused")).release()


@pytest.mark.parametrize("given", [True, False], ids=["run dir", "output dir"])
def test_an_unwritable_place_is_named_with_its_key(given: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    below = file / "deeper" / "run"
    key = "hydra.run.dir" if given else "paths.output_dir"
    path, output_dir = (below, tmp_path) if given else (None, below)
    with pytest.raises(OutputError, match=rf"{key}: cannot write to .*run.*{key}=FOLDER"):
        RunFolder.create(path, output_dir)
    assert writable(path, output_dir) == f"{file} is not a folder"
    assert contents(tmp_path) == {"file": b""}


def test_writable_looks_without_making_anything(tmp_path: Path) -> None:
    assert writable(None, tmp_path / "a" / "b") is None
    assert writable(tmp_path / "a" / "b", Path("unused")) is None
    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "run", Path("unused"))
    yield made
    made.release()


def test_a_file_is_replaced_whole_or_not_at_all(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("a.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", full)  # what was written may not be on the disk
        with pytest.raises(OSError, match="No space"):
            folder.write_text("a.txt", "new" * 10_000)
    assert (folder.path / "a.txt").read_text() == "old"
    folder.write_text("a.txt", "né")
    folder.write_bytes("b.png", b"\x89")
    assert (folder.path / "a.txt").read_text(encoding="utf-8") == "né"
    assert sorted(contents(folder.path)) == [".lock", "a.txt", "b.png"]  # nothing partial


def test_numbers_that_json_lacks_become_null(folder: RunFolder) -> None:
    figures = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "e": None, "f": "nan"}
    expected = {"a": None, "b": None, "c": None, "d": 1.5, "e": None, "f": "nan"}

    def strict(text: str) -> dict[str, object]:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the file"))

    assert strict(folder.write_summary(figures).read_text()) == expected
    folder.append_metrics({"step": 1, **figures})
    folder.append_metrics({"step": 2})
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [strict(line) for line in lines] == [{"step": 1, **expected}, {"step": 2}]


def test_rows_keep_their_letters(folder: RunFolder) -> None:
    path = folder.write_rows("samples.jsonl", [{"q": "São Tomé"}, {"q": "x"}])
    assert path.read_text(encoding="utf-8") == '{"q": "São Tomé"}\n{"q": "x"}\n'
    assert folder.write_rows("none.jsonl", []).read_text() == ""


def test_config_says_how_to_run_it_again(folder: RunFolder) -> None:
    import yaml

    public = {"lora": {"rank": 8}, "seed": 1, "note": "é", "uri": "${oc.env:URI}"}
    text = folder.write_config(public).read_text(encoding="utf-8")
    assert text.startswith("# Run again: python train.py --config-dir")
    assert yaml.safe_load(text) == public
    assert list(yaml.safe_load(text)) == list(public)


def test_log_file(folder: RunFolder) -> None:
    handler = folder.log_handler()
    handler.handle(logging.LogRecord("mlx_ft.x", logging.WARNING, "", 0, "said %s", ("é",), None))
    handler.close()
    assert "WARNING said é" in (folder.path / "train.log").read_text(encoding="utf-8")
