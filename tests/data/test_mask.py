"""Where the common shortcut fails: turns rewritten, merged, trimmed, left out; weights; tools."""

import dataclasses

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mlx_ft.data.chat import EncodeOptions, encode_rows, prompt_tokens
from mlx_ft.data.rows import Conversation, Message, RowError

from .conftest import (
    CHATML,
    GEMMA,
    LLAMA3,
    MERGING,
    MISTRAL,
    THINKING_MARKED,
    TOOLS,
    TRIMMING,
    build,
    chatml,
    conversation,
    turns,
    unmarked,
)

THOUGHTS = conversation(
    "1+1?", "<think>easy</think>2", "2+2?", "<think>hm</think>4", "3+3?", "<think>so</think>6"
)
FOUR = conversation("a", "b", "c", "d", "e", "f")


def encoded(row, tokenizer, size=999, train_on="assistant", overlong="truncate_right"):
    (found,) = encode_rows([row], tokenizer, EncodeOptions(size, train_on, overlong))
    if isinstance(found, RowError):
        raise found
    return found


def fault(row, tokenizer, **options):
    with pytest.raises(RowError) as error:
        encoded(row, tokenizer, **options)
    (only,) = error.value.found
    return only


def parts(example, tokenizer):
    """Texts of the stretches of equal target value, the first a prompt."""
    edges = np.flatnonzero(np.diff(example.targets)) + 1
    return tuple(tokenizer.decode(part.tolist()) for part in np.split(example.tokens, edges))


def said(*turns_, **about):
    messages = tuple(Message(role, content) for role, content in turns_)
    return dataclasses.replace(FOUR, messages=messages, **about)


def weighted(row, *weights):
    messages = tuple(
        dataclasses.replace(message, weight=weight)
        for message, weight in zip(row.messages, weights, strict=True)
    )
    return dataclasses.replace(row, messages=messages)


def test_each_answer_is_an_example_where_a_template_strips_earlier_thoughts():
    tokenizer = chatml(unmarked(THINKING_MARKED))
    row = encoded(THOUGHTS, tokenizer)
    assert (row.status, row.remarks) == ("kept", ("answers_apart",))
    assert [parts(example, tokenizer)[1] for example in row.examples] == [
        "<think>easy</think>2<|im_end|>",
        "<think>hm</think>4<|im_end|>",
        "<think>so</think>6<|im_end|>",
    ]
    for i, example in enumerate(row.examples):
        until = dataclasses.replace(THOUGHTS, messages=THOUGHTS.messages[: 2 * i + 2])
        # As the model will see it: earlier thoughts are gone, its own is not.
        theirs = tokenizer.apply_chat_template(turns(until))["input_ids"]
        assert example.tokens.tolist() == theirs
        prompt = prompt_tokens(until, tokenizer)
        assert int(example.targets.argmax()) == len(prompt)
        assert example.tokens[: len(prompt)].tolist() == prompt


def test_a_separate_answer_begins_with_the_tokens_that_generation_sees():
    # The first answer begins in the middle of a token of the whole text, and nothing rewrites it.
    row = conversation("Code?", "\n\n    return x", "b?", "<think>t</think>c", "d?", "e")
    tokenizer = chatml(unmarked(THINKING_MARKED))
    examples = encoded(row, tokenizer).examples
    assert len(examples) == 3
    for i, example in enumerate(examples):
        prompt = prompt_tokens(
            dataclasses.replace(row, messages=row.messages[: 2 * i + 2]), tokenizer
        )
        assert example.tokens[: len(prompt)].tolist() == prompt
        assert int(example.targets.argmax()) == len(prompt)


def test_marks_keep_a_rewritten_row_whole_and_equal_to_transformers():
    tokenizer = chatml(THINKING_MARKED)
    row = encoded(THOUGHTS, tokenizer)
    theirs = tokenizer.apply_chat_template(
        turns(THOUGHTS), return_dict=True, return_assistant_tokens_mask=True
    )
    (example,) = row.examples
    assert row.remarks == ()
    assert example.tokens.tolist() == theirs["input_ids"]
    assert example.targets.astype(int).tolist() == theirs["assistant_masks"]


MARKED = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "trimming": TRIMMING,
    "thinking": THINKING_MARKED,
}


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("talk", [("  Sky? \n", " <b>Blue.\n ", "\tGrass? ", "\n\nGreen! 漢 ")])
def test_targets_are_what_transformers_marks_with_white_space_at_the_borders(name, talk):
    specials = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|eot_id|>", "<end_of_turn>",
                "<start_of_turn>", "<|start_header_id|>", "<|end_header_id|>"]  # fmt: skip
    tokenizer = build(MARKED[name], specials, bos="<s>", eos="</s>")
    row = conversation(*talk)
    (text,), (marks,) = render_jinja_template(
        [turns(row)],
        chat_template=MARKED[name],
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    (example,) = encoded(row, tokenizer).examples
    assert tokenizer.decode(example.tokens.tolist()) == text
    # Their tokens may reach over the border of a mark, here e.g. "\n\n"; ours never do.
    assert parts(example, tokenizer)[1::2] == tuple(text[start:end] for start, end in marks)


def test_answers_that_a_template_merges_are_one_answer():
    tokenizer = chatml(MERGING)
    row = encoded(said(("user", "a"), ("assistant", "b"), ("assistant", "c")), tokenizer)
    (example,) = row.examples
    assert parts(example, tokenizer) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", "bc<|im_end|>", "\n",
    )  # fmt: skip
    merged = said(
        ("user", "x"), ("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d"),
        ("assistant", "e"),
    )  # fmt: skip
    row = encoded(merged, tokenizer)
    assert [parts(example, tokenizer)[1] for example in row.examples] == [
        "bc<|im_end|>", "e<|im_end|>",
    ]  # fmt: skip
    assert parts(row.examples[0], tokenizer)[0].startswith("<|im_start|>user\nxa<|im_end|>")
    (last,) = encoded(merged, tokenizer, train_on="last").examples
    assert parts(last, tokenizer)[1] == "e<|im_end|>"
    doubtful = weighted(merged, 1, 1, 0, 1, 1, 1)
    assert fault(doubtful, tokenizer).code == "mask_in_doubt"


def test_a_prompt_that_the_answer_does_not_continue_is_in_doubt_with_both_texts():
    template = unmarked(CHATML).replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    code, sentence = fault(conversation("Sky?", "Blue."), chatml(template))
    assert code == "mask_in_doubt"
    assert "assistant\\n<think>' became" in sentence
    assert "assistant\\nBlue.<|im_end|>" in sentence


@pytest.mark.parametrize("template", [unmarked(CHATML), unmarked(THINKING_MARKED)])
def test_train_on_last_and_all(template):
    tokenizer = chatml(template)
    whole = tokenizer.apply_chat_template(turns(THOUGHTS))["input_ids"]
    (last,) = encoded(THOUGHTS, tokenizer, train_on="last").examples
    assert last.tokens.tolist() == whole
    assert parts(last, tokenizer)[1:] == ("<think>so</think>6<|im_end|>", "\n")
    (everything,) = encoded(THOUGHTS, tokenizer, train_on="all").examples
    assert everything.tokens.tolist() == whole
    assert everything.targets.tolist() == [False] + [True] * (len(whole) - 1)


@pytest.mark.parametrize("template", [CHATML, unmarked(CHATML), THINKING_MARKED])
def test_weights_keep_turns_out_of_the_loss(template):
    tokenizer = chatml(template)
    row = weighted(THOUGHTS, 1, 0, 1, 1, 1, 0)
    (example,) = encoded(row, tokenizer).examples
    spans = parts(example, tokenizer)
    assert len(spans) == 3
    assert spans[1].endswith("4<|im_end|>")
    none = weighted(THOUGHTS, 1, 0, 1, 0, 1, 0)
    assert fault(none, tokenizer) == (
        "no_target", "all assistant turns have weight 0, so nothing is to be learned",
    )  # fmt: skip
    assert fault(row, tokenizer, train_on="last").code == "no_target"


def test_weights_of_separate_examples_and_of_all_tokens():
    stripping = chatml(unmarked(THINKING_MARKED))
    row = weighted(THOUGHTS, 1, 0, 1, 1, 1, 0)
    (example,) = encoded(row, stripping).examples
    assert parts(example, stripping)[1] == "<think>hm</think>4<|im_end|>"
    assert fault(row, stripping, train_on="all").code == "mask_in_doubt"
    plain = chatml(unmarked(CHATML))
    (example,) = encoded(row, plain, train_on="all").examples
    assert [text for text in parts(example, plain)[2::2] if "think" in text] == [
        "<think>easy</think>2<|im_end|>", "<think>so</think>6<|im_end|>",
    ]  # fmt: skip


CALL = {"id": "abcdefghi", "type": "function",
        "function": {"name": "clock", "arguments": {"place": "Köln"}}}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
CALLING = Conversation(
    (
        Message("user", "Time?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "12:00", name="clock", tool_call_id="abcdefghi"),
        Message("tool", "UTC", name="clock", tool_call_id="abcdefghi"),
        Message("assistant", "Noon."),
    ),
    None,
    None,
    FOUR.record,
    tools=(TOOL,),
)


def test_tool_calls_are_answers_and_results_are_not():
    tokenizer = chatml(TOOLS)
    (example,) = encoded(CALLING, tokenizer).examples
    prompt, call, results, answer, end = parts(example, tokenizer)
    assert prompt.startswith("<|im_start|>system\n# Tools\n{")
    assert call == (
        '\n<tool_call>\n{"name": "clock", "arguments": {"place": "Köln"}}\n</tool_call><|im_end|>'
    )
    assert results == (
        "\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response>\n<tool_response>\nUTC\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert (answer, end) == ("Noon.<|im_end|>", "\n")
    until = prompt_tokens(CALLING, tokenizer)
    assert example.tokens[: len(until)].tolist() == until


@pytest.mark.parametrize("row", [CALLING, dataclasses.replace(FOUR, tools=(TOOL,))])
def test_a_template_that_leaves_tools_out_is_refused(row):
    code, sentence = fault(row, chatml(unmarked(CHATML)))
    assert code == "template_refused"
    assert "leaves out the tool 'clock'" in sentence
