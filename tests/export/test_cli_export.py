"""`mlx-ft fuse`, `export` and `import` on a tiny run, as they are typed."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft import api, lora
from mlx_ft.cli import main
from mlx_ft.main import main as train
from mlx_ft.models.read import read_model
from tests.export import small
from tests.fakes import relative
from tests.jobs import job, summary, write_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model and a run on it."""
    place = tmp_path_factory.mktemp("trained")
    small.save_model(place / "model")
    write_rows(place / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MLX_FT_CACHE", str(place / "cache"))
        given = (
            "lora.num_layers=2",
            "optimizer.learning_rate=0.01",
            "lora.target_modules=all-linear",
        )
        assert train(job(*given)) == 0
    return place


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The current folder is a new one; the run is `RUN`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(trained / "cache"))
    return tmp_path


def tuned(trained):
    model, _ = read_model(trained / "model")
    lora.load(model, trained / "run" / "adapter")
    return small.logits(model)


def test_fuse(here, trained, capsys):
    assert main(["fuse", str(trained / "run"), "--out", "fused"]) == 0
    said = capsys.readouterr().out
    model, config = read_model(here / "fused")
    assert relative(small.logits(model), tuned(trained)) < 1e-4
    assert "measured on" in said
    [logits, rise] = re.search(r"^fused +(\S+) +\S+ +(\S+)$", said, re.M).groups()
    assert float(logits) < 1e-4
    assert abs(float(rise)) < 1e-4
    [packed] = re.findall(r"^4 bits would be +(\S+)", said, re.M)
    assert float(packed) > 1e-3
    assert config["dtype"] == "float32"


def test_the_card_says_what_the_run_s_records_say(here, trained):
    assert main(["fuse", str(trained / "run"), "--out", "fused"]) == 0
    text = (here / "fused" / "README.md").read_text()
    about = summary(trained / "run")
    origin = json.loads((trained / "run" / "origin.json").read_text())
    assert origin["fingerprint"]["data"]["digest"] in text
    assert (
        f"| perplexity | {about['perplexity_before']:.3f} | {about['perplexity_after']:.3f} |"
        in text
    )
    assert "| rank | 4 |" in text
    assert re.search(r"\| training rows \| \d+ \|", text)
    assert "learning_rate: 0.01" in text
    for private in (str(trained), str(Path.home()), "rows.jsonl", "/"):
        lines = [line for line in text.splitlines() if private in line]
        assert (
            all(line.startswith(("| ", "---")) for line in lines) if private == "/" else not lines
        )
    assert "base_model:" not in text  # a folder's name is none on the hub


def test_requantized_past_the_tolerance_is_refused(here, trained, capsys):
    line = ["fuse", str(trained / "run"), "--out", "fused", "--quantize", "2,32"]
    assert main([*line, "--tolerance", "0"]) == 2
    error = capsys.readouterr().err
    assert "the loss rises by" in error
    assert "--force" in error
    assert list(here.iterdir()) == []
    assert main([*line, "--tolerance", "0", "--force"]) == 0
    model, config = read_model(here / "fused")
    assert config["quantization"] == {"group_size": 32, "bits": 2, "mode": "affine"}
    assert relative(small.logits(model), tuned(trained)) > 1e-2


def test_what_is_there_is_left_alone(here, trained, capsys):
    (here / "out").mkdir()
    (here / "out" / "mine").write_text("mine")
    for words in (
        ["fuse"],
        *(["export", "--to", name] for name in ("peft", "mlx", "hf", "gguf", "ollama")),
    ):
        assert main([*words, str(trained / "run"), "--out", "out"]) == 2
        assert "left alone" in capsys.readouterr().err
    assert [path.name for path in here.rglob("*")] == ["out", "mine"]


def test_peft_and_back(here, trained, capsys):
    assert (
        main(
            [
                "export",
                str(trained / "run"),
                "--to",
                "peft",
                "--out",
                "theirs",
                "--base",
                "org/name",
            ]
        )
        == 0
    )
    assert (
        json.loads(Path("theirs/adapter_config.json").read_text())["base_model_name_or_path"]
        == "org/name"
    )
    assert "base_model: org/name" in Path("theirs/README.md").read_text()
    assert main(["import", "theirs", "--out", "mine", "--model", str(trained / "model")]) == 0
    model, _ = read_model(trained / "model")
    lora.load(model, here / "mine")
    np.testing.assert_allclose(small.logits(model), tuned(trained), rtol=1e-5, atol=1e-6)
    assert main(["fuse", "mine", "--out", "fused", "--no-measure"]) == 0
    fused, _ = read_model(here / "fused")
    assert relative(small.logits(fused), tuned(trained)) < 1e-4


def test_mlx(here, trained):
    assert main(["export", "--run", str(trained / "run"), "--to", "mlx", "--out", "adapter"]) == 0
    from mlx_ft.models.read import import_mlx_lm

    import_mlx_lm()
    import mlx_lm

    model, _ = mlx_lm.load(str(trained / "model"), adapter_path="adapter")
    assert relative(small.logits(model), tuned(trained)) < 1e-5
    assert str(trained) not in Path("adapter/adapter_config.json").read_text()


def test_hf(here, trained):
    assert (
        main(["export", str(trained / "run"), "--to", "hf", "--out", "model", "--dtype", "bf16"])
        == 0
    )
    weights = mx.load("model/model.safetensors")
    assert {array.dtype for array in weights.values()} == {mx.bfloat16}
    assert json.loads(Path("model/config.json").read_text())["dtype"] == "bfloat16"


def test_gguf(here, trained, capsys):
    pytest.importorskip("gguf")
    assert main(["export", str(trained / "run"), "--to", "gguf", "--out", "m.gguf"]) == 0
    assert re.search(r"^float16 +\S+", capsys.readouterr().out, re.M)
    assert [path.name for path in here.iterdir()] == ["m.gguf"]
    loaded = api.load(_as_model(trained, here / "m.gguf"), adapter=False)
    assert relative(small.logits(loaded.model), tuned(trained)) < 2e-3


def _as_model(trained, file):
    """The run, with another base: to load that as a user would."""
    from dataclasses import replace

    from mlx_ft.saved import open_run

    run = open_run(trained / "run")
    return replace(run, config=replace(run.config, model=replace(run.config.model, path=str(file))))


def test_ollama(here, trained, capsys):
    pytest.importorskip("gguf")
    assert (
        main(["export", str(trained / "run"), "--to", "ollama", "--out", "me", "--dtype", "q8_0"])
        == 0
    )
    assert sorted(path.name for path in Path("me").iterdir()) == [
        "Modelfile",
        "README.md",
        "me.gguf",
    ]
    text = Path("me/Modelfile").read_text()
    assert text.startswith('FROM ./me.gguf\nTEMPLATE """{{ range .Messages }}<|im_start|>')
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "ollama create me -f Modelfile" in Path("me/README.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["export", "RUN", "--to", "peft", "--out", "x", "--dtype", "float16"],
            "written in float32",
        ),
        (
            ["export", "RUN", "--to", "gguf", "--out", "x", "--dtype", "bf16"],
            "--dtype: found 'bf16'",
        ),
        (["fuse", "RUN", "--run", "RUN", "--out", "x"], "two runs were named"),
        (["fuse", "nowhere", "--out", "x"], "neither a run folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(here, trained, capsys, words, said):
    assert main([str(trained / "run") if word == "RUN" else word for word in words]) == 2
    assert said in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fuse", "--out", "x", "--quantize", "7"], "expected BITS or BITS,GROUP"),
        (["fuse", "--out", "x", "--quantize", "4,48"], "groups of 32, 64, 128"),
        (["fuse", "--out", "x", "--tolerance", "-1"], "at least 0"),
        (["fuse"], "--out"),
        (["export", "--out", "x", "--to", "onnx"], "invalid choice"),
    ],
)
def test_wrong_options_are_told(here, capsys, words, said):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_rows_that_are_gone_are_said_to_be(here, trained, capsys, monkeypatch):
    kept = (trained / "rows.jsonl").read_bytes()
    (trained / "rows.jsonl").unlink()
    try:
        assert main(["fuse", str(trained / "run"), "--out", "fused"]) == 0
    finally:
        (trained / "rows.jsonl").write_bytes(kept)
    assert (
        "4 short texts that come with mlx-ft: the run's rows cannot be read"
        in capsys.readouterr().out
    )
    assert "rows.jsonl" not in Path("fused/README.md").read_text()


def test_a_checkpoint_and_an_adapter_s_folder_are_found(here, trained):
    from mlx_ft.export import source

    [step] = sorted((trained / "run" / "checkpoints").iterdir())[-1:]
    assert source.find(str(step)).run.folder == trained / "run"
    assert source.find(str(trained / "run" / "adapter")).run.folder == trained / "run"
    assert source.find(str(trained / "run")).adapter == trained / "run" / "adapter"
