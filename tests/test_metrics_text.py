"""What counts as the same text."""

import pytest

from mlx_ft.config.schema_data import METRICS
from mlx_ft.errors import ConfigError
from mlx_ft.metrics import build_metric
from mlx_ft.metrics_text import Contains, JsonValid, NormalisedMatch, normalised


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The  Nile.", "nile"),
        ("An apple, a day!", "apple day"),
        ("Theatre anthem", "theatre anthem"),  # articles are whole words
        ("it's  U.S.A.", "its usa"),  # punctuation goes first, and with nothing in its place
        ("a-b", "ab"),
        ("a.", ""),
        ("Été – ok", "été – ok"),  # only ASCII punctuation
    ],
)
def test_normalised_as_squad_does(text, left):
    assert normalised(text) == left


def test_normalised_match():
    metric = NormalisedMatch()
    assert metric("the NILE", "Nile.")
    assert not metric("the White Nile", "Nile")
    with pytest.raises(ValueError, match="exact_match"):
        metric("x", "A")  # an answer to a multiple choice


def test_contains_looks_for_whole_words():
    metric = Contains()
    assert metric("It is N'Djamena, of course.", "ndjamena")
    assert not metric("A Nigerian city", "Niger")
    with pytest.raises(ValueError, match="no word"):
        metric("x", "...")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, 2.5, null]}', True),
        (' ```json\n{"a": 1}\n``` ', True),
        ("```\n[1]", True),
        ("3", True),
        ("9" * 5000, True),
        ('{"a": 1} and so on', False),
        ("{'a': 1}", False),
        ("[1,]", False),
        ("NaN", False),
        ("[-Infinity]", False),
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_json_valid(text, valid):
    assert JsonValid()(text, "") is valid


def test_every_metric_of_the_configuration_can_be_built():
    import sqlite3

    for name in METRICS[1:]:
        assert build_metric(name, lambda: sqlite3.connect(":memory:")).name == name
    with pytest.raises(ConfigError, match="json_valid"):
        build_metric("nope")
