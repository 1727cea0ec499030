"""How runs end: by a signal, a divergence, an error, a full disk; the status is always true."""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_ft.main import main
from tests.jobs import job, summary, write_rows
from tests.models import tiny


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_run_with_its_adapter_saved(place, number, code, capsys):
    def stop() -> None:
        metrics = place / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and '"train/loss"' in metrics.read_text()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(job("train.max_steps=100000", "eval.before=false", "eval.every=0")) == code
    thread.join()
    found = summary(place / "run")
    assert found["status"] == "KILLED"
    assert 0 < found["steps"] < 100000
    assert (place / "run" / "adapter" / "adapters.safetensors").is_file()
    err = capsys.readouterr().err
    assert "Traceback" not in err
    steps = found["steps"]
    assert err.splitlines()[-4:] == [
        f"stopped by {number.name}",
        f"{steps} of 100000 steps were done. The adapter of step {steps} is saved in run/adapter",
        "use it      mlx-ft generate --run run 'your question'",
        "go on       mlx-ft resume run",
    ]


def test_a_signal_during_an_evaluation_ends_it_there(place, monkeypatch, capsys):
    from mlx_ft import evaluation

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(evaluation, "validation_loss", interrupted)
    started = time.monotonic()
    assert main(job()) == 130
    assert time.monotonic() - started < 50
    found = summary(place / "run")
    assert (found["status"], found["steps"], found["adapter_path"]) == ("KILLED", 0, None)
    assert capsys.readouterr().err.endswith(
        "stopped by SIGINT\nNothing was trained: no step was done. Run folder: run\n"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_at_the_end_is_told_and_the_adapter_is_there(place, monkeypatch, capsys):
    from mlx_ft import plots

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "png", full)
    assert main(job()) == 1
    err = capsys.readouterr().err
    assert "a file of the run could not be written: No space left on device" in err
    assert "Traceback" not in err
    assert summary(place / "run")["status"] == "FAILED"
    assert (place / "run" / "adapter" / "adapters.safetensors").is_file()


def test_a_diverging_run_fails_with_a_reason_and_a_finite_adapter(place, monkeypatch, capsys):
    import mlx.core as mx

    from mlx_ft import step

    genuine = step.causal_lm_loss

    def overflowing(*arguments, **options):
        total, count = genuine(*arguments, **options)
        return total * mx.array(3e38) * 1e3, count

    monkeypatch.setattr(step, "causal_lm_loss", overflowing)
    assert main(job("train.skip_patience=2", "eval.before=false")) == 1
    found = summary(place / "run")
    assert found["status"] == "FAILED"
    assert "train.skip_patience" in found["reason"]
    assert found["skipped_steps"] == 2
    weights = mx.load(str(place / "run" / "adapter" / "adapters.safetensors"))
    assert all(mx.isfinite(array).all().item() for array in weights.values())
    assert "Traceback" not in capsys.readouterr().err


def test_an_unexpected_error_is_logged_with_its_traceback(place, monkeypatch, capsys):
    from mlx_ft import trainer

    def broken(*_: object, **__: object):
        raise ZeroDivisionError("planted")
        yield

    monkeypatch.setattr(trainer, "train", broken)
    assert main(job("eval.before=false")) == 1
    assert summary(place / "run")["status"] == "FAILED"
    assert "Traceback" in (place / "run" / "train.log").read_text()
    err = capsys.readouterr().err
    assert "planted" in err
    assert "Traceback" not in err
    assert "train.log" in err


def test_a_run_whose_every_step_was_skipped_fails(place, monkeypatch):
    import mlx.core as mx

    from mlx_ft import step

    monkeypatch.setattr(step, "causal_lm_loss", lambda *_, **__: (mx.array(mx.nan), mx.array(1.0)))
    bad = ("train.max_steps=3", "eval.before=false")
    assert main(job(*bad)) == 1
    found = summary(place / "run")
    assert (found["status"], found["skipped_steps"]) == ("FAILED", found["steps"])
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [*range(1, found["steps"] + 1)]


def test_a_full_stdout_does_not_change_the_status(place, monkeypatch):
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(job()) == 0
    assert summary(place / "run")["status"] == "FINISHED"


def test_a_disk_that_fills_up_leaves_no_half_adapter(place, monkeypatch, capsys):
    from mlx_ft import durable

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "write_files", full)
    assert main(job()) == 1
    err = capsys.readouterr().err
    assert err.count("No space left on device") == 1  # for the checkpoint and for the adapter
    assert "Traceback" not in err
    assert "6 of 6 steps were done; no adapter could be saved. Run folder: run" in err
    found = summary(place / "run")  # small enough for what is left of the disk
    assert (found["status"], found["steps"], found["adapter_path"]) == ("FAILED", 6, None)
    assert "No space left on device" in found["reason"]
    assert not (place / "run" / "adapter").exists()
    assert [p.name for p in (place / "run").iterdir() if "partial" in p.name] == []


def test_patience_runs_out_with_automatic_validation(place):
    still = ("optimizer.learning_rate=1e-9", "train.early_stopping_min_delta=0.01")
    assert main(job("train.max_steps=60", "train.early_stopping_patience=1", *still)) == 0
    assert summary(place / "run")["steps"] == 20


def test_patience_without_validation_rows_is_refused(place, capsys):
    assert main(job("data.valid_fraction=0", "train.early_stopping_patience=1")) == 2
    assert "early_stopping_patience" in capsys.readouterr().err
    assert not (place / "run").exists()


def test_a_tokenizer_that_goes_beyond_the_embedding_is_refused(place, capsys):
    tiny.save(place / "small", vocab_size=100)
    assert main(job("model.path=./small")) == 2
    err = capsys.readouterr().err
    assert "it has 100" in err
    assert "rows.jsonl:1" in err
    assert not (place / "run").exists()


def test_odd_fields_of_rows_do_not_matter(place):
    rows = [
        {"prompt": f"say {i}", "completion": "ab", "messages": "zz", "kind": [i]} for i in range(20)
    ]
    (place / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(job("data.path=odd.jsonl", "data.format=prompt_completion")) == 0
    samples = (place / "run" / "samples.jsonl").read_text()
    assert json.loads(samples.splitlines()[0])["kind"] is None


def test_the_log_has_what_was_said_before_the_folder(place):
    write_rows(place / "rows.jsonl")
    assert main(job("memory_profile=auto")) == 0
    log = (place / "run" / "train.log").read_text()
    assert "memory_profile=cpu" in log
    assert "repeat another one" in log


@pytest.mark.slow
def test_each_run_of_a_process_has_its_own_peak(place):
    assert main(job("lora.rank=256", "hydra.run.dir=large")) == 0
    assert main(job("lora.rank=1", "hydra.run.dir=small")) == 0
    large, small = (summary(place / name)["peak_memory_gb"] for name in ("large", "small"))
    assert small < large


@pytest.mark.parametrize("how", ["removed", "renamed"])
@pytest.mark.parametrize("every", [0, 2])
def test_a_run_folder_that_goes_away_ends_the_run(place, monkeypatch, capsys, how, every):
    import shutil

    from mlx_ft.session import Session

    genuine = Session._note

    def away(self, result, display):
        if result.step == 3:
            shutil.move(place / "run", place / "elsewhere")
            if how == "removed":
                shutil.rmtree(place / "elsewhere")
        genuine(self, result, display)

    monkeypatch.setattr(Session, "_note", away)
    assert main(job(f"checkpoint.every={every}")) == 1
    err = capsys.readouterr().err
    assert "was removed or renamed while the run went on" in err
    assert "mlx-ft generate" not in err
    assert "Traceback" not in err
    assert not (place / "run").exists()  # no crippled one in its place
