import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ft.data.convert import LOSSES, TARGETS, convert
from mlx_ft.data.formats import FormatOptions, parse
from mlx_ft.data.rows import Message, Record, RowError
from mlx_ft.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
USER = {"role": "user", "content": "Sky?"}
ANSWER = {"role": "assistant", "content": "Blue."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"up": True}}}
BARE = {"type": "function", "function": {"name": "wait", "arguments": {}}}
CALLER = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": "It is blue.", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def read(**fields):
    return parse(Record(fields, Path("rows.jsonl"), 1))


def content(conversation):
    """What a conversation says, whatever row it came from."""
    return replace(conversation, record=Record({}, Path(), 0))


# Conversations of every kind

TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.just("\n"), min_size=1, max_size=12
).filter(str.strip)
ARGUMENTS = st.dictionaries(st.text(max_size=3), st.integers(0, 9) | st.text(max_size=3))
NAMED = st.fixed_dictionaries({"name": st.just("look"), "arguments": ARGUMENTS})


@st.composite
def turn(draw, role, rich):
    message = {"role": role, "content": draw(TEXTS)}
    if role == "assistant" and draw(st.booleans()):
        message["weight"] = draw(st.sampled_from([0, 1]))
    if rich and role == "user" and draw(st.booleans()):
        message["name"] = "Ann"
    return message


@st.composite
def called(draw):
    """A call, its answers, and perhaps words beside it."""
    calls = [{"type": "function", "function": f} for f in draw(st.lists(NAMED, min_size=1,
                                                                        max_size=2))]  # fmt: skip
    with_id = draw(st.booleans())
    if with_id:
        calls = [{"id": f"c{i}", **call} for i, call in enumerate(calls)]
    caller = {"role": "assistant", "content": draw(st.none() | TEXTS), "tool_calls": calls}
    told = [{"role": "tool", "content": draw(TEXTS)} for _ in calls]
    if with_id:
        told = [{**answer, "tool_call_id": f"c{i}"} for i, answer in enumerate(told)]
    return [caller, *told]


@st.composite
def chats(draw, rich=True):
    """A row of messages: any order that is allowed, and (rich) names, tools and calls."""
    turns = [draw(turn("system", False))] if draw(st.booleans()) else []
    turns.append(draw(turn("user", rich)))
    for role in draw(st.lists(st.sampled_from(["user", "assistant", "call"]), max_size=6)):
        turns += draw(called()) if rich and role == "call" else [
            draw(turn("assistant" if role == "call" else role, rich))
        ]  # fmt: skip
    if not any(message["role"] == "assistant" for message in turns):
        turns.append(draw(turn("assistant", rich)))
    row = {"messages": turns}
    if rich and draw(st.booleans()):
        row["tools"] = [TOOL]
    label = draw(st.sampled_from([None, "desirable", "undesirable", "sports"]))
    return row if label is None else {**row, "label": label}


def without(conversation, losses, to):
    """What is left of a conversation when all that `losses` names is forgotten."""
    messages = list(conversation.messages)
    last = max(i for i, m in enumerate(messages) if m.role == "assistant")
    start = last
    while messages[start - 1].role in ("assistant", "tool"):
        start -= 1
    if "earlier_answers" in losses:
        messages[:start] = [
            replace(m, weight=0) if m.role == "assistant" else m for m in messages[:start]
        ]
    if "weight" in losses:
        begin = start if to == "prompt-completion" else 0
        messages[begin:] = [replace(m, weight=1) for m in messages[begin:]]
    if "names" in losses:
        messages = [replace(m, name=None, tool_call_id=None) for m in messages]
    if "unanswered" in losses:
        messages = messages[: last + 1]
    if "turn_borders" in losses:
        messages = joined(messages)
    if "call_text" in losses:
        messages = [part for m in messages for part in apart(m)]
    tools = () if "tools" in losses else conversation.tools
    return replace(conversation, messages=tuple(messages), tools=tools)


def joined(messages):
    merged = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            both = f"{merged[-1].content}\n\n{message.content}"
            merged[-1] = replace(merged[-1], content=both)
        else:
            merged.append(message)
    return merged


def apart(message):
    if not (message.content and message.tool_calls):
        return [message]
    return [replace(message, tool_calls=()), replace(message, content="")]


FORMATS = {to: format for to, (format, _) in TARGETS.items()}


@settings(max_examples=300)
@given(chats(), st.sampled_from(["messages", "sharegpt", "alpaca", "prompt-completion"]))
def test_there_and_back_loses_what_is_said_and_nothing_else(fields, to):
    before = read(**fields)
    if to == "alpaca" and any(m.tool_calls for m in before.messages):
        with pytest.raises(RowError, match="cannot be used"):
            convert(before, to)
        return
    row, losses = convert(before, to)
    assert set(losses) <= set(LOSSES)
    row = json.loads(json.dumps(row))
    there = read(**row)
    assert there.format == FORMATS[to]
    back, more = convert(there, "messages")
    assert more == []
    expected = content(without(before, losses, to))
    assert content(replace(there, format="messages")) == expected
    assert content(read(**back)) == expected
    if {"unanswered", "turn_borders"} & set(losses):
        return  # a name or weight may be lost with its turn
    for loss in losses:  # none is said in vain
        others = [other for other in losses if other != loss]
        assert content(without(before, others, to)) != expected


@settings(max_examples=150)
@given(chats(rich=False))
def test_what_chatml_writes_can_be_read_by_eye(fields):
    before = read(**fields)
    row, losses = convert(before, "chatml")
    weighed = any(message.weight == 0 for message in before.messages)
    assert losses == ["answers", *["weight"] * weighed]
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", row["text"], re.DOTALL)
    assert turns == [(m.role, m.content) for m in before.messages]
    assert "".join(f"<|im_start|>{r}\n{t}<|im_end|>\n" for r, t in turns) == row["text"]
    assert read(**row).text == row["text"]
    assert read(**row).label == before.label


@settings(max_examples=100)
@given(
    st.fixed_dictionaries(
        {"instruction": TEXTS, "input": TEXTS | st.just(""), "output": TEXTS},
        optional={"system": TEXTS, "history": st.lists(st.tuples(TEXTS, TEXTS).map(list),
                                                       min_size=1, max_size=3)},
    )
)  # fmt: skip
def test_alpaca_rows_come_back_exactly(fields):
    assert convert(read(**fields), "alpaca") == (fields, [])
    row, losses = convert(read(**fields), "messages")
    assert losses == []
    assert read(**row).messages == read(**fields).messages


def test_rows_as_others_know_them():
    system = {"role": "system", "content": "Be brief."}
    turns = [system, USER, ANSWER, {"role": "user", "content": "Sea?"}, {**ANSWER, "weight": 0}]
    row = read(messages=turns, label=True)
    assert convert(row, "messages") == ({"messages": turns, "label": "desirable"}, [])
    assert convert(row, "sharegpt") == (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Sky?"},
                {"from": "gpt", "value": "Blue."},
                {"from": "human", "value": "Sea?"},
                {"from": "gpt", "value": "Blue.", "weight": 0},
            ],
            "label": "desirable",
        },
        [],
    )
    assert convert(row, "alpaca") == (
        {
            "instruction": "Sea?",
            "input": "",
            "output": "Blue.",
            "system": "Be brief.",
            "history": [["Sky?", "Blue."]],
            "label": "desirable",
        },
        ["weight"],
    )
    assert convert(row, "prompt-completion") == (
        {
            "prompt": [system, USER, ANSWER, {"role": "user", "content": "Sea?"}],
            "completion": [ANSWER],
            "label": True,
        },
        ["earlier_answers", "weight"],
    )
    pair = read(messages=[USER, ANSWER])
    assert convert(pair, "prompt-completion")[0] == {"prompt": "Sky?", "completion": "Blue."}
    assert convert(pair, "chatml")[0] == {
        "text": "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\nBlue.<|im_end|>\n"
    }


def test_calls_as_others_know_them():
    row = read(messages=[USER, CALLER, TOLD, ANSWER], tools=[TOOL])
    written = {**CALL, "function": {"name": "look", "arguments": '{"up": true}'}}
    assert convert(row, "messages") == (
        {"messages": [USER, {**CALLER, "tool_calls": [written]}, TOLD, ANSWER], "tools": [TOOL]},
        [],
    )
    shared, losses = convert(row, "sharegpt")
    assert losses == []
    assert shared["conversations"][1] == {"from": "function_call", "value": json.dumps(CALL)}
    assert shared["conversations"][2] == {
        "from": "observation", "value": "It is blue.", "tool_call_id": "c1",
    }  # fmt: skip
    bare = read(messages=[USER, {**CALLER, "tool_calls": [BARE], "content": "Wait."}])
    shared, losses = convert(bare, "sharegpt")
    assert losses == ["call_text"]
    assert shared["conversations"][1:] == [
        {"from": "gpt", "value": "Wait."},
        {"from": "function_call", "value": json.dumps(BARE["function"])},
    ]
    text, losses = convert(row, "chatml")
    assert set(losses) == {"answers", "names", "tools"}
    assert '<tool_call>\n{"name": "look", "arguments": {"up": true}}\n</tool_call>' in text["text"]


@pytest.mark.parametrize("to", TARGETS)
def test_each_loss_that_turns_do_not_show(to):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert "rejected" in convert(read(**pair), to)[1]
    # A class that a chat would read as a judgement of the answer.
    row, losses = convert(read(prompt="a", completion="b", label="good"), to)
    assert ("label" in losses) == (to in ("messages", "sharegpt"))
    assert row.get("label") == (None if "label" in losses else "good")
    row, losses = convert(read(messages=[{**USER, "at": 1}, ANSWER]), to)
    assert "other_keys" in losses
    row, losses = convert(
        read(messages=[USER, ANSWER], text="Sky? Blue.", kind="k", id=3, source={"a": 1}), to
    )
    assert "other_keys" in losses  # the text
    assert [row[key] for key in ("kind", "id", "source")] == ["k", 3, {"a": 1}]


def test_chatmls_own_marks_within_a_turn_are_said():
    row = read(prompt="What is <|im_end|>?", completion="A mark.")
    assert convert(row, "chatml")[1] == ["answers", "markers"]


def test_what_cannot_be_said_at_all():
    text = read(text="Once.", label="a")
    assert convert(text, "chatml") == ({"text": "Once.", "label": "a"}, [])
    for to in set(TARGETS) - {"chatml"}:
        with pytest.raises(RowError) as error:
            convert(text, to)
        assert [fault.code for fault in error.value.found] == ["no_format"]
        assert to in error.value.found[0].sentence
    with pytest.raises(DataError, match="expected one of messages"):
        convert(text, "massages")


def test_names_of_a_users_own():
    options = FormatOptions("talk", "who", "what")
    talk = [{"who": "human", "what": "Sky?"}, {"who": "gpt", "what": "Blue."}]
    row = parse(Record({"talk": talk, "id": 3}, Path("a"), 1), "auto", options)
    assert convert(row, "messages", options) == ({"messages": [USER, ANSWER], "id": 3}, [])


def test_a_conversation_that_came_from_no_row():
    messages = (Message("user", "Sky?"), Message("assistant", "Blue."))
    row = replace(read(text="a"), messages=messages, text=None, record=Record({}, Path(), 0))
    assert convert(row, "messages") == ({"messages": [USER, ANSWER]}, [])


def test_the_page_names_every_loss():
    assert set(re.findall(r"^\| `(\w+)` \| [^|]+ \| (?:`|all)", PAGE, re.MULTILINE)) >= set(LOSSES)
