"""The `mlx-ft` command: its help, its mistakes, and using a run."""

import json
import signal
import sys

import pytest

from mlx_ft import cli
from mlx_ft.errors import UserError
from mlx_ft.main import main as train
from mlx_ft.target import Target
from tests.jobs import job, summary, write_rows
from tests.models import tiny


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with one finished tiny run in `outputs/runs/one`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path.parent / "cache"))
    tiny.save(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl")
    assert train(job("hydra.run.dir=outputs/runs/one", "train.max_steps=2")) == 0
    return tmp_path


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for command in ("train", "quick", "generate", "evaluate", "models", "doctor", "ui"):
        assert command in out
    assert cli.main([]) == 2
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["quick"], ["A first short run", "mlx-ft quick embedded my_rows.jsonl"]),
        (["evaluate"], ["A model's figures", "mlx-ft evaluate --run outputs/runs/X"]),
        (["generate"], ["Answer a question", 'mlx-ft generate "Which']),
        (["chat"], ["A conversation", "mlx-ft chat --run models:/NAME@ALIAS"]),
        (["models"], ["list | show | download | remove", "mlx-ft models download"]),
        (["models", "remove"], ["Delete a downloaded or converted model."]),
    ],
)
def test_every_command_says_what_it_does_with_examples(argv, parts, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*argv, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert [part for part in parts if part not in out] == []


def test_models_alone_names_its_actions(capsys):
    assert cli.main(["models"]) == 2
    out = capsys.readouterr().out
    for action in ("list", "show", "download", "remove"):
        assert f"\n    {action} " in out


def test_a_missing_argument_names_it_alone(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["quick"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("arguments are required: model\n")


def test_generate_streams_the_newest_runs_answer(trained, capsys):
    capsys.readouterr()
    assert cli.main(["generate", "say 1", "--max-tokens", "3"]) == 0
    newest = capsys.readouterr().out
    assert cli.main(["generate", "--run", "outputs/runs/one", "say 1", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out == newest
    assert newest.endswith("\n")


def test_evaluate_prints_the_runs_figures(trained, capsys):
    found = summary(trained / "outputs" / "runs" / "one")
    capsys.readouterr()
    assert cli.main(["evaluate", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "run outputs/runs/one (FINISHED, step 2)" in err
    printed = json.loads(out)
    assert printed["loss"] == pytest.approx(found["val_loss_after"], rel=1e-6)
    assert printed["accuracy"] == found["accuracy_after"]
    assert len(printed["answers"]) == 2
    assert cli.main(["evaluate"]) == 0
    assert f"{found['val_loss_after']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["generate", "--run", "nowhere", "hi"], ["'nowhere'", "run folder"]),
        (["evaluate"], ["no run with an adapter", "mlx-ft train"]),
        (["ui"], ["no runs yet"]),
        (["nonsense"], ["mlx-ft nonsense: no such command. There is: train, quick, resume"]),
        (["evalaute"], ["Did you mean mlx-ft evaluate?"]),
        (["models", "lst"], ["Did you mean mlx-ft models list?"]),
        (["ui", "trackin.uri=x"], ["tracking.uri?"]),
        (["models", "show", "./nowhere"], ["nowhere"]),
        (["models", "show", "~nosuchuser/x"], ["'~nosuchuser/x'", "cannot be looked up"]),
        (["models", "show", f"org/{'a' * 300}"], ["org/aaa", "org/name"]),
        (["models", "show", f"{'a' * 300}/name"], ["cannot be looked up", "too long"]),
        (["generate", "--run", "~nosuchuser/x", "hi"], ["'~nosuchuser/x'", "run folder"]),
        (["train", "data=custom", "data.path=~nosuchuser/x"], ["data.path", "~nosuchuser/x"]),
        (["train", "data=custom", f"data.path={'a' * 300}"], ["data.path", "too long"]),
        (["train", f"data.valid_path={'a' * 300}"], ["data.valid_path", "too long"]),
        (["models", "remove", "./nowhere"], ["nowhere"]),
        (["train", "lora.rnak=1"], ["lora.rank?"]),
        (["quick", "./nowhere", "rows.jsonl"], ["rows.jsonl"]),
    ],
)
def test_mistakes(argv, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path.parent / "cache"))
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    for words in expected:
        assert words in err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", ["--max-tokens=0", "--seed=-1", "--temperature=nan", "--top-p=0"]
)
def test_generate_options_out_of_range(option, trained, capsys):
    capsys.readouterr()
    assert cli.main(["generate", "hi", option]) == 2
    out, err = capsys.readouterr()
    assert f"{option.partition('=')[0].strip('-').replace('-', '_')}: found" in err
    assert "Traceback" not in err
    assert out == ""


def test_a_run_is_used_from_another_folder(trained, monkeypatch, capsys):
    path = trained / "outputs/runs/one/summary.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "working_dir": str(trained)}))
    (trained / "other").mkdir()
    monkeypatch.chdir(trained / "other")
    capsys.readouterr()
    assert cli.main(["evaluate", "--run", str(path.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(found["val_loss_after"])


@pytest.mark.parametrize("port", ["99999999", "0", "-1", "http"])
def test_a_port_that_is_none(port, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ui", f"--port={port}"])
    assert stop.value.code == 2
    assert f"{port!r}; expected 1 to 65535" in capsys.readouterr().err


def test_a_surprise_ends_with_one_line(monkeypatch, capsys):
    def surprise(_):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(cli, "_doctor", surprise)
    assert cli.main(["doctor"]) == 1
    *trace, last = capsys.readouterr().err.splitlines()
    assert trace[0].startswith("Traceback")
    assert last == "mlx-ft doctor failed. ZeroDivisionError: by nothing"


def test_what_is_said_fits_one_screen_and_moves_no_cursor(monkeypatch, capsys):
    errors = [
        UserError("too \x1b[2Jmuch", [f"fault {number}" for number in range(3000)]),
        RuntimeError("too \x1b[2Jmuch\n" * 3000),
    ]
    monkeypatch.setattr(cli.traceback, "print_exception", lambda _: None)
    for error in errors:
        monkeypatch.setattr(cli, "_doctor", lambda _, error=error: _raise(error))
        assert cli.main(["doctor"]) == (2 if isinstance(error, UserError) else 1)
        lines = capsys.readouterr().err.splitlines()
        assert "too \\x1b[2Jmuch" in lines[0]
        assert lines[-1].endswith("more lines")
        assert len(lines) < 40


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("arguments", "quiet"),
    [(["train"], True), (["resume"], True), (["quick", "m"], True), (["doctor"], False)],
)
def test_ctrl_c_is_quiet_from_the_first_line_of_a_training_on(
    arguments, quiet, tmp_path, monkeypatch
):
    """As `train.py` does; but a program that calls `main` keeps its own handlers."""
    found = []
    job = "mlx_ft.cli._doctor" if arguments == ["doctor"] else "mlx_ft.main.main"
    monkeypatch.setattr(job, lambda _: found.append(signal.getsignal(signal.SIGINT)) or 0)
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr("mlx_ft.target.newest", lambda _: Target(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mlx-ft", *arguments])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(arguments) == 0
        assert cli.main() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [signal.default_int_handler, signal.SIG_DFL if quiet else found[0]]


def test_a_damaged_adapter_lists_every_fault(trained, capsys):
    import mlx.core as mx

    path = trained / "outputs/runs/one/adapter/adapters.safetensors"
    weights = dict(mx.load(str(path)))
    first, second, third, *_ = sorted(weights)
    weights[first] = weights[first][:1]
    weights[second] = weights[second] * float("nan")
    weights["model.extra.lora_a"] = weights.pop(third)
    mx.save_safetensors(str(path), weights)
    capsys.readouterr()
    assert cli.main(["evaluate"]) == 2
    err = capsys.readouterr().err
    for words in (f"{first}: shape", f"{second}: holds NaN", f"{third}: missing", "extra"):
        assert words in err


def test_quick_trains_on_the_users_model_and_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path.parent / "cache"))
    tiny.save(tmp_path / "mine, (odd) name")
    write_rows(tmp_path / "rows.jsonl")
    arguments = ["./mine, (odd) name", "rows.jsonl", "tracking=none", "hydra.run.dir=run"]
    assert cli.main(["quick", *arguments, "lora.num_layers=all", "train.max_steps=2"]) == 0
    found = summary(tmp_path / "run")
    assert (found["status"], found["model"], found["steps"]) == ("FINISHED", "mine, (odd) name", 2)


def test_doctor_prints_what_the_machine_can_do(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("device", "BLAS", "GFLOP/s", "memory", "free disk", "mx.compile", "mlx-lm"):
        assert words in out


def test_models_list_and_show(tmp_path, monkeypatch, capsys):
    cache = tmp_path / "models"
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path))
    (tmp_path / "here.gguf").touch()
    for name, source in (("a-1234", tmp_path / "here.gguf"), ("b-5678", tmp_path / "gone.gguf")):
        (cache / name).mkdir(parents=True)
        (cache / name / "mlx_ft_manifest.json").write_text(json.dumps({"source": str(source)}))
    (cache / "c-9999").mkdir()
    assert cli.main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "smollm2_135m" in out
    assert [line for line in out.splitlines() if line != line.rstrip()] == []
    table, copies = out.split("\n\n")
    assert "a-1234" not in table
    assert "Converted copies of .gguf files" in copies
    assert copies.count(f"of {tmp_path}/here.gguf\n") == 1
    assert f"  b-5678  0.0 MB  of {tmp_path}/gone.gguf, which is gone\n" in copies
    assert copies.endswith("  c-9999  0.0 MB  of an unknown file\n")
    assert "mistralai/Mistral-7B-Instruct-v0.3" in out
    assert cli.main(["models", "show", "smollm2_135m"]) == 0
    assert "apache-2.0" in capsys.readouterr().out


def test_settings_may_stand_on_both_sides_of_an_option(capsys):
    words = ["estimate", "lora.rank=2", "--rows", "7", "lora.num_layers=1", "--tokens=9", "--json"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["work"]["rows"] == 7
    assert found["trainable"] == 2 * (4 * 576 + 2 * 576 + 2 * 192 + 3 * (576 + 1536))
    with pytest.raises(SystemExit):
        cli.main([*words, "--nothing=1"])
    assert "unrecognized arguments: --nothing=1" in capsys.readouterr().err


def test_a_cut_answer_is_said_to_be_cut(using, capsys):
    assert cli.main(["generate", "--run", "outputs/runs/one", "say 1", "--max-tokens", "2"]) == 0
    assert "cut at --max-tokens 2" in capsys.readouterr().err
    assert cli.main(["generate", "--run", "outputs/runs/one", "say 1"]) == 0
    assert "cut at" not in capsys.readouterr().err


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a[2Jb\n"), (False, "a\x1b[2Jb\r\n")])
def test_an_answer_moves_no_cursor(using, capsys, monkeypatch, terminal, shown):
    monkeypatch.setattr("mlx_ft.api.generate", lambda *_, **__: iter(["a\x1b", "[2J", "b\r"]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert cli.main(["generate", "--run", "outputs/runs/one", "say 1"]) == 0
    assert capsys.readouterr().out == shown
