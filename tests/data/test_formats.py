from pathlib import Path

import pytest

from mlx_ft.data.formats import Message, detect, parse, unused_keys
from mlx_ft.data.load import Record
from mlx_ft.errors import DataError

USER = {"role": "user", "content": "Sky?"}
ANSWER = {"role": "assistant", "content": "Blue."}


def record(**fields):
    return Record(fields, Path("rows.jsonl"), 7)


def faults(format="auto", **fields):
    with pytest.raises(DataError) as error:
        parse(record(**fields), format)
    return list(error.value.faults)


def test_each_format_becomes_a_conversation():
    turns = (Message("user", "Sky?"), Message("assistant", "Blue."))
    assert parse(record(messages=[USER, ANSWER])).messages == turns
    assert parse(record(prompt="Sky?", completion="Blue.")).messages == turns
    raw = parse(record(text="Once."))
    assert (raw.messages, raw.text) == ((), "Once.")
    assert raw.record.where == "rows.jsonl:7"


def test_detection_goes_by_keys_and_an_explicit_format_overrides():
    both = {"text": "Once.", "prompt": "Sky?", "completion": "Blue."}
    assert detect(both) == "prompt_completion"
    assert detect({"messages": [], "text": ""}) == "messages"
    assert detect({"prompt": "Sky?"}) is None
    assert parse(record(**both), "text").text == "Once."
    assert unused_keys({**both, "id": 3, "label": "a"}) == ["text", "id"]
    assert unused_keys({**both, "id": 3}, "text") == ["prompt", "completion", "id"]


@pytest.mark.parametrize(
    ("given", "label"), [("good", "good"), (True, "true"), (False, "false"), (3, "3"), (None, None)]
)
def test_labels(given, label):
    assert parse(record(text="a", label=given)).label == label


def test_content_is_kept_as_it_is():
    assert parse(record(prompt=" a\n", completion="\n b ")).messages[1].content == "\n b "


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"q": "a", "a": "b"},
            [
                "no known format: found the keys 'q', 'a'; expected one of "
                "'messages'; 'prompt' with 'completion'; 'text'"
            ],
        ),
        (
            {},
            [
                "no known format: found the keys none; expected one of "
                "'messages'; 'prompt' with 'completion'; 'text'"
            ],
        ),
        ({"text": 3}, ["text is not a string but a number"]),
        ({"text": " \n"}, ["text is empty"]),
        ({"text": "a\ud800"}, ["text holds half of a surrogate pair, which is no character"]),
        (
            {"text": "a", "label": [1]},
            ["label is an array; expected a string, a whole number, true or false"],
        ),
        (
            {"prompt": None, "completion": ""},
            ["prompt is not a string but missing or null", "completion is empty"],
        ),
        ({"messages": "hi"}, ["'messages' is not a list of turns"]),
        ({"messages": []}, ["'messages' is empty"]),
        ({"messages": [USER]}, ["no assistant turn: nothing to learn from"]),
        (
            {"messages": [ANSWER, USER]},
            ["starts with an assistant turn: there is nothing that it answers"],
        ),
        (
            {"messages": [USER, 3, ANSWER]},
            ["messages[1] is not an object with 'role' and 'content'"],
        ),
        (
            {"messages": [{"role": "bot", "content": "x"}, ANSWER]},
            ["messages[0]: unknown role 'bot'; expected system, user or assistant"],
        ),
        (
            {"messages": [{"role": ["user"], "content": "x"}, ANSWER]},
            ["messages[0]: unknown role ['user']; expected system, user or assistant"],
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
            ["messages[1].content is not a string but an array"],
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
            [
                "messages[1]: the key 'tool_calls' is not supported; remove it",
                "messages[1].content is not a string but missing or null",
            ],
        ),
        (
            {"messages": [USER, {**ANSWER, "weight": 0}]},
            ["messages[1]: the key 'weight' is not supported; remove it"],
        ),
        (
            {"messages": [USER, ANSWER], "tools": [{}]},
            ["the key 'tools' is not supported; remove it"],
        ),
    ],
)
def test_each_fault_is_a_sentence_and_all_are_given(fields, expected):
    assert faults(**fields) == expected


def test_an_explicit_format_names_what_it_needs():
    assert faults("prompt_completion", prompt="a") == [
        "data.format=prompt_completion needs 'completion'; found the keys 'prompt'"
    ]
    assert faults("messages", text="a") == [
        "data.format=messages needs 'messages'; found the keys 'text'"
    ]
