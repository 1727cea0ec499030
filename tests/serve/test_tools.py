"""Calls of tools are found in an answer however it is cut, and tokens are told as bytes."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_ft.models.read import read_tokenizer
from mlx_ft.serve.tools import Calls
from mlx_ft.serve.words import Words

TOOLS = [{"type": "function", "function": {"name": "weather"}}]
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'


class Tokenizer:
    """Writes calls as Qwen does."""

    tool_call_start, tool_call_end = "<tool_call>", "</tool_call>"

    @staticmethod
    def tool_parser(text, tools):
        return json.loads(text)


def read(pieces, tools=TOOLS):
    calls = Calls(Tokenizer, tools)
    told = [calls.add(piece) for piece in pieces]
    told.append(calls.end())
    return "".join(text for text, _ in told), [call for _, found in told for call in found]


@given(st.data())
def test_however_it_is_cut(data):
    whole = f"Let me look.<tool_call>\n{CALL}\n</tool_call><tool_call>{CALL}</tool_call> Done <to"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    ends = [0, *cuts, len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(ends)]
    text, calls = read(pieces)
    assert text == "Let me look. Done <to"
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    for call in calls:
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


@pytest.mark.parametrize(
    "text",
    ["plain", "<tool_call>not json</tool_call>", '<tool_call>{"arguments": {}}</tool_call>',
     '<tool_call>{"name": 7}</tool_call>', "a <tool_call>half", "<tool_call>[]x</tool_call>"],
)  # fmt: skip
def test_what_is_no_call_stays_text(text):
    assert read([text]) == (text, [])


def test_a_call_at_the_end_without_its_mark():
    text, (call,) = read([f"<tool_call>{CALL}"])
    assert text == ""
    assert call["function"]["name"] == "weather"


def test_nothing_is_looked_for_without_tools():
    whole = f"<tool_call>{CALL}</tool_call>"
    assert read([whole], []) == (whole, [])


def test_words_of_a_byte_level_tokenizer(models):
    tokenizer = read_tokenizer(models["tiny"], 257)
    words = Words(tokenizer)
    text = "é 日\n"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert bytes(byte for token in tokens for byte in words.word(token)[1]) == text.encode()
    assert words.word(tokens[0])[0] == "\ufffd"  # half a character
    assert words.word(257)[0] == "</s>"


def test_words_of_sentencepiece():
    class Pieces:
        vocabulary = ("\u2581the", "<0xE2>", "é", "</s>")

        def get_vocab(self):
            return {word: at for at, word in enumerate(self.vocabulary)}

        def convert_ids_to_tokens(self, token):
            return self.vocabulary[token]

    words = Words(Pieces())
    assert words.word(0) == (" the", [*b" the"])
    assert words.word(1) == ("\ufffd", [0xE2])
    assert words.word(2) == ("é", [*"é".encode()])
