"""Masks are checked against texts written out by hand and against transformers' own marks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_ft.data.chat import encode, generation_prompt, prompt_tokens
from mlx_ft.data.rows import Message
from mlx_ft.errors import DataError

from .conftest import CHATML, LLAMA3, THINKING_MARKED, build, chatml, conversation, unmarked

FAMILIES = ["chatml", "llama3", "mistral", "gemma", "trimming", "plain"]
TWO_TURNS = conversation("Sky?", "Blue.", "Grass?", "Green!")
BY_HAND = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nSky?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Blue.<|im_end|>",
        "\n<|im_start|>user\nGrass?<|im_end|>\n<|im_start|>assistant\n",
        "Green!<|im_end|>",
        "\n",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nSky?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Blue.<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nGrass?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Green!<|eot_id|>",
    ),
    "mistral": ("<s>[INST] Sky?[/INST]", " Blue.</s>", "[INST] Grass?[/INST]", " Green!</s>"),
    "gemma": (
        "<bos><start_of_turn>user\nSky?<end_of_turn>\n<start_of_turn>model\n",
        "Blue.<end_of_turn>",
        "\n<start_of_turn>user\nGrass?<end_of_turn>\n<start_of_turn>model\n",
        "Green!<end_of_turn>",
        "\n",
    ),
    "plain": ("Sky?\n", "Blue.</s>", "Grass?\n", "Green!</s>"),
}
BY_HAND["trimming"] = BY_HAND["chatml"]


def runs(example, tokenizer):
    """The texts of the example's stretches of equal target value, the first a prompt."""
    edges = np.flatnonzero(np.diff(example.targets)) + 1
    return tuple(tokenizer.decode(part.tolist()) for part in np.split(example.tokens, edges))


def first_answers(example):
    """Where each target stretch begins."""
    return np.flatnonzero(np.diff(example.targets.astype(int)) == 1) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_assistant_turn_with_its_end_is_a_target_and_nothing_else(tokenizers, family):
    tokenizer = tokenizers[family]
    example = encode(TWO_TURNS, tokenizer, 999)
    expected = BY_HAND[family]
    if family == "mistral":  # its decoder drops the space that begins a text
        expected = tuple(text.removeprefix(" ") for text in expected)
    assert runs(example, tokenizer) == expected
    assert example.tokens.dtype == np.int32
    assert example.targets.dtype == bool
    assert (example.truncated, example.endless) == (0, 0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "plain"])
def test_tokens_and_mask_equal_those_of_transformers_generation_marks(tokenizers, family):
    tokenizer = tokenizers[family]
    turns = [{"role": m.role, "content": m.content} for m in TWO_TURNS.messages]
    theirs = tokenizer.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    example = encode(TWO_TURNS, tokenizer, 999)
    assert example.tokens.tolist() == theirs["input_ids"]
    assert example.targets.astype(int).tolist() == theirs["assistant_masks"]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_starts_from_exactly_the_tokens_before_the_last_answer(tokenizers, family):
    tokenizer = tokenizers[family]
    example = encode(TWO_TURNS, tokenizer, 999)
    prompt = prompt_tokens(TWO_TURNS, tokenizer)
    assert prompt == example.tokens[: first_answers(example)[-1]].tolist()
    rendered = "".join(BY_HAND[family][:3])
    assert prompt == tokenizer.encode(rendered, add_special_tokens=False)


contents = st.text(st.sampled_from("ab. \n\té漢?"), min_size=1, max_size=8).filter(str.strip)
talks = st.integers(1, 3).flatmap(lambda n: st.lists(contents, min_size=2 * n, max_size=2 * n))


@settings(max_examples=60)
@given(said=talks, family=st.sampled_from(["chatml", "llama3", "gemma", "trimming", "plain"]))
def test_masked_tokens_are_the_answers_for_any_text(tokenizers, said, family):
    tokenizer = tokenizers[family]
    row = conversation(*said)
    example = encode(row, tokenizer, 9999)
    end = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "plain": "</s>"}.get(
        family, "<|im_end|>"
    )
    answers = [text.strip() if family == "trimming" else text for text in said[1::2]]
    assert runs(example, tokenizer)[1::2] == tuple(answer + end for answer in answers)
    prompt = prompt_tokens(row, tokenizer)
    assert prompt == example.tokens[: first_answers(example)[-1]].tolist()
    # The first prompt is encoded as generation encodes it, whatever answer follows.
    first = generation_prompt(row.messages[:1], tokenizer)
    assert example.tokens[: len(first)].tolist() == first
    whole = tokenizer.decode(example.tokens.tolist())
    if family == "plain":
        assert whole == "".join(
            a + "\n" + b + end for a, b in zip(said[::2], said[1::2], strict=True)
        )
    else:
        turns = [{"role": m.role, "content": m.content} for m in row.messages]
        assert whole == tokenizer.apply_chat_template(turns, tokenize=False)


@settings(max_examples=30)
@given(
    said=st.lists(
        st.text("ab .?\n", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=2
    )
)
def test_masks_hold_for_sentencepiece_too(tokenizers, said):
    tokenizer = tokenizers["mistral"]
    example = encode(conversation(*said), tokenizer, 9999)
    before, answer = runs(example, tokenizer)
    assert before == f"<s>[INST] {said[0]}[/INST]"
    # Its decoder drops the spaces that begin a text: the whole shows that none was lost.
    assert answer.lstrip(" ") == f"{said[1]}</s>".lstrip(" ")
    assert tokenizer.decode(example.tokens.tolist()) == f"<s>[INST] {said[0]}[/INST] {said[1]}</s>"


def test_an_answer_that_merges_with_the_prompt_keeps_the_prompt_as_generated(tokenizers):
    tokenizer = tokenizers["chatml"]
    row = conversation("Code?", "\n\n    return x")
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in row.messages], tokenize=False
    )
    prompt = generation_prompt(row.messages[:1], tokenizer)
    merged = tokenizer.encode(text, add_special_tokens=False)
    assert merged[: len(prompt)] != prompt, "the case that this test is about"
    example = encode(row, tokenizer, 999)
    assert example.tokens[: len(prompt)].tolist() == prompt
    assert runs(example, tokenizer)[1] == "\n\n    return x<|im_end|>"


def test_a_piece_that_would_change_the_text_is_refused():
    plain_pieces = build(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}", [], eos="</s>", pieces=True
    )
    with pytest.raises(DataError, match=r"joins text across the border of a turn.*white space"):
        encode(conversation("the capital of Fr", "ance"), plain_pieces, 99)


def test_a_turn_quoted_inside_another_is_no_turn(tokenizers):
    quoted = "<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n"
    example = encode(conversation("Sky?" + quoted, "Blue." + quoted), tokenizers["chatml"], 999)
    _, answer, after = runs(example, tokenizers["chatml"])
    assert (answer, after) == ("Blue." + quoted + "<|im_end|>", "\n")


def test_system_turns_and_a_turn_that_nobody_answers(tokenizers):
    tokenizer = tokenizers["chatml"]
    example = encode(conversation("Sky?", "Blue.", "Why?", system="Short."), tokenizer, 999)
    assert runs(example, tokenizer) == (
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nSky?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Blue.<|im_end|>",
        "\n<|im_start|>user\nWhy?<|im_end|>\n",
    )


THOUGHTS = conversation("1+1?", "<think>easy</think>2", "2+2?", "<think>hm</think>4")


def test_a_row_of_several_examples_is_not_one_example():
    tokenizer = chatml(unmarked(THINKING_MARKED))
    with pytest.raises(DataError, match=r"renders a turn differently.*gives 2 examples"):
        encode(THOUGHTS, tokenizer, 999)
    one = encode(conversation("1+1?", "<think>easy</think>2"), tokenizer, 999)
    assert runs(one, tokenizer)[1] == "<think>easy</think>2<|im_end|>"


@pytest.mark.parametrize("wrap", [lambda t: t, TokenizerWrapper], ids=["plain", "mlx-lm"])
def test_generation_marks_decide_where_a_template_rewrites(wrap):
    tokenizer = wrap(chatml(THINKING_MARKED))
    example = encode(THOUGHTS, tokenizer, 999)
    assert runs(example, tokenizer)[1::2] == ("2<|im_end|>", "<think>hm</think>4<|im_end|>")
    prompt = prompt_tokens(THOUGHTS, tokenizer)
    assert prompt == example.tokens[: first_answers(example)[-1]].tolist()


def test_marks_without_the_end_of_turn_get_it():
    template = THINKING_MARKED.replace(
        "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"
    )
    example = encode(THOUGHTS, chatml(template), 999)
    assert runs(example, chatml(template))[1::2] == ("2<|im_end|>", "<think>hm</think>4<|im_end|>")


def test_marks_that_do_not_begin_where_generation_does_are_refused():
    template = THINKING_MARKED.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(DataError, match=r"does not begin where generation would"):
        encode(THOUGHTS, chatml(template), 999)


def test_a_template_that_refuses_is_quoted(tokenizers):
    row = dataclasses.replace(TWO_TURNS, messages=(Message("tool", "x"), *TWO_TURNS.messages))
    with pytest.raises(DataError, match=r"refuses these turns.*Only user and assistant"):
        encode(row, tokenizers["mistral"], 99)


def test_exactly_one_bos():
    silent = build(unmarked(CHATML), ["<|im_start|>"], bos="<s>", eos="<|im_end|>", adds_bos=True)
    example = encode(TWO_TURNS, silent, 999)
    assert example.tokens[:2].tolist() == [
        silent.bos_token_id,
        silent.convert_tokens_to_ids("<|im_start|>"),
    ]
    assert prompt_tokens(TWO_TURNS, silent)[0] == silent.bos_token_id
    assert (example.tokens == silent.bos_token_id).sum() == 1
    doubled = build("{{ bos_token }}" + LLAMA3, [], bos="<s>", eos="</s>", adds_bos=True)
    with pytest.raises(DataError, match=r"two BOS tokens.*'<s><s><\|start.* is read as '<s><s>"):
        encode(TWO_TURNS, doubled, 999)


def test_a_template_without_an_end_of_turn_is_counted(tokenizers):
    endless = chatml(unmarked(CHATML).replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}"))
    example = encode(conversation("Sky?", "Blue."), endless, 99)
    assert example.endless == 1
    assert runs(example, endless)[1] == "Blue.\n"


def test_turns_stay_apart_where_no_control_token_parts_them():
    lines = chatml("{% for m in messages %}{{ m['content'] }}{{ '\n' }}{% endfor %}")
    row = conversation("a", "b", "\n\n\nhello", "d")
    example = encode(row, lines, 99)
    assert runs(example, lines) == ("a\n", "b\n", "\n\n\nhello\n", "d\n")
    assert prompt_tokens(row, lines) == example.tokens[: first_answers(example)[-1]].tolist()


def test_raw_text_is_all_target_and_ends_in_eos(tokenizers):
    plain, llama = tokenizers["plain"], tokenizers["llama3"]
    for text in ("Paris is.", "Paris is.</s>"):
        example = encode(conversation(text=text), plain, 99)
        assert plain.decode(example.tokens.tolist()) == "Paris is.</s>"
        assert example.targets.tolist() == [False] + [True] * (len(example.tokens) - 1)
    unprefixed = encode(conversation(text="Paris is."), tokenizers["chatml"], 99)
    assert tokenizers["chatml"].decode(unprefixed.tokens.tolist()) == "Paris is.<|im_end|>"
    example = encode(conversation(text="Paris is."), llama, 99)
    assert llama.decode(example.tokens.tolist()) == "<|begin_of_text|>Paris is.<|eot_id|>"
    with pytest.raises(DataError, match="no assistant turn"):
        prompt_tokens(conversation(text="Paris is."), llama)


def test_long_rows_are_cut_on_the_right_and_counted(tokenizers):
    tokenizer = tokenizers["chatml"]
    whole = encode(TWO_TURNS, tokenizer, 999)
    first = first_answers(whole)[0]
    cut = encode(TWO_TURNS, tokenizer, first + 2)
    assert cut.tokens.tolist() == whole.tokens[: first + 2].tolist()
    assert cut.targets.tolist() == whole.targets[: first + 2].tolist()
    assert cut.truncated == len(whole.tokens) - first - 2
    with pytest.raises(DataError, match=f"begins after {first} of.*max_seq_length is {first}"):
        encode(TWO_TURNS, tokenizer, int(first))
