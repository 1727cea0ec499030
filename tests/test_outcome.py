"""What a run says when it has ended."""

import pytest

from mlx_ft.config.schema import Config
from mlx_ft.evaluation import Answer
from mlx_ft.outcome import left_behind, show_result
from mlx_ft.runfolder import RunFolder

SUMMARY = {
    "steps": 130, "tokens": 123456, "tokens_per_second": 1234.5, "wall_seconds": 300.0,
    "peak_memory_gb": 1.66, "trainable_parameters": 2_605_056, "total_parameters": 137_120_064,
    "val_loss_before": 2.2, "val_loss_after": 0.04, "perplexity_before": 9.0,
    "perplexity_after": 1.04, "accuracy_before": 0.0, "accuracy_after": 0.9, "best_step": 65,
    "adapter_path": "/somewhere/run/adapter",
}  # fmt: skip
FIGURES = (
    "130 steps, 123,456 tokens (1,234 per second), 300 s, peak 1.66 GB, "
    "2,605,056 of 137,120,064 parameters"
)


@pytest.fixture
def config():
    config = Config()
    config.data.metric = "exact_match"
    return config


def shown_text(capsys, config, samples=(), **changed):
    show_result({**SUMMARY, **changed}, samples, "outputs/my run", config)
    return capsys.readouterr().out


def test_no_line_is_wrapped_where_stdout_is_no_terminal(config, capsys):
    question = "Which countries " * 10
    answer = Answer(question, "a", "b", correct=False)
    lines = shown_text(capsys, config, [(None, answer)]).splitlines()
    assert lines[-4] == FIGURES
    assert lines[-3] == f"use it      mlx-ft generate --run 'outputs/my run' '{question}'"
    assert lines[-2:] == ["look at it  mlx-ft ui", "change it   python train.py lora.rank=32"]


def test_a_short_run_is_changed_and_not_the_main_job(config, capsys):
    config.train.max_steps = 8
    last = shown_text(capsys, config).splitlines()[-1]
    assert last.startswith(
        "change it   python train.py --config-dir 'outputs/my run' --config-name"
    )


def sample_lines(capsys, config, monkeypatch, width, *samples):
    monkeypatch.setenv("COLUMNS", str(width))
    out = shown_text(capsys, config, samples)
    return out[out.index("sample") if "sample" in out else out.index("┏") :].splitlines()


def test_short_answers_stand_beside_one_another(config, capsys, monkeypatch):
    before = Answer("Sky?", "Blue.", "[red] Sea", correct=False)
    after = Answer("Sky?", "Blue.", "Blue.", correct=True)
    lines = sample_lines(capsys, config, monkeypatch, 80, (before, after))
    assert [cell.split() for cell in lines[3].strip("│").split("│")] == [
        ["Sky?"], ["Blue."], ["✗", "[red]", "Sea"], ["✓", "Blue."]
    ]  # fmt: skip


CODE = "def double(value):\n    return value * 2"


@pytest.mark.parametrize("width", [80, 200])
def test_code_stands_below_as_it_is(config, capsys, monkeypatch, width):
    before = Answer("Double it.", CODE, "", correct=False)
    after = Answer("Double it.", CODE, f"{CODE}\x1b[2J", correct=True)
    lines = sample_lines(capsys, config, monkeypatch, width, (before, after), (None, after))
    assert [line.rstrip() for line in lines[:14]] == [
        "sample     1 of 2",
        "question   Double it.",
        "expected   def double(value):",
        "               return value * 2",
        "before ✗",
        "after ✓    def double(value):",
        "               return value * 2 [2J",
        "",
        "sample     2 of 2",
        "question   Double it.",
        "expected   def double(value):",
        "               return value * 2",
        "before     -",
        "after ✓    def double(value):",
    ]


def test_a_long_answer_fits_the_width_and_its_end_is_counted(config, capsys, monkeypatch):
    words = "word " * 1000
    lines = sample_lines(capsys, config, monkeypatch, 80, (None, Answer("Q", words, "a", True)))
    assert max(map(len, lines[:20])) <= 80
    assert "[... 3,999 more characters]" in " ".join(" ".join(lines).split())


def test_without_tracking_there_is_nothing_to_look_at(config, capsys):
    config.tracking.backend = "none"
    assert "mlx-ft ui" not in shown_text(capsys, config)


def test_missing_figures_are_explained(config, capsys):
    assert "- no" not in shown_text(capsys, config)
    no_rows = shown_text(capsys, config, accuracy_after=None, val_loss_after=None)
    assert "- no validation loss: there are no validation rows\n" in no_rows
    assert "- no task accuracy: there are no test rows\n" in no_rows
    config.data.metric, config.eval.before = "none", False
    out = shown_text(capsys, config, accuracy_after=None)
    assert "- no task accuracy: data.metric=none\n" in out
    assert "- nothing measured before the training: eval.before=false\n" in out


@pytest.mark.parametrize(
    ("changed", "best", "expected"),
    [
        ({"steps": 0}, True, "Nothing was trained: no step was done. Run folder: r 1"),
        (
            {"adapter_path": None}, True,
            "130 of 200 steps were done; no adapter could be saved. Run folder: r 1",
        ),
        (
            {}, True,
            "130 of 200 steps were done. The adapter of step 65, the best validated one, is saved "
            "in r 1/adapter\nuse it      mlx-ft generate --run 'r 1' 'your question'",
        ),
        (
            {}, False,
            "130 of 200 steps were done. The adapter of step 130 is saved in r 1/adapter\n"
            "use it      mlx-ft generate --run 'r 1' 'your question'",
        ),
        (
            {"best_step": None}, True,
            "130 of 200 steps were done. The adapter of step 130 is saved in r 1/adapter\n"
            "use it      mlx-ft generate --run 'r 1' 'your question'",
        ),
    ],
)  # fmt: skip
def test_what_a_run_that_did_not_finish_left_behind(changed, best, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "r 1")
    folder.adapter.mkdir(parents=True)
    assert left_behind({**SUMMARY, **changed}, folder, 200, best=best) == expected


@pytest.mark.parametrize(
    ("step", "more"), [(130, ""), (100, "  (from the checkpoint of step 100)")]
)
def test_a_run_that_left_a_checkpoint_can_go_on(step, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "r 1")
    for number in (50, step):
        (folder.checkpoints / f"step-{number:06d}").mkdir(parents=True)
    last = left_behind(SUMMARY, folder, 200, best=True).splitlines()[-1]
    assert last == f"go on       mlx-ft resume 'r 1'{more}"


def test_an_adapter_that_is_not_there_is_not_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = left_behind(SUMMARY, RunFolder(tmp_path / "gone"), 200, best=True)
    assert told == "130 of 200 steps were done; no adapter could be saved. Run folder: gone"


@pytest.mark.parametrize(
    ("uri", "folder", "expected"),
    [
        (None, "mlruns", "mlx-ft ui\n"),
        (None, "my runs", "mlx-ft ui 'paths.tracking_dir=my runs'\n"),
        ("http://here:5000", "mlruns", "mlx-ft ui tracking.uri=http://here:5000\n"),
    ],
)
def test_the_ui_is_offered_where_the_run_is(uri, folder, expected, config, capsys, monkeypatch):
    monkeypatch.delenv("MLX_FT_MLRUNS", raising=False)
    config.tracking.uri, config.paths.tracking_dir = uri, folder
    assert f"look at it  {expected}" in shown_text(capsys, config)
