"""An adapter away from its run, or made by mlx-lm: it finds its base, and no other one."""

import json
import logging
import shutil

import mlx.core as mx
import numpy as np
import pytest

import mlx_ft
from mlx_ft import cli, lora
from mlx_ft.errors import AdapterError, ConfigError
from mlx_ft.models.load import Located
from mlx_ft.saved import find_run
from tests import trained
from tests.models import tiny

TOKENS = mx.array([[72, 101, 108, 108, 111]])


@pytest.fixture
def copy(using, tmp_path):
    """The run's adapter in another place, and the run gone from sight."""
    return shutil.copytree(using / "outputs/runs/one/adapter", tmp_path / "mine")


def settings(folder, **changes):
    """The settings of an adapter, less what is None here."""
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return content


def logits(tuned):
    return np.array(tuned.model(TOKENS))


def test_a_copy_is_what_the_run_has(copy):
    run, alone = mlx_ft.load("outputs/runs/one"), mlx_ft.load(copy)
    assert np.array_equal(logits(run), logits(alone))
    assert run.tokenizer.chat_template == alone.tokenizer.chat_template
    assert alone.run.is_alone
    assert alone.run.name == "mine"
    assert alone.run.title == f"{copy} on ./model"
    assert alone.run.summary["run_id"] is None  # tracking=none
    answers = ["".join(mlx_ft.generate("say 1", each, max_tokens=5)) for each in (run, alone)]
    assert answers[0] == answers[1]
    found, own = (
        mlx_ft.evaluate(copy, data="rows.jsonl", metrics=["exact_match"]),
        mlx_ft.evaluate("outputs/runs/one", data="rows.jsonl", metrics=["exact_match"]),
    )
    assert found.loss == pytest.approx(own.loss, rel=1e-6)
    assert found.accuracy == own.accuracy
    assert len(found.answers) == 24


def test_a_copy_has_no_rows_to_be_judged_on(copy, capsys):
    assert cli.main(["evaluate", "--run", str(copy)]) == 2
    assert "--data FILE" in capsys.readouterr().err


def test_the_system_message_comes_along(copy):
    about = settings(copy)["mlx_ft"]
    assert about["system_prompt"] is None
    settings(copy, mlx_ft={**about, "system_prompt": "Be brief."})
    assert find_run(copy).summary["system_prompt"] == "Be brief."


def test_an_adapter_of_mlx_lm_names_its_base(copy):
    expected = logits(mlx_ft.load(copy))
    settings(copy, mlx_ft=None, model="./model")
    (copy / "chat_template.jinja").unlink()
    tuned = mlx_ft.load(copy)
    assert np.array_equal(logits(tuned), expected)
    assert tuned.tokenizer.chat_template == tiny.TEMPLATE


def test_it_answers_as_mlx_lm_does(copy):
    from mlx_lm.utils import load

    model, _ = load("model", adapter_path=str(copy))
    assert np.abs(logits(mlx_ft.load(copy)) - np.array(model(TOKENS))).max() < 1e-5


@pytest.mark.parametrize("about", [None, {}, {"base_model": "${oc.env:MODEL}"}, "text"])
def test_a_base_that_is_not_named_is_asked_for(copy, about):
    settings(copy, mlx_ft=about)
    with pytest.raises(AdapterError, match=r"does not say which base model.*--model"):
        find_run(copy)
    assert find_run(copy, model="./model").base_given


def test_a_base_is_named_on_the_command_line(copy, capsys):
    settings(copy, mlx_ft=None)
    arguments = ["generate", "--run", str(copy), "hi", "--max-tokens", "2"]
    assert cli.main(arguments) == 2
    assert "does not say which base model" in capsys.readouterr().err
    assert cli.main([*arguments, "--model", "./model"]) == 0


def test_a_base_that_is_gone_is_told(copy, capsys):
    settings(copy, mlx_ft={"base_model": "./elsewhere/model"})
    assert cli.main(["generate", "--run", str(copy), "hi"]) == 2
    err = capsys.readouterr().err
    assert "./elsewhere/model, which is not here" in err
    assert "--model FOLDER" in err


def test_a_recipe_is_a_base(copy, monkeypatch):
    monkeypatch.setattr("mlx_ft.adapter_folder.recipes", lambda _: {"small": "./model"})
    assert mlx_ft.load(copy, model="small").located.name == "model"


def test_another_base_is_refused_unless_it_is_insisted_on(copy, using, monkeypatch, caplog):
    tiny.save(using / "other", seed=5)
    about = settings(copy)["mlx_ft"]
    settings(copy, mlx_ft={**about, "base_model": "./other"})
    with pytest.raises(AdapterError, match="other weights") as caught:
        mlx_ft.load(copy)
    assert "--model" in str(caught.value)
    monkeypatch.setattr(logging.getLogger("mlx_ft"), "propagate", True)
    tuned = mlx_ft.load(copy, model="./other")
    assert "other weights" in caplog.text
    assert not np.array_equal(logits(tuned), logits(mlx_ft.load("outputs/runs/one")))
    settings(copy, mlx_ft={**about, "base_model": "./other", "base_weights": None})
    mlx_ft.load(copy)  # an adapter of before this was kept


def test_a_run_whose_base_was_changed_is_refused(finished, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished, tmp_path / "all")
    trained.enter(folder, monkeypatch)
    summary = folder / "outputs/runs/one/summary.json"
    content = json.loads(summary.read_text())
    summary.write_text(json.dumps({**content, "working_dir": str(folder)}))
    tiny.save(folder / "model", seed=7)
    assert cli.main(["generate", "--run", "outputs/runs/one", "hi"]) == 2
    assert "other weights" in capsys.readouterr().err
    assert (
        cli.main(["generate", "--run", "outputs/runs/one", "--base", "hi", "--max-tokens", "2"])
        == 0
    )


def test_a_checkpoint_is_an_adapter_of_its_run(using):
    last = mlx_ft.load("outputs/runs/one/checkpoints/step-000040")
    early = mlx_ft.load("outputs/runs/one/checkpoints/step-000020")
    assert early.run.name == "one/step-000020"
    assert not np.array_equal(logits(early), logits(last))
    folder = using / "outputs/runs/one/checkpoints/step-000020"
    model = tiny.build()
    model.load_weights(str(using / "model" / "model.safetensors"))
    lora.load(model, folder)
    assert np.abs(logits(early) - np.array(model(TOKENS))).max() < 1e-5
    assert mlx_ft.evaluate(early).loss > 0  # on the run's own rows


def test_a_base_alone_needs_no_run(using, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLX_FT_OUTPUTS", str(tmp_path / "none"))
    arguments = ["--max-tokens", "4", "say 1"]
    assert cli.main(["generate", "--base", "--model", "./model", *arguments]) == 0
    out = capsys.readouterr().out
    assert cli.main(["generate", "--base", "--run", "outputs/runs/one", *arguments]) == 0
    assert capsys.readouterr().out == out


def test_what_is_no_adapter_is_told(copy, tmp_path, capsys):
    (copy / "adapter_model.safetensors").touch()
    assert cli.main(["generate", "--run", str(copy), "hi"]) == 2
    assert "mlx-ft import" in capsys.readouterr().err
    (copy / "adapter_model.safetensors").unlink()
    (copy / "adapter_config.json").write_text("[1]")
    assert cli.main(["generate", "--run", str(copy), "hi"]) == 2
    assert "adapter_config.json cannot be read" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["generate", "--run", str(tmp_path / "empty"), "hi"]) == 2
    assert "an adapter's folder" in capsys.readouterr().err


def test_a_base_is_named_for_what_is_not_loaded_yet(copy):
    tuned = mlx_ft.load(copy)
    with pytest.raises(ConfigError, match="model="):
        mlx_ft.load(tuned, model="./model")


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"max_position_embeddings": 128}, 128),
        ({"n_positions": 64}, 64),
        ({"text_config": {"max_position_embeddings": 32}}, 32),
        ({"max_position_embeddings": None, "seq_length": 16}, 16),
        ({}, None),
    ],
)
def test_the_window_is_what_the_model_was_made_for(config, window, tmp_path):
    assert Located(tmp_path, "x", "folder", None, config).window == window
