"""System text in templates that take none; Mistral's prompts against mistral-common's."""

import json
import os
from pathlib import Path

import pytest

from mlx_ft.data.chat import prompt_tokens, remark_notes
from mlx_ft.data.rows import Conversation, Message
from mlx_ft.data.template import install

from .conftest import (
    GEMMA,
    MISTRAL,
    SYSTEM_AT_THE_END,
    VECTORS,
    build,
    chatml,
    conversation,
    sentencepiece,
    unmarked,
)
from .test_mask import FOUR, encoded, fault, parts, said


def mistral(template, specials=("[INST]", "[/INST]")):
    return build(template, list(specials), bos="<s>", eos="</s>", pieces=True)


SYSTEM = conversation("Sky?", "Blue.", "Grass?", "Green.", system="Short.")


@pytest.mark.parametrize("template", [MISTRAL, SYSTEM_AT_THE_END, "named"])
def test_mistrals_system_text_stands_in_the_last_user_turn(template):
    tokenizer = mistral(None if template == "named" else unmarked(template))
    if template == "named":
        install(tokenizer, "mistral")
    row = encoded(SYSTEM, tokenizer)
    assert "answers_apart" in row.remarks
    assert ("system_folded" in row.remarks) == (template != "named")
    texts = [tokenizer.decode(example.tokens.tolist()) for example in row.examples]
    assert texts == [
        "<s>[INST] Short.\n\nSky?[/INST] Blue.</s>",
        "<s>[INST] Sky?[/INST] Blue.</s>[INST] Short.\n\nGrass?[/INST] Green.</s>",
    ]
    assert [tokenizer.decode(e.tokens[e.targets]).strip() for e in row.examples] == [
        "Blue.</s>", "Green.</s>",
    ]  # fmt: skip
    if template != "named":
        (note,) = remark_notes({"system_folded": 7}, tokenizer)
        assert note.startswith("7 rows: the chat template takes no system turn")
        assert "the last user turn" in note


REFUSING = GEMMA.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}",
)
DROPPING = unmarked(GEMMA).replace(
    "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
)


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_elsewhere_the_system_text_stands_in_the_first_user_turn(template):
    specials = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = build(template, specials, bos="<bos>", eos="<eos>")
    row = encoded(SYSTEM, tokenizer)
    (example,) = row.examples
    assert row.remarks == ("system_folded",)
    assert parts(example, tokenizer)[0] == (
        "<bos><start_of_turn>user\nShort.\n\nSky?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert parts(example, tokenizer)[1::2] == ("Blue.<end_of_turn>", "Green.<end_of_turn>")
    alone = said(("system", "Short."), ("assistant", "Hello."))
    assert fault(alone, tokenizer).code == "template_refused"
    assert example.system == "Short."


def test_a_template_with_system_turns_is_left_alone():
    row = encoded(SYSTEM, chatml())
    assert row.remarks == ()
    assert parts(row.examples[0], chatml())[0].startswith("<|im_start|>system\nShort.<|im_end|>")


# Made by tests/peers/mistral_vectors.py; .ci/peers.sh makes them anew, with the whole vocabulary.
FILE = Path(os.environ.get("MLX_FT_MISTRAL_VECTORS", VECTORS))
MADE = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def v3():
    tokenizer = sentencepiece(MADE["pieces"], [piece for i, piece, _ in MADE["pieces"] if i < 10])
    assert tokenizer.encode("a") == [1, 1032]
    install(tokenizer, "mistral")
    return tokenizer


@pytest.mark.parametrize("name", MADE["conversations"])
def test_ids_are_those_of_mistral_common(name, v3):
    made = MADE["conversations"][name]
    messages = tuple(
        Message(
            turn["role"],
            turn["content"],
            tool_calls=tuple(turn.get("tool_calls", ())),
            name=turn.get("name"),
            tool_call_id=turn.get("tool_call_id"),
        )
        for turn in made["messages"]
    )
    tools = tuple(made["tools"])
    assert made["answers"]
    for answer in made["answers"]:
        until = Conversation(messages[: answer["turn"] + 1], None, None, FOUR.record, tools=tools)
        assert prompt_tokens(until, v3) == answer["prompt"]
        example = encoded(until, v3, size=9999).examples[-1]
        assert example.tokens.tolist() == answer["prompt"] + answer["answer"]
        assert not example.targets[: len(answer["prompt"])][-1]
        assert example.targets[len(answer["prompt"]) :].all()
    # All answers of the row are learned: in one example, or each in its own.
    row = encoded(Conversation(messages, None, None, FOUR.record, tools=tools), v3, size=9999)
    learned = sum(int(example.targets.sum()) for example in row.examples)
    assert learned == sum(len(answer["answer"]) for answer in made["answers"])


def test_the_known_ids(v3):
    """Of the model's authors: one BOS, no space token between it and [INST]."""
    row = conversation("What is 2+2?", "4")
    tokens = [1, 3, 2592, 1117, 29473, 29518, 29574, 29518, 29572, 4, 29473, 29549, 2]
    assert encoded(row, v3).examples[0].tokens.tolist() == tokens


# Of mistral-common 1.13.1, in its mode for training.
JOINED = [
    (
        (("user", "What is 2+2?"), ("user", "Sure?"), ("assistant", "4")),
        [1, 3, 2592, 1117, 29473, 29518, 29574, 29518, 29572, 781, 781, 22867, 29572, 4, 29473,
         29549, 2],
        3,
    ),
    (
        (("system", "Be brief.\nBe kind."), ("user", "What is 2+2?"), ("user", " a"),
         ("assistant", "4"), ("user", "Sure?"), ("user", "And 3+3?"), ("user", "c "),
         ("assistant", "6")),
        [1, 3, 2592, 1117, 29473, 29518, 29574, 29518, 29572, 781, 781, 1032, 4, 29473, 29549, 2,
         3, 2507, 7585, 29491, 781, 4342, 2880, 29491, 781, 781, 22867, 29572, 781, 781, 3235,
         29473, 29538, 29574, 29538, 29572, 781, 781, 29485, 29473, 4, 29473, 29552, 2],
        3,
    ),
    (
        (("user", "What is 2+2?"), ("assistant", "4 "), ("assistant", " Yes, 6. "),
         ("user", "Sure?"), ("user", "And 3+3?"), ("assistant", "6")),
        [1, 3, 2592, 1117, 29473, 29518, 29574, 29518, 29572, 4, 29473, 29549, 29473, 781, 781,
         6360, 29493, 29473, 29552, 29491, 2, 3, 13643, 29572, 781, 781, 3235, 29473, 29538, 29574,
         29538, 29572, 4, 29473, 29552, 2],
        3,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("turns", "tokens", "learned"), JOINED)
def test_turns_of_one_speaker_are_joined_as_mistral_common_does(turns, tokens, learned, v3):
    row = encoded(said(*turns), v3)
    last = row.examples[-1]
    assert last.tokens.tolist() == tokens
    assert last.targets[-learned:].all()
    assert not last.targets[-learned - 1]
    if len(row.examples) > 1:  # the answer before: its own tokens, up to its stop token
        first = row.examples[0]
        (stop,) = [i for i, token in enumerate(tokens[:-1]) if token == 2]
        answer = first.tokens[first.targets].tolist()
        assert answer == tokens[stop + 1 - len(answer) : stop + 1]


CALL = {"id": "abcDEF123", "type": "function", "function": {"name": "clock", "arguments": {}}}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Message("assistant", "Let me see.", tool_calls=(CALL,))], "no text beside a tool call"),
        (
            [Message("assistant", "Let me see."), Message("assistant", "", tool_calls=(CALL,))],
            "parallel calls into one turn",
        ),
        (
            [Message("assistant", "", tool_calls=(CALL,)), Message("assistant", "Noon.")],
            "answered by a tool turn",
        ),
    ],
)
def test_what_mistral_common_refuses_is_refused(messages, reason, v3):
    row = said(("user", "Sure?"))
    row = Conversation((*row.messages, *messages), None, None, row.record)
    code, sentence = fault(row, v3)
    assert (code, reason in sentence) == ("template_refused", True)
