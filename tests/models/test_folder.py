"""Model folders: what is refused, each with its reason, all at once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ModelError
from mlx_ft.models.folder import check_folder, safetensors_header
from mlx_ft.models.known import model_types
from mlx_ft.models.load import load, locate
from mlx_ft.models.read import read_tokenizer

from . import tiny


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_folder_passes_without_importing_mlx(folder: Path) -> None:
    assert check_folder(folder)["hidden_size"] == 64
    code = (
        "import sys\nfrom pathlib import Path\nfrom mlx_ft.models.folder import check_folder\n"
        f"check_folder(Path({str(folder)!r}))\n"
        "assert not {'mlx.core', 'mlx_lm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_that_would_be_needed_is_refused(folder: Path) -> None:
    edit(
        folder / "config.json",
        model_type="evil",
        auto_map={"AutoModel": "evil.Model"},
        model_file="evil.py",
    )
    text = refused(folder)
    assert "config.json: auto_map=" in text
    assert "config.json: model_file='evil.py' would run code" in text


def test_a_model_file_is_refused_even_for_a_known_model_type(folder: Path) -> None:
    edit(folder / "config.json", model_file="evil.py")
    assert "config.json: model_file='evil.py' would run code" in refused(folder)


def test_code_that_nothing_needs_is_not_run(folder: Path) -> None:
    evil = f"open({str(folder / 'ran')!r}, 'w')\nraise RuntimeError\n"
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
        (folder / name).write_text(evil)
    maps = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    edit(folder / "config.json", auto_map=maps)
    tokenizers = {"AutoTokenizer": ["tokenization_evil.T", "tokenization_evil.F"]}
    edit(folder / "tokenizer_config.json", auto_map=tokenizers)
    config = ModelConfig(path=str(folder))
    located = locate(config, folder / "cache")
    loaded = load(located, config, compute_dtype="float32", dequantize=False)
    assert loaded.tokenizer.encode("A") == [ord("A")]
    assert loaded.notes == (
        "config.json names code (auto_map), which is not run: mlx-lm's own llama is used",
        "tokenizer_config.json names code (auto_map), which is not run: transformers' own "
        "tokenizer is used",
    )
    assert not (folder / "ran").exists()


def test_a_tokenizer_that_needs_its_code_is_refused(folder: Path) -> None:
    """Of a type that mlx-lm knows and transformers does not, with no class of transformers'."""
    (folder / "tokenization_evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    edit(folder / "config.json", model_type="baichuan_m1")
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.T", None]},
        tokenizer_class="EvilTokenizer",
    )
    assert check_folder(folder)
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        read_tokenizer(folder, None)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    text = refused(folder)
    assert f"only pickled weights ({name})" in text
    assert "save_pretrained" in text


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights: model*.safetensors is not there" in refused(folder)


def test_weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "there is consolidated.safetensors, which mlx-lm does not read" in refused(folder)


def test_only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.gguf")
    assert "only GGUF weights (a.gguf): give the file itself" in refused(folder)


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert "this is an adapter, not a model" in refused(folder)


def test_all_faults_come_together(tmp_path: Path) -> None:
    text = refused(tmp_path)
    assert "config.json is missing" in text
    assert "no weights" in text
    assert "no tokenizer" in text


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "config.json cannot be read: Expecting property name"),
        ("[1]", "config.json holds a list, expected an object"),
        ("{}", "model_type is None, expected a name"),
    ],
)
def test_a_broken_config(folder: Path, content: str, fault: str) -> None:
    (folder / "config.json").write_text(content)
    assert fault in refused(folder)


def test_an_unknown_model_type_gets_its_neighbours(folder: Path) -> None:
    edit(folder / "config.json", model_type="lama")
    text = refused(folder)
    assert "mlx-lm has no model_type 'lama'; near it are" in text
    assert "llama" in text.split("near it are")[1]


def test_model_types_are_those_that_mlx_lm_loads() -> None:
    from mlx_ft.models.read import import_mlx_lm

    import_mlx_lm()
    from mlx_lm.utils import MODEL_REMAPPING

    found = set(model_types())
    families = {"llama", "mistral", "qwen3", "gemma3", "phi", "gpt2", "mixtral", "qwen2_moe"}
    assert families | set(MODEL_REMAPPING) <= found
    assert not {"base", "cache", "__init__"} & found


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"quantization": {"bits": 4}}, "expected numbers bits and group_size"),
        ({"quantization": 4}, "expected numbers bits and group_size"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes' is not read"),
    ],
)
def test_quantization_that_is_not_read(folder: Path, changes: Any, fault: str) -> None:
    edit(folder / "config.json", **changes)
    assert fault in refused(folder)


def test_cut_off_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    assert f"model.safetensors is cut off: {size - 100} bytes, expected {size}" in refused(folder)
    path.write_bytes(b"\xff" * 64)
    assert "is cut off or no safetensors file (64 bytes)" in refused(folder)


def test_missing_shards_and_tensors(folder: Path) -> None:
    one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    (folder / "model.safetensors").rename(folder / one)
    names = list(safetensors_header(folder / one))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {names[0]: one, names[1]: two}}))
    assert f"{index.name} names {two}, which is missing" in refused(folder)
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(names, one), "x.weight": one}}))
    assert f"names the tensor x.weight in {one}, which does not have it" in refused(folder)
    index.write_text("[]")
    assert f"{index.name} cannot be read" in refused(folder)
