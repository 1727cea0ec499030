"""Finding a run again: the newest, by folder, by id, from elsewhere, and when it is damaged."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from mlx_ft.config.schema import Config
from mlx_ft.errors import AdapterError
from mlx_ft.saved import find_run, open_run


def write_run(folder: Path, age: float = 0, summary: dict | None = None, **changes: dict) -> Path:
    """A run folder with nothing in its adapter. changes: keys by section of the config."""
    (folder / "adapter").mkdir(parents=True)
    config = asdict(Config())
    for section, values in changes.items():
        config[section] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").write_text(json.dumps(summary or {}))
    os.utime(folder / "adapter", (1e9 - age, 1e9 - age))
    return folder


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLX_FT_OUTPUTS", raising=False)


def test_the_newest_run_may_be_a_sweeps():
    write_run(Path("outputs/runs/old"), age=9)
    newest = write_run(Path("outputs/sweeps/s/lora.rank=8"), age=1)
    assert find_run().folder == newest
    newer = write_run(Path("outputs/runs/new"))
    assert find_run().folder == newer


def test_runs_are_looked_for_where_they_are_written(monkeypatch):
    folder = write_run(Path("elsewhere/runs/one"), summary={"run_id": "abc"}).absolute()
    monkeypatch.setenv("MLX_FT_OUTPUTS", str(folder.parents[1]))
    assert find_run().folder == folder
    assert find_run("abc").folder == folder


def test_a_folder_without_config_is_passed_over(caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("mlx_ft"), "propagate", True)
    write_run(Path("outputs/runs/whole"), age=9)
    (write_run(Path("outputs/runs/part")) / "config.yaml").unlink()
    assert find_run().folder.name == "whole"
    assert "part has no config.yaml and is passed over" in caplog.text


def test_the_title_says_how_the_run_ended():
    write_run(Path("one"), summary={"status": "FINISHED", "steps": 130})
    assert open_run(Path("one")).title == "one (FINISHED, step 130)"
    write_run(Path("two"))
    assert open_run(Path("two")).title == "two (not ended, step ?)"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"[1, 2]"),
        ("config.yaml", b""),
        ("config.yaml", b"lora: {rank: many}"),
        ("config.yaml", b"model: {path: '${'}"),
        ("config.yaml", b"\xff\xfe"),
        ("summary.json", b"{"),
        ("summary.json", b"[1]"),
        ("summary.json", b"\xff"),
        ("summary.json", b"[" * 100_000),
    ],
)
def test_a_damaged_file_is_named(name, content):
    run = write_run(Path("run"))
    (run / name).write_bytes(content)
    with pytest.raises(AdapterError, match=f"run/{name} cannot be used"):
        find_run(run)


def test_a_file_that_cannot_be_read_is_named():
    run = write_run(Path("run"))
    (run / "summary.json").unlink()
    (run / "summary.json").mkdir()
    with pytest.raises(AdapterError, match=r"run/summary\.json cannot be used"):
        find_run(run)


@pytest.mark.parametrize("reference", ["~nosuchuser/x", "a" * 5000, "nowhere", ""])
def test_no_run(reference):
    write_run(Path("outputs/runs/one"))
    Path("outputs/summary.json").write_text("[1]")  # somebody else's
    with pytest.raises(AdapterError, match="neither a run folder"):
        find_run(reference)


def test_relative_paths_count_from_where_the_run_was_started(tmp_path, monkeypatch):
    start = tmp_path / "start"
    (start / "my" / "model").mkdir(parents=True)
    run = write_run(
        tmp_path / "run",
        summary={"working_dir": str(start)},
        model={"path": "my/model"},
        data={"path": "rows.jsonl", "test_path": "/abs.jsonl", "database": "./facts.db"},
    )
    config = find_run(run).config
    assert config.model.path == str(start / "my/model")
    assert config.data.path == str(start / "rows.jsonl")
    assert config.data.valid_path is None
    assert config.data.test_path == "/abs.jsonl"
    assert config.data.database == str(start / "facts.db")


@pytest.mark.parametrize("path", ["embedded", "org/name", "~/model"])
def test_names_of_models_and_datasets_stay(tmp_path, path):
    (tmp_path / "start" / "embedded").mkdir(parents=True)
    run = write_run(
        tmp_path / "run",
        summary={"working_dir": str(tmp_path / "start")},
        model={"path": path},
        data={"path": "builtin:geography_sql", "database": "builtin:geography_sql"},
    )
    config = find_run(run).config
    assert config.model.path == path
    assert config.data.path == config.data.database == "builtin:geography_sql"


def test_a_hub_dataset_and_a_template_file_of_a_run_elsewhere(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    run = write_run(
        tmp_path / "run",
        summary={"working_dir": str(start)},
        data={"path": ["org/name", "rows/*.jsonl", "mine.jsonl"], "template": "my.jinja"},
    )
    data = open_run(run).config.data
    assert [entry["path"] for entry in data.path] == [
        "org/name",
        str(start / "rows/*.jsonl"),
        str(start / "mine.jsonl"),
    ]
    assert data.template == str(start / "my.jinja")


@pytest.mark.parametrize(
    ("content", "template"),
    [
        (None, None),
        (b"", None),  # the tokenizer writes its chats in Python
        (b"{{ messages }}", "{{ messages }}"),
        (b"{% for turn in messages %}{% endfor %}", "{% for turn in messages %}{% endfor %}"),
    ],
)
def test_the_template_of_a_run(content, template):
    run = write_run(Path("run"))
    if content is not None:
        (run / "adapter/chat_template.jinja").write_bytes(content)
    assert find_run(run).template == template


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff{{ messages }}", "is not UTF-8"),
        (b"chatml", "is no Jinja and holds no chat template"),
        (b"/elsewhere/mine.jinja", "is no Jinja and holds no chat template"),
    ],
)
def test_what_is_no_template_is_refused(content, said):
    run = write_run(Path("run"))
    (run / "adapter/chat_template.jinja").write_bytes(content)
    with pytest.raises(AdapterError, match=f"chat_template.jinja {said}"):
        find_run(run).template  # noqa: B018


@pytest.mark.parametrize("place", ["adapter", "checkpoints/step-000020"])
def test_a_run_that_has_not_ended_knows_its_system_message(place):
    run = write_run(Path("run"))
    (run / "summary.json").unlink()
    (run / place).mkdir(parents=True, exist_ok=True)
    about = {"mlx_ft": {"base_model": "embedded", "system_prompt": "Be brief."}}
    (run / place / "adapter_config.json").write_text(json.dumps(about))
    assert find_run(run / place).summary["system_prompt"] == "Be brief."
    (run / "summary.json").write_text(json.dumps({"system_prompt": "Be long."}))
    assert find_run(run / place).summary["system_prompt"] == "Be long."
