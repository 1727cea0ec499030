import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ft.data.formats import (
    FORMATS,
    Conversation,
    FormatOptions,
    Message,
    detect,
    fingerprint,
    parse,
    unused_keys,
)
from mlx_ft.data.rows import FAULTS, Fault, Record, RowError
from mlx_ft.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
USER = {"role": "user", "content": "Sky?"}
ANSWER = {"role": "assistant", "content": "Blue."}
TURNS = (Message("user", "Sky?"), Message("assistant", "Blue."))
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"up": True}}}
CALLER = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": "It is blue.", "tool_call_id": "c1"}


def record(**fields):
    return Record(fields, Path("rows.jsonl"), 7)


def read(format="auto", options=None, /, **fields):
    return parse(record(**fields), format, options or FormatOptions())


def faults(format="auto", options=None, /, **fields):
    with pytest.raises(RowError) as error:
        read(format, options, **fields)
    assert list(error.value.faults) == [fault.sentence for fault in error.value.found]
    return list(error.value.found)


def said(conversation):
    return [(message.role, message.content) for message in conversation.messages]


# The page


def table(*columns):
    cells = r"\| +".join([rf"(?:`?{column}`?) *" for column in columns])
    return re.findall(rf"^\| *{cells}\|$", PAGE, re.MULTILINE)


EXAMPLES = table(r"(\w+)", r"([^|]*?)", r"(\{.*\})")
ALIASES = table(r"(\{.*\})", r"(\w+)")
SPOKEN = {
    "messages": [("system", "Be brief."), ("user", "Sky?"), ("assistant", "Blue.")],
    "conversations": [("system", "Be brief."), ("user", "Sky?"), ("assistant", "Blue.")],
    "alpaca": [
        ("user", "Hello?"), ("assistant", "Hello."),
        ("user", "Translate.\n\nbleu"), ("assistant", "blue"),
    ],
    "prompt_completion": [("user", "Sky?"), ("assistant", "Blue.")],
    "text": [],
    "preference": [("user", "Sky?"), ("assistant", "Blue.")],
    "wikisql": [
        ("user", "Columns of the table: Name | Age\n\nHow old is Ann?"),
        ("assistant", "SELECT Age FROM table WHERE Name = Ann"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("format", "_", "example"), EXAMPLES)
def test_each_format_of_the_page_is_detected_and_read(format, _, example):
    fields = json.loads(example)
    assert detect(fields) == format
    for name in ("auto", format):
        conversation = read(name, **fields)
        assert said(conversation) == SPOKEN[format]
        assert conversation.format == format
    assert conversation.record == record(**fields)
    assert unused_keys(fields) == unused_keys(fields, format) == []
    assert conversation.text == ("The sky is blue." if format == "text" else None)
    assert [m.content for m in conversation.rejected] == ["Green."] * (format == "preference")


def test_the_page_shows_every_format():
    assert sorted(name for name, _, _ in EXAMPLES) == sorted(FORMATS)
    assert len(ALIASES) == 11


@pytest.mark.parametrize(("example", "format"), ALIASES)
def test_other_names_of_the_page(example, format):
    fields = json.loads(example)
    conversation = read(**fields)
    assert conversation.format == format == detect(fields)
    asked, answer = conversation.messages[-2:]
    assert (answer.role, answer.content) == ("assistant", "Blue.")
    assert asked.content == ("Which colour?\n\nThe sky is blue." if "context" in fields else "Sky?")
    assert (conversation.messages[0].role == "system") == ("system_prompt" in fields)
    assert unused_keys(fields) == []


def test_the_call_of_the_page():
    [example] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    conversation = read(**json.loads(example))
    call = {"id": "c1", "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Oslo"}}}  # fmt: skip
    assert conversation.messages[1] == Message("assistant", "", tool_calls=(call,))
    assert conversation.messages[2] == Message("tool", "4 degrees", tool_call_id="c1")
    assert conversation.tools[0]["function"]["name"] == "weather"


# What is read


def test_content_is_kept_as_it_is():
    assert read(prompt=" a\n", completion="\n b ").messages[1].content == "\n b "


def test_parts_of_a_content_are_joined():
    parts = [{"type": "text", "text": "Bl"}, {"type": "text", "text": "ue."}]
    assert read(messages=[USER, {"role": "assistant", "content": parts}]).messages == TURNS


def test_roles_of_both_chats():
    turns = [("developer", "a"), ("user", "b"), ("assistant", "f(x)"), ("function", "c")]
    messages = [{"role": role, "content": text} for role, text in turns]
    roles = [message.role for message in read(messages=messages).messages]
    assert roles == ["system", "user", "assistant", "tool"]
    spoken = ["human", "gpt", "user", "chatgpt", "prompter", "bard", "human", "bing"]
    chat = [{"from": name, "value": "a"} for name in spoken]
    roles = [message.role for message in read(conversations=chat).messages]
    assert roles == ["user", "assistant"] * 4
    assert read(conversations=[USER, ANSWER]).messages == TURNS


def test_names_of_a_users_own():
    options = FormatOptions("talk", "who", "what", {"Doctor": "assistant", "patient": "user"})
    talk = [{"who": "patient", "what": "Sky?"}, {"who": "Doctor", "what": "Blue."}]
    conversation = read("auto", options, talk=talk)
    assert (conversation.messages, conversation.format) == (TURNS, "conversations")
    assert unused_keys({"talk": talk, "id": 1}, "auto", options) == ["id"]
    assert detect({"talk": talk}, options) == "conversations"
    assert detect({"talk": talk}) is None
    turns = [{**USER, "role": "patient"}, {**ANSWER, "role": "Doctor"}]
    assert read("auto", options, messages=turns).messages == TURNS
    with pytest.raises(DataError, match="roles") as error:
        FormatOptions(roles={"Doctor": "asistant"})
    assert "'Doctor' is 'asistant'" in error.value.faults[0]


@pytest.mark.parametrize("given", [0, False, 0.0])
def test_weights(given):
    turns = [{**USER, "weight": 0}, {**ANSWER, "weight": given}, USER, {**ANSWER, "weight": 1}]
    weights = [message.weight for message in read(messages=turns).messages]
    assert weights == [1, 0, 1, 1]
    chat = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": given}]
    assert [message.weight for message in read(conversations=chat).messages] == [1, 0]


def test_answers_within_a_prompt_carry_no_loss_unless_they_say_so():
    prompt = [USER, ANSWER, USER]
    assert [m.weight for m in read(prompt=prompt, completion=[ANSWER]).messages] == [1, 0, 1, 1]
    prompt[1] = {**ANSWER, "weight": 1}
    assert [m.weight for m in read(prompt=prompt, completion="x").messages] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {**CALL, "function": {"name": "look", "arguments": '{"up": true}'}},
        {"id": "c1", "name": "look", "arguments": {"up": True}},
        {**CALL, "type": None} | {"type": "function"},
    ],
)
def test_calls_become_one_form(call):
    turns = [USER, {**CALLER, "tool_calls": [call]}, TOLD, ANSWER]
    conversation = read(messages=turns)
    assert conversation.messages[1] == Message("assistant", "", tool_calls=(CALL,))
    assert conversation.messages[2].tool_call_id == "c1"


def test_older_calls_and_those_of_sharegpt():
    bare = {"type": "function", "function": CALL["function"]}
    turns = [USER, {"role": "assistant", "function_call": CALL["function"]}, ANSWER]
    assert read(messages=turns).messages[1].tool_calls == (bare,)
    written = [json.dumps(CALL["function"]), json.dumps([CALL, CALL])]
    for text, calls in zip(written, [(bare,), (CALL, CALL)], strict=True):
        chat = [("human", "a"), ("function_call", text), ("observation", "b"), ("gpt", "c")]
        chat = [{"from": name, "value": value} for name, value in chat]
        messages = read(conversations=chat).messages
        assert messages[1] == Message("assistant", "", tool_calls=calls)
        assert [m.role for m in messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("key", ["tools", "functions"])
@pytest.mark.parametrize("dumped", [False, True])
def test_tools(key, dumped):
    function = {"name": "look", "parameters": {"type": "object"}}
    for tool in ({"type": "function", "function": function}, function):
        given = json.dumps([tool]) if dumped else [tool]
        conversation = read(messages=[USER, ANSWER], **{key: given})
        assert conversation.tools == ({"type": "function", "function": function},)
    for nothing in (None, "", []):
        assert read(prompt="a", completion="b", **{key: nothing}).tools == ()


def test_a_function_may_take_nothing():
    call = {"type": "function", "function": {"name": "wait"}}
    [found] = read(messages=[USER, {**CALLER, "tool_calls": [call]}]).messages[1].tool_calls
    assert found["function"] == {"name": "wait", "arguments": {}}


def test_nulls_of_a_table_are_not_there():
    null = dict.fromkeys(("weight", "tool_calls", "name", "tool_call_id", "function_call"))
    fields = {"messages": [USER | null, ANSWER | null], "tools": None, "label": None}
    assert read(**fields).messages == TURNS
    assert unused_keys(fields) == []
    mixed = {"messages": None, "text": "Once.", "prompt": None, "completion": ""}
    assert read(**mixed).text == "Once."


def test_a_system_text_of_the_row():
    system = Message("system", "Be brief.")
    for fields in (
        {"messages": [USER, ANSWER]},
        {"conversations": [USER, ANSWER]},
        {"prompt": "Sky?", "completion": "Blue."},
        {"instruction": "Sky?", "output": "Blue."},
        {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]},
    ):
        assert read(**fields, system="Be brief.").messages == (system, *TURNS)
    assert read(prompt="Sky?", completion="Blue.", system="").messages == TURNS


def test_alpaca_without_one_of_its_halves():
    assert read(instruction="Sky?", input="", output="Blue.").messages == TURNS
    assert read(instruction="", input="Sky?", output="Blue.").messages == TURNS


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "b", "chosen": "c", "rejected": "d"},
        {"prompt": [{"role": "user", "content": "b"}], "chosen": "c", "rejected": "d"},
        {"prompt": "b", "chosen": ["b", "c"], "rejected": ["b", "d"]},
        {"prompt": [["b"]], "chosen": [None, "c"], "rejected": [None, "d"]},
        {"chosen": ["b", "c"], "rejected": ["b", "d"]},
        {"chosen": "\n\nHuman: b\n\nAssistant: c", "rejected": "Human: b\n\nAssistant: d"},
        {"chosen": ["b", "c"], "rejected": ["b", "d"], "messages": ["b", "c"]},
    ],
)
def test_preference_pairs(fields):
    def turns(texts):
        made = zip(("user", "assistant"), texts, strict=True)
        return [{"role": role, "content": text} for role, text in made if text]

    for key in ("chosen", "rejected", "messages"):
        if isinstance(fields.get(key), list):
            fields = {**fields, key: turns(fields[key])}
    if fields.get("prompt") == [["b"]]:
        fields = {**fields, "prompt": [{"role": "user", "content": "b"}]}
    conversation = read(**fields)
    assert conversation.format == "preference"
    assert conversation.messages == (Message("user", "b"), Message("assistant", "c"))
    assert conversation.rejected == (Message("assistant", "d"),)


def test_the_prompt_of_a_pair_is_all_that_both_begin_with():
    shared = [{"role": "system", "content": "s"}, USER, ANSWER, {"role": "user", "content": "b"}]
    answers = [[{"role": "assistant", "content": text}] for text in "cd"]
    conversation = read(chosen=shared + answers[0], rejected=shared + answers[1])
    assert [m.content for m in conversation.messages] == ["s", "Sky?", "Blue.", "b", "c"]
    assert [m.weight for m in conversation.messages] == [1, 1, 0, 1, 1]
    assert [m.content for m in conversation.rejected] == ["d"]
    written = [f"\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: {x}" for x in "de"]
    conversation = read(chosen=written[0], rejected=written[1])
    assert [m.content for m in conversation.messages] == list("abcd")


# Labels


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("given", "label", "flat"),
    [
        ("desirable", "desirable", None),
        (" Undesirable", "undesirable", None),
        (True, "desirable", None),
        (False, "undesirable", None),
        ("FALSE", "undesirable", None),
        (1, "desirable", "1"),
        (0.0, "undesirable", "0"),
        ("1", "desirable", "1"),
        ("good", "desirable", "good"),
        ("bad", "undesirable", "bad"),
        ("thumbs_up", "desirable", "thumbs_up"),
        ("Thumbs-Down", "undesirable", "Thumbs-Down"),
        ("👎", "undesirable", "👎"),
        ("sports", "sports", "sports"),
        (3, "3", "3"),
        ("", None, None),
        (None, None, None),
    ],
)
def test_labels(given, label, flat, chat):
    rows = [{"messages": [USER, ANSWER]}, {"conversations": [USER, ANSWER]}]
    if not chat:
        rows = [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}]
        label = flat or label
    for fields in rows:
        assert read(**fields, label=given).label == label


@pytest.mark.parametrize(("given", "label"), [("good", "good"), (True, "true"), (0, "0")])
def test_labels_of_texts_are_classes(given, label):
    assert read(text="a", label=given).label == label
    assert read(prompt="a", chosen="b", rejected="c", label=given).label == label


# Several formats in one row


def test_detection_goes_by_keys_and_an_explicit_format_overrides():
    both = {"text": "Once.", "prompt": "Sky?", "completion": "Blue."}
    assert detect(both) is None
    assert read("text", **both).text == "Once."
    assert read("prompt_completion", **both).messages == TURNS
    assert unused_keys({**both, "id": 3, "label": "a"}, "text") == ["prompt", "completion", "id"]
    assert read("sharegpt", conversations=[USER, ANSWER]).format == "conversations"
    assert detect({"prompt": "Sky?"}) is None


@pytest.mark.parametrize(
    ("fields", "format"),
    [
        # Alpaca's own file: its text renders the other columns.
        ({"instruction": "a", "input": "", "output": "b", "text": "### a\n### b"}, "alpaca"),
        ({"messages": [USER, ANSWER], "text": "<user> Sky? <assistant> Blue."}, "messages"),
        ({"conversations": [USER, ANSWER], "instruction": "Sky?", "response": "Blue."},
         "conversations"),
        ({"messages": [USER, ANSWER], "prompt": "Sky?", "prompt_id": "x"}, "messages"),
        ({"prompt": "a", "completion": "b", "query": "", "answer": None}, "prompt_completion"),
        ({"prompt": "a", "completion": "b", "question": " a "}, "prompt_completion"),
        ({"instruction": "a", "output": "b", "input": "c", "context": None}, "alpaca"),
    ],
)  # fmt: skip
def test_what_is_said_twice_is_not_ambiguous(fields, format):
    assert detect(fields) == read(**fields).format == format


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"messages": [USER, ANSWER], "text": "Once."}, ("messages", "text")),
        ({"messages": [USER, ANSWER], "conversations": [USER, {**ANSWER, "content": "Red."}]},
         ("messages", "conversations")),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "response": "d"},
         ("preference", "prompt_completion")),
        ({"instruction": "a", "output": "b", "text": "c"}, ("alpaca", "text")),
        ({"prompt": "a", "question": "b", "answer": "c"}, ("question", "prompt_completion")),
        ({"question": "a", "answer": "b", "response": "c"}, ("answer", "prompt_completion")),
        ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, ("context", "alpaca")),
    ],
)  # fmt: skip
def test_a_row_that_says_two_things_is_a_fault(fields, names):
    [fault] = faults(**fields)
    assert fault.code == "no_format"
    assert "set data.format" in fault.sentence
    assert all(name in fault.sentence for name in names)
    assert detect(fields) is None
    assert read(names[-1] if names[-1] in FORMATS else names[0], **fields)


# Faults

BAD = {
    "no known key": ({"q": "a", "a": "b"}, ["no_format"]),
    "no key": ({}, ["no_format"]),
    "a misspelt key": ({"mesages": [USER, ANSWER]}, ["no_format"]),
    "documents": ({"messages": [USER, ANSWER], "documents": [{"title": "a"}]}, ["no_format"]),
    "text is a number": ({"text": 3}, ["wrong_type"]),
    "text is blank": ({"text": " \n"}, ["empty_turn"]),
    "both sides": ({"prompt": None, "completion": ""}, ["wrong_type", "empty_turn"]),
    "prompt is an object": ({"prompt": {}, "completion": "a"}, ["wrong_type"]),
    "turns are a text": ({"messages": "hi"}, ["wrong_type"]),
    "no turns": ({"messages": []}, ["no_assistant"]),
    "a turn is a number": ({"messages": [USER, 3, ANSWER]}, ["wrong_type"]),
    "content is missing": ({"messages": [USER, {"role": "assistant"}]}, ["wrong_type"]),
    "content is a number": ({"messages": [USER, {**ANSWER, "content": 1.5}]}, ["wrong_type"]),
    "an image": (
        {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]},
        ["wrong_type"],
    ),
    "no parts": ({"messages": [{**USER, "content": []}, ANSWER]}, ["empty_turn"]),
    "a blank part": (
        {"messages": [{**USER, "content": [{"type": "text", "text": " "}]}, ANSWER]},
        ["empty_turn"],
    ),
    "unknown role": ({"messages": [{"role": "bot", "content": "x"}, ANSWER]}, ["unknown_role"]),
    "role of another case": ({"messages": [{**USER, "role": "User"}, ANSWER]}, ["unknown_role"]),
    "role is a list": ({"messages": [{**USER, "role": ["user"]}, ANSWER]}, ["wrong_type"]),
    "unknown speaker": (
        {"conversations": [{"from": "alien", "value": "x"}, ANSWER]},
        ["unknown_role"],
    ),
    "value is missing": ({"conversations": [{"from": "human"}, ANSWER]}, ["wrong_type"]),
    "empty turn": ({"messages": [USER, {**ANSWER, "content": "\t"}]}, ["empty_turn"]),
    "system in the middle": (
        {"messages": [USER, {"role": "system", "content": "a"}, ANSWER]},
        ["role_order"],
    ),
    "two systems": (
        {"messages": [*[{"role": "system", "content": "a"}] * 2, USER, ANSWER]},
        ["role_order"],
    ),
    "two system texts": (
        {"messages": [{"role": "system", "content": "a"}, USER, ANSWER], "system": "b"},
        ["role_order"],
    ),
    "begins with an answer": ({"messages": [ANSWER, USER]}, ["role_order"]),
    "an answer to the system": (
        {"messages": [{"role": "system", "content": "a"}, ANSWER]},
        ["role_order"],
    ),
    "a tool without a call": ({"messages": [USER, ANSWER, TOLD]}, ["role_order"]),
    "a tool after the user": ({"messages": [USER, CALLER, USER, TOLD]}, ["role_order"]),
    "no answer": ({"messages": [USER]}, ["no_assistant"]),
    "no answer, two faults": (
        {"messages": [USER, {"role": "system", "content": "a"}]},
        ["no_assistant", "role_order"],
    ),
    "weight 2": ({"messages": [USER, {**ANSWER, "weight": 2}]}, ["weight"]),
    "weight 0.5": ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, ["weight"]),
    "weight is a text": ({"messages": [USER, {**ANSWER, "weight": "1"}]}, ["weight"]),
    "label is a list": ({"text": "a", "label": [1]}, ["label"]),
    "label is a fraction": ({"messages": [USER, ANSWER], "label": 0.5}, ["label"]),
    "misspelt label": ({"messages": [USER, ANSWER], "label": "desireable"}, ["label"]),
    "call of nothing": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
        ["tools"],
    ),
    "calls are an object": ({"messages": [USER, {**CALLER, "tool_calls": CALL}]}, ["tools"]),
    "arguments are no JSON": (
        {"messages": [USER, {**CALLER, "tool_calls": [{"name": "f", "arguments": "{up}"}]}]},
        ["tools"],
    ),
    "arguments are a list": (
        {"messages": [USER, {**CALLER, "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
        ["tools"],
    ),
    "arguments hold NaN": (
        {"messages": [USER, {**CALLER, "tool_calls": [{"name": "f", "arguments": '{"a": NaN}'}]}]},
        ["tools"],
    ),
    "arguments hold half a pair": (
        {"messages": [USER, {**CALLER, "tool_calls": [
            {"name": "f", "arguments": '{"a": "\\ud800"}'}]}]},
        ["lone_surrogate"],
    ),
    "arguments are deep": (
        {"messages": [USER, {**CALLER, "tool_calls": [
            {"name": "f", "arguments": '{"a":' * 5000 + "1" + "}" * 5000}]}]},
        ["nesting"],
    ),
    "arguments are a number": (
        {"messages": [USER, {**CALLER, "tool_calls": [{"name": "f", "arguments": 1}]}]},
        ["tools"],
    ),
    "arguments are null, written": (
        {"messages": [USER, {**CALLER, "tool_calls": [{"name": "f", "arguments": "null"}]}]},
        ["tools"],
    ),
    "a call that is no text": (
        {"conversations": [USER, {"from": "function_call", "value": 3}]},
        ["wrong_type"],
    ),
    "a call of nothing": (
        {"conversations": [USER, {"from": "function_call", "value": "[]"}]},
        ["tools"],
    ),
    "a user's call": ({"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, ["tools"]),
    "an answer to another call": (
        {"messages": [USER, CALLER, {**TOLD, "tool_call_id": "c2"}]},
        ["tools"],
    ),
    "id is a number": (
        {"messages": [USER, CALLER, {**TOLD, "tool_call_id": 1}]},
        ["wrong_type"],
    ),
    "tools are an object": ({"messages": [USER, ANSWER], "tools": {"a": 1}}, ["tools"]),
    "a tool without a name": ({"messages": [USER, ANSWER], "tools": [{}]}, ["tools"]),
    "tools are no JSON": ({"messages": [USER, ANSWER], "tools": "look"}, ["tools"]),
    "tools and functions": (
        {"messages": [USER, ANSWER], "tools": [{"name": "a"}], "functions": [{"name": "b"}]},
        ["tools"],
    ),
    "a call that is a text": (
        {"conversations": [USER, {"from": "function_call", "value": "look"}]},
        ["tools"],
    ),
    "a blank instruction": ({"instruction": " ", "input": "", "output": "a"}, ["empty_turn"]),
    "an instruction of a number": ({"instruction": 1, "output": ""}, ["wrong_type", "empty_turn"]),
    "a history of texts": (
        {"instruction": "a", "output": "b", "history": ["c"]},
        ["wrong_type"],
    ),
    "a history of blanks": (
        {"instruction": "a", "output": "b", "history": [["", "c"]]},
        ["empty_turn"],
    ),
    "the same answers": ({"prompt": "a", "chosen": "b", "rejected": "b"}, ["no_preference"]),
    "answers to different prompts": (
        {"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "Sea?"}, ANSWER]},
        ["no_preference", "no_preference"],
    ),
    "another prompt": (
        {"prompt": "Sea?", "chosen": [USER, ANSWER], "rejected": [USER, CALLER]},
        ["no_preference"],
    ),
    "only one goes on": (
        {"chosen": [USER, ANSWER, ANSWER], "rejected": [USER, ANSWER]},
        ["no_preference"],
    ),
    "answers without a prompt": (
        {"chosen": "a", "rejected": "b"},
        ["role_order", "role_order"],
    ),
    "a pair that begins with an answer": (
        {"prompt": [ANSWER], "chosen": "a", "rejected": "b"},
        ["role_order"],
    ),
    "a table without columns": (
        {"question": "a", "table": {"header": []}, "sql": {"human_readable": "b"}},
        ["wrong_type"],
    ),
    "a table without SQL": (
        {"question": "a", "table": {"header": ["b"]}, "sql": "SELECT"},
        ["wrong_type"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows(name):
    fields, codes = BAD[name]
    found = faults(**fields)
    assert [fault.code for fault in found] == codes
    assert set(codes) <= set(FAULTS)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("text is a number", "text is not a string but a number"),
        ("turns are a text", "'messages' is not a list of turns but a string"),
        ("no turns", "'messages' is empty"),
        ("no answer", "no assistant turn: nothing to learn from"),
        (
            "begins with an answer",
            "starts with an assistant turn: there is nothing that it answers",
        ),
        ("a turn is a number", "messages[1] is not an object with 'role' and 'content'"),
        ("content is missing", "messages[1].content is not a string but missing or null"),
        (
            "unknown role",
            "messages[0]: unknown role 'bot'; expected system, user, assistant or tool, or an "
            "entry in data.roles. Did you mean assistant?",
        ),
        (
            "role of another case",
            "messages[0]: unknown role 'User'; expected system, user, assistant or tool, or an "
            "entry in data.roles. Did you mean user?",
        ),
        ("weight 0.5", "messages[1].weight is 0.5; expected 0 or 1"),
        ("weight is a text", "messages[1].weight is '1'; expected 0 or 1"),
        ("label is a list",
         "label is an array; expected a string, a whole number, true or false"),
        ("misspelt label", "label is 'desireable'. Did you mean desirable?"),
        (
            "an image",
            "messages[0].content[0] is a part of type 'image_url'; "
            "expected {'type': 'text', 'text': ...}",
        ),
        (
            "an answer to another call",
            "messages[2]: tool_call_id 'c2' is none of the calls before it",
        ),
    ],
)  # fmt: skip
def test_sentences(name, sentence):
    fields, codes = BAD[name]
    assert faults(**fields) == [Fault(codes[0], sentence)]


def test_all_faults_of_a_row_are_given():
    turns = [{"role": "bot", "content": ""}, 3, {**ANSWER, "weight": 7, "content": None}]
    found = faults(messages=turns, label=[], tools=3)
    assert [fault.code for fault in found] == [
        "unknown_role", "empty_turn", "wrong_type", "weight", "wrong_type", "label", "tools",
    ]  # fmt: skip


def test_an_unknown_row_names_the_formats():
    [fault] = faults(q="a", a="b")
    assert fault.sentence.startswith("no known format: found the keys 'q', 'a'; expected one of ")
    assert "'prompt' with 'completion'; 'text'" in fault.sentence
    assert faults(mesages=[])[0].sentence.endswith("Did you mean 'messages' instead of 'mesages'?")


def test_an_explicit_format_names_what_it_needs():
    [fault] = faults("prompt_completion", prompt="a")
    assert fault == Fault(
        "no_format", "data.format=prompt_completion needs 'completion'; found the keys 'prompt'"
    )
    [fault] = faults("messages", text="a")
    assert fault.sentence == "data.format=messages needs 'messages'; found the keys 'text'"


# Any JSON value

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "tool", "gpt", "text", "{}", "Human: a", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "weight", "tool_calls",
                                       "loss_weight", "function", "name", "arguments", "type",
                                       "header", "x"]),
                      inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
NAMES = [
    "messages", "conversations", "prompt", "completion", "text", "chosen", "rejected", "question",
    "table", "sql", "instruction", "input", "output", "answer", "response", "history", "system",
    "label", "tools", "functions", "context", "documents", "conversation", "id", "",
    "images", "audio",
]  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6)
GOOD = [
    *(json.loads(example) for _, _, example in EXAMPLES),
    *(json.loads(example) for example, _ in ALIASES),
    {"messages": [USER, CALLER, TOLD, {**ANSWER, "weight": 0}], "tools": [CALL], "label": True},
    {"chosen": [USER, ANSWER], "rejected": [USER, CALLER], "label": "a"},
]


def places(value, path=()):
    """Every place within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))


@st.composite
def spoiled(draw):
    """A good row with some values put in or replaced."""
    row = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 2))):
        *path, last = draw(st.sampled_from(sorted(places(row), key=str)))
        inner = row
        for key in path:
            inner = inner[key]
        inner[last] = draw(JSON)
    return row | draw(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=1))


def refused(row, format):
    try:
        parse(row, format)
    except RowError as error:
        return list(error.found) or ["nothing"]
    return []


@settings(max_examples=600)
@given(ROWS | spoiled(), st.sampled_from(["auto"] * 8 + [*FORMATS]))
def test_any_row_is_understood_or_has_faults(fields, format):
    row = record(**fields)
    assert isinstance(unused_keys(fields, format), list)
    if found := refused(row, format):
        assert {fault.code for fault in found} <= set(FAULTS)
        assert all(fault.sentence for fault in found)
        return
    conversation = parse(row, format)
    assert conversation.record is row
    assert (conversation.text is None) == bool(conversation.messages)
    assert conversation.format in FORMATS
    assert {m.role for m in conversation.messages} <= {"system", "user", "assistant", "tool"}
    assert conversation.text or "assistant" in {m.role for m in conversation.messages}
    assert all(m.content.strip() or m.tool_calls for m in conversation.messages)
    assert len(fingerprint(conversation)) == 64


# Fingerprints


def test_a_fingerprint_ignores_case_and_space_and_nothing_else():
    base = read(messages=[USER, ANSWER])
    same = read(prompt="  SKY? ", completion="blue.", label="x")
    assert fingerprint(base) == fingerprint(same)
    others = [
        dataclasses.replace(base, tools=({"function": {"name": "a"}},)),
        dataclasses.replace(base, rejected=(Message("assistant", "Red."),)),
        dataclasses.replace(base, messages=(*base.messages, Message("user", "Sky?"))),
        dataclasses.replace(base, messages=(Message("system", "Sky?"), base.messages[1])),
        dataclasses.replace(
            base, messages=(base.messages[0], Message("assistant", "Blue.", tool_calls=(CALL,)))
        ),
        Conversation((), "Sky? Blue.", None, base.record),
    ]
    assert len({fingerprint(row) for row in [base, *others]}) == len(others) + 1


def test_keys_that_nothing_looks_at():
    turn = {**ANSWER, "timestamp": 1, "name": "x"}
    fields = {"messages": [USER, turn, turn], "id": 3, "label": "a", "kind": "k", "tools": []}
    assert unused_keys(fields) == ["id", "messages[].timestamp"]
    chat = [{"from": "human", "value": "a", "model": "m"}, {"from": "gpt", "value": "b"}]
    assert unused_keys({"conversations": chat}) == ["conversations[].model"]
