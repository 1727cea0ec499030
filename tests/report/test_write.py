"""Tables and files of a report, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from mlx_ft import cli
from mlx_ft.report.analyse import Goal, analyse
from mlx_ft.report.collect import sweep
from mlx_ft.report.read import best_config
from mlx_ft.report.table import csv_text, markdown, terminal
from mlx_ft.report.write import write_page
from tests.report import fakes

pytestmark = pytest.mark.figures

LOSS = Goal("val_loss_after", low=True)
SWEEP = Path("outputs/sweeps/mine")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLX_FT_OUTPUTS", raising=False)
    return tmp_path


def analysed(trials, **more):
    return analyse(sweep(fakes.sweep(SWEEP, trials, **more)), LOSS)


def test_the_table_on_the_terminal():
    trials = [{"rank": 4, "loss": 0.5, "seconds": 5.25}, {"rank": 8, "loss": 0.25, "seconds": 1234},
              {"rank": 16, "loss": None, "status": "FAILED", "error": "boom\nmore"}]  # fmt: skip
    assert terminal(analysed(trials)).split("\n") == [
        "   rank  status    validation loss  accuracy  seconds  peak memory (GB)  folder",
        "   4     FINISHED  0.5000           50.0%     5.2      1.50              rank=4",
        "*  8     FINISHED  0.2500           50.0%     1,234    1.50              rank=8",
        "   16    FAILED    -                50.0%     60       1.50              rank=16",
        "* best (lowest validation loss)",
        "",
        "rank=8 (0.2500) is ahead of the next best, rank=4 (0.5000), but from one seed nobody can "
        "tell whether that is luck: sweep.seeds=3 runs each setting three times.",
        "",
        "1 run without a result:",
        "rank=16: FAILED: boom",
    ]


def test_with_seeds_there_is_a_table_of_means():
    trials = [{"rank": rank, "seed": seed, "loss": 0.1 * rank + 0.01 * seed}
              for rank in (1, 2) for seed in (1, 2, 3)]  # fmt: skip
    trials[5] |= {"status": "FAILED", "loss": None, "error": "boom"}
    lines = terminal(analysed(trials)).split("\n")
    start = lines.index("   rank  seeds   mean    std. deviation  95% interval of the mean")
    # 0.12 +- 4.3027 * 0.01 / sqrt(3), and 0.215 +- 12.706 * 0.00707 / sqrt(2)
    assert lines[start + 1 : start + 3] == [
        "*  1     3       0.1200  0.0100          0.0952 to 0.1448",
        "   2     2 of 3  0.2150  0.0071          0.1515 to 0.2785",
    ]
    assert "rank=2 seed=3: FAILED: boom" in lines


def test_the_csv_has_every_run_with_all_digits():
    lost = {"loss": None, "status": "FAILED", "error": 'a,"b"'}
    trials = [{"rank": 4, "rate": 1e-4, "loss": 0.123456}, {"rank": 8, "rate": 3e-4, **lost}]
    rows = [*csv.DictReader(io.StringIO(csv_text(analysed(trials))))]
    assert [(row["lora.rank"], float(row["optimizer.learning_rate"])) for row in rows] == [
        ("4", 1e-4), ("8", 3e-4),
    ]  # fmt: skip
    assert (rows[0]["objective"], rows[0]["val_loss_after"]) == ("0.123456", "0.123456")
    assert (rows[1]["val_loss_after"], rows[1]["error"]) == ("", 'a,"b"')
    assert rows[0]["run_dir"] == str(SWEEP / "rank=4,rate=0.0001")


def test_what_pruning_has_saved_is_told():
    trials = [{"rank": rank, "loss": 0.5} for rank in (4, 8, 16)]
    fakes.sweep(SWEEP, trials)
    for rank, steps in ((4, 20), (8, 5), (16, 10)):
        summary = json.loads((SWEEP / f"rank={rank}/summary.json").read_text())
        summary |= {"steps": steps, "planned_steps": 20, "pruned": steps < 20}
        (SWEEP / f"rank={rank}/summary.json").write_text(json.dumps(summary))
    found = analyse(sweep(SWEEP), LOSS)
    assert [row.status for row in found.collection.rows] == ["FINISHED", "PRUNED", "PRUNED"]
    assert "2 of 3 runs were pruned: 25 of 60 steps were not taken." in terminal(found)


def test_markdown_of_hostile_names():
    trials = [{"rank": 4, "loss": 0.5, "error": "x", "status": "FAILED"}, {"rank": 8, "loss": 0.4}]
    trials[0]["error"] = "a | <b> `c`"
    text = markdown(analysed(trials))
    assert "a \\| \\<b\\> \\`c\\`" in text
    assert "| **8** | **FINISHED** | **0.4000** |" in text


def test_the_files_of_a_sweep(capsys):
    fakes.sweep(SWEEP, fakes.grid())
    assert cli.main(["report"]) == 0  # the newest sweep, into its folder
    out = capsys.readouterr().out
    assert "*  16    3e-4" in out
    assert f"Written to {SWEEP}: trials.csv, trials.md, best.yaml, report.html" in out
    assert (SWEEP / "report.html").read_text().startswith("<!doctype html>")
    best = yaml.safe_load((SWEEP / "best.yaml").read_text())
    assert best["lora"]["rank"] == 16
    assert best["optimizer"]["learning_rate"] == 3e-4
    assert (
        (SWEEP / "best.yaml")
        .read_text()
        .startswith("# Run again: python train.py --config-dir THIS_FOLDER --config-name best\n")
    )
    before = (SWEEP / "trials.csv").read_text()
    assert cli.main(["report", "mine"]) == 0  # again, from the table that it wrote itself
    assert (SWEEP / "trials.csv").read_text() == before


def test_runs_by_another_figure_into_another_folder(capsys):
    for rank, accuracy in ((4, 0.5), (8, 0.9)):
        fakes.run(Path(f"outputs/runs/{rank}"), 0.5 + rank / 100, accuracy=accuracy, rank=rank)
    arguments = ["report", "outputs/runs", "--metric", "accuracy_after", "--output", "~/there"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(Path.cwd() / "home"))
        assert cli.main(arguments) == 0
    assert "* best (highest accuracy)" in capsys.readouterr().out
    assert yaml.safe_load(Path("home/there/best.yaml").read_text())["lora"]["rank"] == 8
    assert cli.main(["report", "outputs/runs/4", "outputs/runs/8"]) == 0
    assert len([*Path("outputs/reports").glob("*/report.html")]) == 1


def test_a_report_without_a_best_takes_the_last_one_away():
    trials = [{"rank": 4, "loss": 0.5}, {"rank": 8, "loss": 0.4}]
    fakes.sweep(SWEEP, trials)
    assert cli.main(["report", "mine"]) == 0
    for trial in trials:
        trial |= {"status": "FAILED", "loss": None}
    shutil.rmtree(SWEEP / "rank=4")
    shutil.rmtree(SWEEP / "rank=8")
    fakes.sweep(SWEEP, trials)
    assert cli.main(["report", "mine"]) == 0
    assert not (SWEEP / "best.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "nor-here"], "nowhere: no folder of runs, and no sweep, run or id in"),
        ([], "There is no sweep in"),
        (["outputs", "--metric", "acuracy"], "no run has such a figure"),
        (["outputs", "--metric", "tokens"], "is low or high better? Add --direction"),
        (["outputs", "--query", "x"], "either --query or places (outputs), not both"),
        (["paths.tracking_dir=x"], "says where MLflow is, and so needs --query"),
        (["--query", "", "tracking.urk=x"], "there is no tracking.urk"),
        (["--query", "", "paths.tracking_dir=none"], "There are no runs yet"),
        (["outputs", "--output", "file"], "cannot write to file: "),
    ],
)
def test_mistakes(arguments, text, capsys):
    Path("file").touch()
    folder = fakes.run(Path("outputs/runs/a"), 0.5)
    summary = folder / "summary.json"
    summary.write_text(summary.read_text().replace("{", '{"tokens": 5, ', 1))
    assert cli.main(["report", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_page_that_fails_does_not_undo_its_sweep(capsys, monkeypatch):
    fakes.sweep(SWEEP, fakes.grid())
    monkeypatch.setattr("mlx_ft.report.page.panels", lambda _: 1 / 0)
    write_page(SWEEP, "val_loss_after", low=True)
    err = capsys.readouterr().err
    assert f"{SWEEP}/report.html could not be written: ZeroDivisionError" in err
    assert not (SWEEP / "report.html").exists()


def test_only_the_first_line_of_a_configuration_is_changed():
    assert best_config("seed: 1\n# Run again: x --config-name config\n") == (
        "seed: 1\n# Run again: x --config-name config\n"
    )
