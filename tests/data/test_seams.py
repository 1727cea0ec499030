"""A text in parts has the tokens of the whole."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from mlx_ft.data import seams, tokens
from mlx_ft.data.tokens import Encoder

from .conftest import CHATML, CORPUS, chatml, mistral_v3
from .test_mask_batch import legacy, overlapping, swallowing

MORE = [
    "It's we'll HELLO WorldWide 1234 don't\nЗдравствуй мир 北京 上海\n",
    "안녕 세계 naïve Æon",
] * 4
SPACES = normalizers.Replace(" ", "▁")
STEP = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def words(*steps, normalizer=None):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    if normalizer is not None:
        core.normalizer = normalizer
    core.train_from_iterator(
        CORPUS + MORE,
        trainers.BpeTrainer(
            vocab_size=800,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return core


def by(pattern):
    return words(pre_tokenizers.Split(Regex(pattern), "isolated"), STEP)


def pieces(normalizer=None, pre_tokenizer=None):
    core = mistral_v3().backend_tokenizer
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizer
    return core


CUT = {
    "gpt2": lambda: words(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm2": lambda: words(
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "qwen": lambda: words(
        pre_tokenizers.Split(Regex(seams.WORDS[1]), "isolated"), STEP, normalizer=normalizers.NFC()
    ),
    "llama3": lambda: by(seams.WORDS[2]),
    "gpt-4o": lambda: by(seams.WORDS[3]),
    "gemma": lambda: pieces(SPACES, pre_tokenizers.Split(" ", "merged_with_previous")),
    "mistral": lambda: mistral_v3().backend_tokenizer,
    "split": lambda: pieces(None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    "always": lambda: pieces(None, pre_tokenizers.Metaspace(prepend_scheme="always")),
    "never": lambda: pieces(None, pre_tokenizers.Metaspace(prepend_scheme="never")),
    "llama2": lambda: pieces(normalizers.Sequence([normalizers.Prepend("▁"), SPACES])),
}
BACKENDS = {name: make() for name, make in CUT.items()}
PIECES = ["a", "the", "B", " ", "  ", "\n", "\n\n", "'s", "1", "23", ".", ",", "é", "e\u0301", "漢",
          "мир", "안", "[INST]", "<|im_end|>", "\u0301", "▁", "\t", "\r\n", "²", "½"]  # fmt: skip
said = st.lists(st.sampled_from([*PIECES, "word word", " capital of", "x y"]), max_size=30)


def ids(backend, text):
    return backend.encode(text, add_special_tokens=False).ids


@settings(max_examples=500)
@given(text=said.map("".join), size=st.integers(1, 12), name=st.sampled_from(list(CUT)))
def test_parts_have_the_tokens_of_the_whole(text, size, name):
    backend = BACKENDS[name]
    found = seams.find(backend)
    parts = list(seams.parts(text, found, size))
    assert [token for part in parts for token in ids(backend, part)] == ids(backend, text)


@pytest.mark.parametrize("name", CUT)
def test_every_kind_is_cut(name):
    found = seams.find(BACKENDS[name])
    parts = list(seams.parts("the capital of France is the capital", found, 5))
    assert len(parts) == 4
    assert " ".join(part.strip() for part in parts) == "the capital of France is the capital"


def changed(**about):
    content = json.loads(BACKENDS["smollm2"].to_str())
    content["model"] |= about.pop("model", {})
    return Tokenizer.from_str(json.dumps(content | about))


def with_word():
    tokenizer = chatml()
    tokenizer.add_tokens([AddedToken("assistant", normalized=False)])
    return tokenizer.backend_tokenizer


def crossing():
    """A vocabulary with a token that goes from one word into the next."""
    content = json.loads(BACKENDS["mistral"].to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["e▁"] = max(vocabulary.values()) + 1
    content["model"]["merges"].append(["e", "▁"])
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize(
    "make",
    [
        lambda: changed(model={"dropout": 0.1}),
        lambda: changed(normalizer={"type": "NFKC"}),
        lambda: changed(pre_tokenizer={"type": "Whitespace"}),
        lambda: by(r"\w+ \w+|\s+"),
        lambda: words(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
        lambda: swallowing(normalized=True).backend_tokenizer,
        lambda: overlapping().backend_tokenizer,
        with_word,
        crossing,
    ],
)
def test_what_is_not_known_is_not_cut(make):
    assert seams.find(make()) is None


@pytest.mark.parametrize("make", [lambda: chatml(CHATML), mistral_v3, legacy])
def test_the_encoder_takes_long_texts_in_parts(make, monkeypatch):
    tokenizer = make()
    monkeypatch.setattr(tokens, "LONG", 40)
    monkeypatch.setattr(tokens, "TOGETHER", 100)
    monkeypatch.setattr(tokens, "LOOKED_AT", 30)
    monkeypatch.setattr(seams.parts, "__defaults__", (20,))
    encoder = Encoder(tokenizer, "<|im_end|>[INST]</s>")
    texts = ["the capital of France is Paris </s> and " * count for count in (1, 3, 50, 2)]
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [encoder.plain(text) for text in texts] == expected
    encoder.prefetch(texts)
    assert [encoder.plain(text) for text in texts] == expected


def test_no_long_text_is_given_to_the_tokenizer_whole(monkeypatch):
    tokenizer = mistral_v3()
    encoder = Encoder(tokenizer)
    given = []

    class Watched:
        def encode_batch_fast(self, parts, **options):
            given.append([len(part) for part in parts])
            return tokenizer.backend_tokenizer.encode_batch_fast(parts, **options)

        def encode(self, text, **options):
            given.append([len(text)])
            return tokenizer.backend_tokenizer.encode(text, **options)

    monkeypatch.setattr(encoder, "_backend", Watched())
    text = "What is the next word " * 150_000
    encoder.prefetch([text, "What"])
    found = encoder.plain(text)
    assert max(max(sizes) for sizes in given) < 2 * seams.PART
    assert max(sum(sizes) for sizes in given) < tokens.TOGETHER + 2 * seams.PART
    assert len(found) == 150_000 * len(encoder.plain("What is the next word")) + 1
