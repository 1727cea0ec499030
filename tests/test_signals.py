"""SIGTERM and Ctrl-C at random moments: the small form of `python proofs/signals.py`."""

import json
import random
import shutil
import signal
import sys
from contextlib import suppress

import pytest

from mlx_ft.errors import Interrupted
from mlx_ft.interrupt import StopSignal, die_quietly
from proofs.kills import Place
from proofs.signals import NAME, arguments, once, outcome, starts, twice

SEED = 11


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A zygote, and the run that is never stopped, with how long it takes."""
    place = Place(tmp_path_factory.mktemp("signals"))
    plain = place.start(arguments(NAME, "reference"))
    assert plain["code"] == 0, place.output()
    warm = place.start(arguments(NAME, "warm"))  # without what only the first one does
    place.output()
    place.seconds = warm["seconds"]
    yield place
    place.close()
    place.zygote.stdout.close()


@pytest.mark.slow
def test_a_signal_at_a_random_moment(place):
    words = []
    for word, wrong in once(place, 3, place.seconds, random.Random(SEED)):
        assert wrong == []
        words.append(word)
    assert "killed" in words


@pytest.mark.slow
def test_a_second_signal_in_a_long_step(place):
    for word, wrong in twice(place, 1, random.Random(SEED), compare=False):
        assert wrong == []
        assert word in ("at once", "stopped")  # a fast machine has ended the step by then


@pytest.mark.slow
def test_a_real_process_while_it_starts(place):
    for word, wrong in starts(place, 1, random.Random(SEED)):
        assert (word, wrong) == ("start: not begun", [])


def test_what_is_judged_by_is_not_blind(place):
    """A run that finished and says KILLED, one whose checkpoint is missing, one that wrote."""
    run = place.folder / "reference"
    ended = {"code": 143, "signal": None, "rows": [0, 1]}
    kept = (run / "summary.json").read_text()
    (run / "summary.json").write_text(json.dumps({**json.loads(kept), "status": "KILLED"}))
    word, wrong = outcome(place, "reference", ended, 15)
    (run / "summary.json").write_text(kept)
    assert word == "killed"
    assert [fault.partition(":")[0] for fault in wrong] == [
        "stopped at step 24, the signal came after step [0, 1]", "MLflow says ['FINISHED']",
    ]  # fmt: skip
    shutil.copytree(run / "figures", place.folder / "other" / "figures")
    word, wrong = outcome(place, "other", {**ended, "code": 1}, 15)
    assert word == "not begun"
    assert "ends with 1" in wrong[0]
    assert "left ['figures'" in wrong[1]


def renamed():
    try:
        signal.raise_signal(signal.SIGINT)
    except Exception as error:
        raise ValueError("no such model") from error


def swallowed():
    with suppress(Exception):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("work", [renamed, swallowed])
def test_what_other_code_makes_of_a_signal_is_still_the_signal(work):
    """`except Exception` somewhere in an import, a tokenizer: the run was stopped all the same."""
    with StopSignal() as stop, pytest.raises(Interrupted, match="SIGINT"), stop.at_once():
        work()


def test_a_signal_inside_a_destructor_is_no_traceback():
    class Gone:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            if self.error:
                raise self.error
            signal.raise_signal(signal.SIGINT)

    def work():
        Gone(other)
        Gone(None)
        told.append("went on")

    hook, told, other = sys.unraisablehook, [], ValueError("which is no signal, and is told")
    sys.unraisablehook = lambda lost: told.append(lost.exc_value)
    try:
        with StopSignal() as stop, pytest.raises(Interrupted, match="SIGINT"), stop.at_once():
            work()
        assert told == [other, "went on"]
        assert sys.unraisablehook.__name__ == "<lambda>"
    finally:
        sys.unraisablehook = hook


def test_an_error_without_a_signal_stays_what_it_is():
    with StopSignal() as stop, pytest.raises(ValueError, match="no such model"), stop.at_once():
        raise ValueError("no such model")


def test_dying_quietly_leaves_an_ignored_signal_ignored():
    before = signal.getsignal(signal.SIGINT)
    try:
        for found, then in (
            (signal.default_int_handler, signal.SIG_DFL),
            (signal.SIG_IGN, signal.SIG_IGN),
        ):
            signal.signal(signal.SIGINT, found)
            die_quietly()
            assert signal.getsignal(signal.SIGINT) is then
    finally:
        signal.signal(signal.SIGINT, before)
