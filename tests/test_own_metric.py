"""A function of the user's own: loaded by name, called with the row, its mistakes told."""

import pytest

from mlx_ft import own_metric
from mlx_ft.errors import UserError

CODE = """
from dataclasses import dataclass
from beside import LIMIT

@dataclass
class Thing:
    x: int = 0

def score(prediction, reference, fields):
    return min(len(prediction), LIMIT) / LIMIT

def right(prediction, reference, fields):
    return prediction == fields["wanted"]

def words(prediction, reference, fields):
    return "yes"

def nothing(prediction, reference, fields):
    return float("nan")

def fails(prediction, reference, fields):
    return 1 / len(prediction)

def one(prediction):
    return True

def huge(prediction, reference, fields):
    return 10**400

def loss(prediction, reference, fields):
    return True

score_low = score_high = score_gain = score_p = perplexity = loss
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("LIMIT = 4\n")
    return tmp_path / "mine.py"


def test_it_says_yes_no_or_how_much(file):
    right, score = (own_metric.load(f"{file}:{name}") for name in ("right", "score"))
    assert right("a", "b", {"wanted": "a"}) is True
    assert right("a", "a", {"wanted": "b"}) is False
    assert score("ab", "", {}) == 0.5
    assert (right.name, right.workers) == ("right", 1)


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("words", "a", "gave 'yes'"),
        ("nothing", "a", "gave nan"),
        ("huge", "a", "gave 1000"),
        ("fails", "", r"raised ZeroDivisionError.*mine\.py:\d+"),
        ("right", "a", "raised KeyError: 'wanted'"),
    ],
)
def test_what_it_does_wrong_is_told(file, name, answer, said):
    metric = own_metric.load(f"{file}:{name}")
    with pytest.raises(UserError, match=said):
        metric(answer, "reference", {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mine.py", "expected FILE.py:FUNCTION"),
        ("mine.txt:score", "expected FILE.py:FUNCTION"),
        ("mine.py:a b", "expected FILE.py:FUNCTION"),
        ("nowhere.py:score", "there is no file"),
        (
            "mine.py:skore",
            "has no function skore. It has: fails, huge, loss, nothing, one, perplexity, right, "
            "score, score_gain, score_high, score_low, score_p, words",
        ),
        ("mine.py:LIMIT", "has no function LIMIT"),
        ("mine.py:one", "prediction, reference, fields"),
        *(
            (f"mine.py:{name}", f"a metric cannot be called {name}: loss, perplexity and names")
            for name in ("loss", "perplexity", "score_low", "score_high", "score_gain", "score_p")
        ),
        ("broken.py:x", "cannot be imported: SyntaxError"),
        ("ends.py:x", "cannot be imported: SystemExit"),
    ],
)
def test_what_cannot_be_loaded_is_told(file, given, said, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "broken.py").write_text("def x(:\n")
    (file.parent / "ends.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError) as caught:
        own_metric.load(given)
    assert said in str(caught.value)


def test_its_folder_is_not_left_on_the_path(file):
    import sys

    before = list(sys.path)
    own_metric.load(f"{file}:score")
    assert sys.path == before
