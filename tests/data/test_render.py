"""What a template shows of the tools of a conversation."""

import dataclasses

import pytest

from mlx_ft.data.render import Renderer, check_tools
from mlx_ft.data.rows import Conversation, Message, RowError

from .conftest import CHATML, TOOLS, chatml, conversation, unmarked
from .test_mask import CALL, CALLING, TOOL

PLAIN = unmarked(CHATML)
SAID = conversation("Which clock shows the time?", "The clock on the tower.")
WITH_TOOL = dataclasses.replace(SAID, tools=(TOOL,))
# Shows calls, but no descriptions of tools.
CALLS_ONLY = TOOLS.replace("{%- if tools %}", "{%- if false %}")


def check(row: Conversation, template: str) -> None:
    tokenizer = chatml(template)
    renderer = Renderer(tokenizer)
    turns = [
        {"role": m.role, "content": m.content}
        | ({"tool_calls": list(m.tool_calls)} if m.tool_calls else {})
        for m in row.messages
    ]
    check_tools(renderer, row, renderer.text(turns, row.tools))


def refusal(row: Conversation, template: str) -> str:
    with pytest.raises(RowError) as error:
        check(row, template)
    [fault] = error.value.found
    assert fault.code == "template_refused"
    return fault.sentence


def test_a_tool_that_is_shown_passes():
    check(WITH_TOOL, TOOLS)
    check(CALLING, TOOLS)
    check(SAID, PLAIN)


def test_a_chat_that_says_a_tools_name_does_not_show_the_tool():
    assert "leaves out the tool 'clock'" in refusal(WITH_TOOL, PLAIN)


def test_a_template_that_says_a_tools_name_does_not_show_the_tool():
    tool = {"type": "function", "function": {"name": "start"}}  # as in <|im_start|>
    assert "'start'" in refusal(dataclasses.replace(SAID, tools=(tool,)), PLAIN)


def test_a_call_does_not_show_the_tool():
    assert "'clock'" in refusal(CALLING, CALLS_ONLY)
    check(dataclasses.replace(CALLING, tools=()), CALLS_ONLY)


def test_a_description_does_not_show_the_call():
    template = TOOLS.replace("m.tool_calls or []", "[]")
    assert "'clock'" in refusal(CALLING, template)
    said = dataclasses.replace(
        CALLING, tools=(), messages=(*CALLING.messages, Message("user", "Which clock?"))
    )
    assert "'clock'" in refusal(said, template)


def test_each_of_several_tools_is_looked_for():
    first_only = TOOLS.replace("for tool in tools", "for tool in tools[:1]")
    other = {"type": "function", "function": {"name": "clo"}}  # part of the other's name
    row = dataclasses.replace(SAID, tools=(TOOL, other))
    check(row, TOOLS)
    assert "'clo'" in refusal(row, first_only)


def test_bare_tools_and_calls_too():
    bare = {"name": "clock", "arguments": {}}
    messages = (Message("user", "The clock?"), Message("assistant", "", tool_calls=(bare,)))
    row = dataclasses.replace(SAID, messages=messages, tools=({"name": "clock"},))
    check(row, TOOLS)
    assert "'clock'" in refusal(row, PLAIN)


def test_a_chat_written_in_python_is_looked_at_as_well():
    tokenizer = chatml(PLAIN)
    tokenizer._chat_template = object()  # what mlx-lm's wrapper has for a few models
    renderer = Renderer(tokenizer)
    turns = [{"role": m.role, "content": m.content} for m in SAID.messages]
    with pytest.raises(RowError, match="cannot be used"):
        check_tools(renderer, WITH_TOOL, renderer.text(turns, WITH_TOOL.tools))


def test_the_conversation_is_left_as_it_was():
    check(CALLING, TOOLS)
    assert CALL["function"]["name"] == TOOL["function"]["name"] == "clock"
