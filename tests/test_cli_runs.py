"""`mlx-ft runs` and `mlx-ft diff`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from mlx_ft import cli


def run(name, rank, rate, *, loss=None, status="FINISHED", digest="d1"):
    folder = Path("outputs") / name
    folder.mkdir(parents=True)
    config = {"lora": {"rank": rank}, "optimizer": {"learning_rate": rate}, "seed": 42}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if status:
        summary = {"status": status, "val_loss_after": loss, "accuracy_after": 0.5,
                   "wall_seconds": 12.5, "run_id": f"{name!s:>032}"[:32]}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    origin = {"fingerprint": {"data": {"digest": digest}, "versions": {"mlx": "1"}}}
    (folder / "origin.json").write_text(json.dumps(origin))
    return folder


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLX_FT_OUTPUTS", raising=False)
    monkeypatch.setattr("mlx_ft.cli_runs.ORIGIN", "origin.json")
    run("runs/a", 8, 1e-4, loss=0.5)
    run("runs/b", 16, 1e-4, loss=0.25)
    run("sweeps/s/rank=8", 8, 3e-4, loss=None, status="FAILED", digest="d2")
    run("runs/killed", 32, 1e-4, status="")
    (tmp_path / "outputs/runs/a/adapter").mkdir()
    (tmp_path / "outputs/runs/a/adapter/config.yaml").write_text("")  # not a run


def lines(capsys, *arguments):
    assert cli.main(["runs", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("outputs")
def test_all_runs_with_how_they_ended(capsys):
    head, *found = lines(capsys)
    assert head.split() == ["run", "status", "val_loss_after", "accuracy_after", "wall_seconds",
                            "peak_memory_gb"]  # fmt: skip
    assert [line.split()[:3] for line in found] == [
        ["outputs/runs/a", "FINISHED", "0.5"],
        ["outputs/runs/b", "FINISHED", "0.25"],
        ["outputs/sweeps/s/rank=8", "FAILED", "-"],
        ["outputs/runs/killed", "UNFINISHED", "-"],
    ]


@pytest.mark.usefixtures("outputs")
@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["lora.rank=8"], ["a", "rank=8"]),
        (["lora.rank!=8"], ["b", "killed"]),
        (["optimizer.learning_rate=1e-4"], ["a", "b", "killed"]),
        (["optimizer.learning_rate>=0.0002"], ["rank=8"]),
        (["val_loss_after<0.3"], ["b"]),
        (["lora.rank=8", "status=FINISHED"], ["a"]),
        (["status>3"], []),
    ],
)
def test_filters(conditions, names, capsys):
    arguments = [word for text in conditions for word in ("--where", text)]
    assert cli.main(["runs", *arguments]) == (0 if names else 1)
    found = [Path(line.split()[0]).name for line in capsys.readouterr().out.splitlines()[1:]]
    assert found == names


@pytest.mark.usefixtures("outputs")
def test_columns_sorting_and_csv(capsys):
    text = lines(capsys, "--columns", "lora.rank,seed", "--sort", "val_loss_after", "--csv")
    rows = [*csv.DictReader(io.StringIO("\n".join(text)))]
    assert [Path(row["run"]).name for row in rows] == ["b", "a", "rank=8", "killed"]
    assert (rows[0]["lora.rank"], rows[0]["val_loss_after"], rows[3]["val_loss_after"]) == (
        "16", "0.25", "",
    )  # fmt: skip
    assert len(lines(capsys, "outputs/sweeps")) == 2


@pytest.mark.usefixtures("outputs")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sort", "lora.rnak"], "no run has lora.rnak"),
        (["--where", "rank"], "expected KEY=VALUE"),
        (["nowhere"], "no such folder: nowhere"),
    ],
)
def test_mistakes(arguments, text, capsys):
    assert cli.main(["runs", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.usefixtures("outputs")
def test_what_two_runs_differ_in(capsys):
    assert cli.main(["diff", "outputs/runs/a", "outputs/sweeps/s/rank=8"]) == 0
    head, *found = capsys.readouterr().out.splitlines()
    assert head.split() == ["outputs/runs/a", "outputs/sweeps/s/rank=8"]
    assert [line.split() for line in found] == [
        ["data.digest", "d1", "d2"],
        ["optimizer.learning_rate", "0.0001", "0.0003"],
        ["status", "FINISHED", "FAILED"],
        ["val_loss_after", "0.5", "-"],
    ]
    assert cli.main(["diff", "outputs/runs/a", "outputs/runs/a"]) == 0
    assert "They differ in nothing" in capsys.readouterr().out
    assert cli.main(["diff", "outputs/runs/a", "nowhere"]) == 2
