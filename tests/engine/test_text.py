"""What can be shown of an answer at once, and what is held back."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer

from mlx_ft.engine.text import Text


class Tokenizer:
    """Tokens are pieces of text, by their numbers."""

    def __init__(self, pieces):
        self.pieces, self.last_segment = pieces, ""

    @property
    def detokenizer(self):
        return self

    def reset(self):
        self.last_segment = ""

    def add_token(self, token):
        self.last_segment = self.pieces[token]

    def finalize(self):
        self.last_segment = ""


def shown(pieces, stop):
    text = Text(Tokenizer(pieces), stop)
    told = []
    for token in range(len(pieces)):
        told.append(text.add(token))
        if text.stopped:
            break
    return [*told, text.end()], text.stopped


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_it_ends_where_the_whole_text_first_has_a_stop(pieces, stop):
    told, stopped = shown(pieces, stop)
    # As the text grows by pieces, the first one that completes a stop text decides.
    grown, expected = "", None
    for piece in pieces:
        grown += piece
        if found := [at for one in stop if (at := grown.find(one)) >= 0]:
            expected = grown[: min(found)]
            break
    assert stopped == (expected is not None)
    assert "".join(told) == ("".join(pieces) if expected is None else expected)


def test_only_what_may_begin_a_stop_text_is_held_back():
    told, stopped = shown(["a", "b", "E", "N", "x", "EN", "D", "more"], ["END"])
    assert told == ["a", "b", "", "", "ENx", "", "", ""]
    assert stopped


class Words(list):
    """A tokenizer of these tokens."""

    def convert_ids_to_tokens(self, ids):
        return [self[at] for at in ids]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (BPEStreamingDetokenizer, ["\u0120Paris", "\u0120is", "!"]),
        (SPMStreamingDetokenizer, ["\u2581Paris", "\u2581is", "!"]),
    ],
)
def test_what_goes_on_with_a_text_keeps_its_first_space(kind, words):
    tokenizer = SimpleNamespace(detokenizer=kind(Words(words)))
    for continues, expected in ((True, [" Paris", " is", "!"]), (False, ["Paris", " is", "!"])):
        text = Text(tokenizer, (), continues=continues)
        assert [text.add(token) for token in range(3)] == expected
        assert text.end() == ""
