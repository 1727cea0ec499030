"""The batch call gives what single calls give; cutting texts at control tokens changes nothing."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from mlx_ft.data.chat import EncodeOptions, encode, encode_rows
from mlx_ft.data.rows import RowError
from mlx_ft.data.tokens import Encoder

from .conftest import CHATML, MISTRAL, build, chatml, conversation

FAMILIES = ["chatml", "llama3", "mistral", "gemma", "trimming", "plain"]
CONTROLS = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|eot_id|>", "</s>", "<s>",
            "<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|im_", "<", ">"]  # fmt: skip
texts = st.lists(st.sampled_from([*CONTROLS, "a", " ", "\n", "\n\n", "the", " capital", "é", "漢",
                                  "  "]), max_size=12).map("".join)  # fmt: skip


@settings(max_examples=300)
@given(some=st.lists(texts, max_size=4), family=st.sampled_from(FAMILIES))
def test_pieces_have_the_tokens_of_the_whole(tokenizers, some, family):
    tokenizer = tokenizers[family]
    encoder = Encoder(tokenizer, "".join(CONTROLS))
    for text in some:
        assert encoder.plain(text) == tokenizer.encode(text, add_special_tokens=False)
    encoder.prefetch(some)
    for text in some:
        assert encoder.plain(text) == tokenizer.encode(text, add_special_tokens=False)


def swallowing(**about):
    """A tokenizer whose control token takes white space with it, or is sought for otherwise."""
    content = json.loads(chatml().backend_tokenizer.to_str())
    for token in content["added_tokens"]:
        token.update(about if token["content"] == "<|im_end|>" else {})
    content["normalizer"] = {"type": "Prepend", "prepend": "_"} if about.get("normalized") else None
    core = Tokenizer.from_str(json.dumps(content))
    end = AddedToken("<|im_end|>", **{"normalized": False, **about})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token=end
    )
    found = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    assert any(getattr(token, name) == value for name, value in about.items() for token in found)
    return tokenizer


def legacy():
    """As some Llama tokenizers: a space before each stretch of text."""
    tokenizer = build(MISTRAL, ["[INST]", "[/INST]"], bos="<s>", eos="</s>", pieces=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = None
    return tokenizer


def overlapping():
    tokenizer = chatml()
    tokenizer.add_tokens([AddedToken("a<|im_end|>", normalized=False)])
    return tokenizer


@example(["xa<|im_end|>b", "a <|im_end|> b"])
@settings(max_examples=60)
@given(some=st.lists(texts, min_size=1, max_size=3))
@pytest.mark.parametrize(
    "make",
    [
        lambda: swallowing(lstrip=True),
        lambda: swallowing(rstrip=True),
        lambda: swallowing(normalized=True),
        legacy,
        overlapping,
    ],
)
def test_odd_tokenizers_are_not_cut_where_it_would_matter(make, some):
    tokenizer = make()
    encoder = Encoder(tokenizer, "".join(CONTROLS))
    for text in some:
        assert encoder.plain(text) == tokenizer.encode(text, add_special_tokens=False)
    encoder.prefetch(some)
    for text in some:
        assert encoder.plain(text) == tokenizer.encode(text, add_special_tokens=False)


class Slow:
    """A tokenizer without a Rust backend, such as those written in Python."""

    def __init__(self, inner: PreTrainedTokenizerFast) -> None:
        self._inner_tokenizer = inner

    def __getattr__(self, name):
        if name in ("backend_tokenizer", "_tokenizer"):
            raise AttributeError(name)
        return getattr(self.__dict__["_inner_tokenizer"], name)

    apply_chat_template = PreTrainedTokenizerFast.apply_chat_template


class ByHand(Slow):
    """A tokenizer whose chats are Python code."""

    def apply_chat_template(self, *arguments, **options):
        return self._inner_tokenizer.apply_chat_template(*arguments, **options)


ROWS = [
    conversation("Sky?", "Blue.", "Grass?", "Green!", system="Short."),
    conversation("Code?", "\n\n    return x"),
    conversation("quoted <|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n", "<|im_end|>Blue"),
    conversation("é 漢", "b", "  c", " d\n"),
    conversation("a", "b", "c"),
    conversation(text="Paris is."),
] * 3


def summary(result):
    assert not isinstance(result, RowError)
    return [(e.tokens.tolist(), e.targets.tolist(), e.endless) for e in result.examples]


@pytest.mark.parametrize(
    ("family", "wrap"),
    [
        *((family, wrap) for family in ("chatml", "llama3", "gemma", "trimming")
          for wrap in (lambda t: t, Slow, ByHand)),
        ("plain", lambda t: t),
        ("plain", Slow),
    ],
)  # fmt: skip
def test_a_batch_is_its_rows(tokenizers, family, wrap):
    results = encode_rows(ROWS, wrap(tokenizers[family]), EncodeOptions(999))
    for row, result in zip(ROWS, results, strict=True):
        one = encode(row, tokenizers[family], 999)
        assert summary(result) == [(one.tokens.tolist(), one.targets.tolist(), one.endless)]
        assert result.examples[0].tokens.dtype == np.int32
        assert result.examples[0].record is row.record


def test_texts_of_a_batch_are_encoded_in_one_call(tokenizers, monkeypatch):
    tokenizer = build(CHATML, [], bos="<|im_start|>", eos="<|im_end|>")
    encode_rows(ROWS[:1], tokenizer, EncodeOptions(999))  # what is found out once
    calls = []
    monkeypatch.setattr(
        type(tokenizer), "encode", lambda self, text, **_: calls.append(text) or [], raising=True
    )
    results = encode_rows([ROWS[0], ROWS[4]] * 50, tokenizer, EncodeOptions(999))
    assert calls == []
    assert [summary(result) for result in results[:2]] * 50 == [summary(r) for r in results]


def test_faults_stand_at_the_place_of_their_rows(tokenizers):
    bad = conversation("a", "b", "c", "d")
    results = encode_rows([ROWS[0], bad, ROWS[3]], tokenizers["chatml"], EncodeOptions(5))
    assert [isinstance(result, RowError) for result in results] == [True, True, True]
    assert encode_rows([], tokenizers["chatml"], EncodeOptions(5)) == []
    refusing = chatml("{% if messages[0].content == 'a' %}{{ raise_exception('no') }}{% endif %}"
                      + CHATML)  # fmt: skip
    results = encode_rows([ROWS[0], bad, ROWS[3]], refusing, EncodeOptions(999))
    assert [isinstance(result, RowError) for result in results] == [False, True, False]
    assert results[1].found[0].code == "template_refused"
