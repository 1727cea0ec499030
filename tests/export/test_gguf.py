"""GGUF files: their numbers and words, and what our own reader makes of them."""

import itertools
import json
import re

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft.config.schema import ModelConfig
from mlx_ft.data import template
from mlx_ft.data.render import Renderer
from mlx_ft.data.rows import Message
from mlx_ft.errors import ModelError, UserError
from mlx_ft.export import fuse, gguf_file, gguf_vocabulary
from mlx_ft.models.folder import check_folder
from mlx_ft.models.gguf import renamed
from mlx_ft.models.gguf_header import read_header
from mlx_ft.models.gguf_tokenizer import build_tokenizer
from mlx_ft.models.load import Located, load, locate
from tests.data.conftest import VECTORS, mistral_v3
from tests.export import small
from tests.fakes import relative

gguf = pytest.importorskip("gguf")


def write(tmp_path, config=small.LLAMA, kind="float32"):
    """(base and adapter as a model, the GGUF file of the two)."""
    model = small.save_model(tmp_path / "base", config)
    small.save_adapter(tmp_path / "adapter", model, tmp_path / "base")
    located = Located(tmp_path / "base", "small", "folder", None, check_folder(tmp_path / "base"))
    made = fuse.fuse(
        located, ModelConfig(), tmp_path / "adapter", dtype="float32", computed="float32"
    )
    words = gguf_file.Words(
        gguf_vocabulary.read(tmp_path / "base", 272),
        {"bos": 259, "eos": 260, "pad": 261, "eot": 263},
        adds_bos=False,
        template=small.CHATML,
    )
    gguf_file.write(tmp_path / "m.gguf", made, kind, "small", words)
    return model, tmp_path / "m.gguf"


def read(path, tmp_path):
    located = locate(ModelConfig(path=str(path)), tmp_path / "cache")
    return load(located, ModelConfig(), compute_dtype="float32", dequantize=True).model


@pytest.mark.parametrize("config", [small.LLAMA, small.QWEN2], ids=["llama", "qwen2"])
@pytest.mark.parametrize(("kind", "bound"), [("float32", 1e-5), ("float16", 2e-3), ("q8_0", 3e-2)])
def test_what_is_written_computes_what_base_and_adapter_do(tmp_path, config, kind, bound):
    model, path = write(tmp_path, config, kind)
    assert relative(small.logits(read(path, tmp_path)), small.logits(model)) < bound


@pytest.mark.parametrize(
    "changes", [{"head_dim": 32}, {"attention_bias": True}, {"mlp_bias": True}]
)
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_wide_heads_and_biases_come_back(tmp_path, changes, model_type):
    model, path = write(tmp_path, {**small.LLAMA, "model_type": model_type, **changes})
    assert relative(small.logits(read(path, tmp_path)), small.logits(model)) < 1e-5


def test_numbers_and_words(tmp_path):
    _, path = write(tmp_path, kind="q8_0")
    found = read_header(path).metadata
    assert found["general.architecture"] == "llama"
    assert (found["general.name"], found["general.file_type"]) == ("small", 7)
    expected = {
        "context_length": 128, "embedding_length": 64, "block_count": 3, "vocab_size": 272,
        "feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2,
        "rope.dimension_count": 16, "rope.freq_base": 10000.0,
    }  # fmt: skip
    assert {key: found[f"llama.{key}"] for key in expected} == expected
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    words = {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}
    assert (words["model"], words["pre"], words["add_bos_token"]) == ("gpt2", "smollm", False)
    assert words["tokens"][:264] == small.TOKENS
    assert words["tokens"][264:] == [f"[PAD{index}]" for index in range(264, 272)]
    assert words["token_type"] == [1] * 259 + [3] * 5 + [5] * 8
    assert words["merges"] == small.MERGES
    ids = [words[f"{name}_token_id"] for name in ("bos", "eos", "padding", "eot")]
    assert ids == [259, 260, 261, 263]
    assert found["tokenizer.chat_template"] == small.CHATML


def test_ggml_s_own_reader_agrees(tmp_path):
    """Types, shapes and values, by the reader of the package that llama.cpp's tools use."""
    model, path = write(tmp_path, kind="q8_0")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    header = {tensor.name: tensor for tensor in read_header(path).tensors}
    assert found.keys() == header.keys()
    assert "output.weight" not in found  # tied
    for name, tensor in found.items():
        assert tuple(int(n) for n in reversed(tensor.shape)) == header[name].shape
        assert tensor.tensor_type.name == ("F32" if "norm" in name else "Q8_0")
    up = gguf.quants.dequantize(found["blk.0.ffn_up.weight"].data, gguf.GGMLQuantizationType.Q8_0)
    expected = np.array(model.layers[0].mlp.up_proj.weight)
    np.testing.assert_allclose(up, expected, atol=np.abs(expected).max() / 100)


def test_our_tokenizer_of_it_cuts_texts_alike(tmp_path):
    _, path = write(tmp_path)
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    again = build_tokenizer(read_header(path).metadata)
    for text in ("the thin 1234 inn", "<|im_start|>user\nthe<|im_end|>", "Zürich 北京 🙂"):
        assert again.encode(text).ids == own.encode(text).ids


def test_a_width_that_q8_0_cannot_cut_stays_float16(tmp_path):
    _, path = write(tmp_path, {**small.LLAMA, "intermediate_size": 80}, "q8_0")
    types = {tensor.name: tensor.type for tensor in read_header(path).tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


def test_llama_3_s_frequencies_are_written(tmp_path):
    """By Meta's rule: short waves stay, long ones are `factor` as long, between them it blends."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    _, path = write(tmp_path, {**small.LLAMA, "rope_scaling": scaling})
    [tensor] = [t for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight"]
    expected = []
    for pair in range(8):
        wave = 2 * np.pi * 10000 ** (2 * pair / 16)
        blend = (64 / wave - 1) / 3
        expected.append(1.0 if wave < 16 else 8.0 if wave > 64 else 1 / ((1 - blend) / 8 + blend))
    np.testing.assert_allclose(tensor.data, expected, rtol=1e-5)
    assert {1.0, 8.0} < set(expected)


def test_names_are_those_that_are_read():
    for name in (
        "model.layers.3.self_attn.q_proj.weight", "model.layers.12.self_attn.k_proj.bias",
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.0.post_attention_layernorm.weight",
    ):  # fmt: skip
        assert renamed(gguf_file.named(name)) == name
    assert gguf_file.named("model.layers.0.mlp.experts.up_proj.weight") is None
    assert gguf_file.named("vision.norm.weight") is None


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ModelError, match="rope_scaling: found 'linear'"):
        write(tmp_path / "a", {**small.LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}})
    gemma = {**small.LLAMA, "model_type": "gemma", "head_dim": 16}
    with pytest.raises(ModelError, match="a gemma model cannot be written as GGUF"):
        write(tmp_path / "b", gemma)


def test_values_beyond_float16_are_refused(tmp_path, monkeypatch):
    own = fuse.Fused.take

    def take(self):
        arrays = own(self)
        arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"] * 1e9
        return arrays

    monkeypatch.setattr(fuse.Fused, "take", take)
    with pytest.raises(ModelError, match="float32") as error:
        write(tmp_path, kind="float16")
    assert error.value.faults == ("model.embed_tokens.weight",)


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"mlx-ft\[gguf\]"):
        gguf_file.package()


def change(folder, **changes):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        place = content["model"] if key in content["model"] else content
        place[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"byte_fallback": True}, "SentencePiece"),
        ({"type": "Unigram"}, "found Unigram"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer: found Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "none of the ways"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    ],
)
def test_tokenizers_that_llama_cpp_would_cut_otherwise_are_refused(tmp_path, changes, fault):
    small.save_tokenizer(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(ModelError) as error:
        gguf_vocabulary.read(tmp_path, 272)
    assert fault in str(error.value)


def test_more_tokens_than_rows_are_refused(tmp_path):
    small.save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="4 tokens, '</s>' first"):
        gguf_vocabulary.read(tmp_path, 260)
    with pytest.raises(ModelError, match="cannot be read"):
        gguf_vocabulary.read(tmp_path / "nowhere", 272)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_every_way_to_cut_is_told_by_its_file(tmp_path, name):
    """The tokenizer that is read under this name is written under it again."""
    metadata = {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name, "tokenizer.ggml.tokens": small.TOKENS,
        "tokenizer.ggml.token_type": [1] * 259 + [3] * 5, "tokenizer.ggml.merges": small.MERGES,
    }  # fmt: skip
    build_tokenizer(metadata).save(str(tmp_path / "tokenizer.json"))
    assert gguf_vocabulary.read(tmp_path, 264)["pre"] == name


def test_sentencepiece_s_words_by_sentencepiece_s_rule(tmp_path):
    """Pieces are joined by the score of their sum: so mistral-common's own ids come out."""
    made = json.loads(VECTORS.read_text())
    tokenizer = mistral_v3()
    template.install(tokenizer, "mistral")
    tokenizer.save_pretrained(tmp_path)
    found = gguf_vocabulary.read(tmp_path, 32768)
    assert (found["model"], found["add_space_prefix"]) == ("llama", False)
    kinds = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert [kinds[t] for t in ("<unk>", "<s>", "[INST]", "<0x41>", "▁What")] == [2, 3, 3, 6, 1]
    assert kinds["[PAD32767]"] == 5
    for name in ("single", "multi", "system_multi", "white_space", "unicode"):
        one = made["conversations"][name]
        messages = [Message(turn["role"], turn["content"]) for turn in one["messages"]]
        for answer in one["answers"]:
            turns = [{"role": m.role, "content": m.content} for m in messages[: answer["turn"]]]
            text = Renderer(tokenizer).text(turns, prompt=True)
            assert joined(text, found) == answer["prompt"]


def joined(text, words):
    """SentencePiece's rule: the best-scored join first, bytes for the rest."""
    ids = {token: index for index, token in enumerate(words["tokens"])}
    controls = [
        t for t, kind in zip(words["tokens"], words["token_type"], strict=True) if kind == 3
    ]
    found = []
    for part in re.split(f"({'|'.join(map(re.escape, controls))})", text):
        pieces = [part] if part in controls else list(part.replace(" ", "▁"))
        while True:
            scores = [
                (words["scores"][ids[left + right]], -place)
                for place, (left, right) in enumerate(itertools.pairwise(pieces))
                if left + right in ids
            ]
            if not scores:
                break
            place = -max(scores)[1]
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        for piece in pieces:
            own = [piece] if piece in ids else [f"<0x{byte:02X}>" for byte in piece.encode()]
            found += [ids[one] for one in own]
    return found


@pytest.mark.parametrize(
    ("normalizer", "cuts", "prefix"),
    [
        (["Prepend", "Replace"], None, True),
        (["Replace"], None, False),
        ([], "always", True),
        ([], "first", False),
        ([], "other", None),
        (["Replace"], "first", None),
        (["Replace", "Prepend"], None, None),
    ],
)
def test_the_space_before_a_text_is_told(normalizer, cuts, prefix):
    parts = {
        "Prepend": {"type": "Prepend", "prepend": "▁"},
        "Replace": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    }
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": cuts, "split": False}
    content = {
        "normalizer": {"type": "Sequence", "normalizers": [parts[name] for name in normalizer]},
        "pre_tokenizer": metaspace if cuts else None,
    }
    assert gguf_vocabulary.space_prefix(content) is prefix
    spread = {"pre_tokenizer": {**metaspace, "split": True}}
    assert gguf_vocabulary.space_prefix(spread) is None


def test_a_merge_that_is_missing_is_a_fault(tmp_path):
    mistral_v3().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    del content["model"]["merges"][5]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="1 ways to make a piece are none"):
        gguf_vocabulary.read(tmp_path, 32768)


@pytest.mark.slow
def test_the_embedded_model_s_words_are_carried_over(tmp_path):
    """Read from its GGUF file, made a tokenizer.json, and written: all the same."""
    from mlx_ft.models import gguf as reading
    from mlx_ft.models.load import locate

    located = locate(ModelConfig(), tmp_path)
    original = read_header(reading.find_embedded()).metadata
    found = gguf_vocabulary.read(located.path, located.config["vocab_size"])
    for key in ("model", "pre", "tokens", "token_type", "merges"):
        assert found[key] == original[f"tokenizer.ggml.{key}"], key


def test_arrays_live_one_at_a_time(tmp_path):
    """Written tensor by tensor: no two of the large ones are in memory together."""
    config = {**small.LLAMA, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    small.save_model(tmp_path / "base", config)
    small.save_adapter(tmp_path / "adapter", _model(tmp_path / "base"), tmp_path / "base")
    located = Located(tmp_path / "base", "small", "folder", None, check_folder(tmp_path / "base"))
    made = fuse.fuse(
        located, ModelConfig(), tmp_path / "adapter", dtype="float32", computed="float32"
    )
    total = sum(array.nbytes for _, array in _flat(made.model))
    mx.clear_cache()
    mx.reset_peak_memory()
    start = mx.get_active_memory()
    from mlx_ft.export import tensors

    tensors.write(tmp_path, made.take())
    assert mx.get_peak_memory() - start < total / 4


def _model(folder):
    from mlx_ft.models.read import read_model

    return read_model(folder)[0]


def _flat(model):
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())
