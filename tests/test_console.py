"""What is shown while a run goes on."""

import io
import logging
import time

import pytest
from rich.console import Console

from mlx_ft.console import Display, configure_logging


@pytest.fixture
def log():
    """A console that is a file, with the project's messages going there."""
    return configure_logging("info", Console(file=io.StringIO(), soft_wrap=True))


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_answers_are_counted_in_the_log_while_they_come(log):
    with Display(log, total_steps=4, log_every=1, tick_seconds=0.05) as display:
        display.phase("answering", 150)
        for _ in range(50):
            display.advance()
        time.sleep(0.2)
        display.training(0)
        time.sleep(0.03)
        said = text_of(log)
        time.sleep(0.2)
        assert text_of(log) == said  # steps have lines of their own
    assert "answering: 50 of 150 done in 0:00:00\n" in said


def test_a_phase_that_is_over_at_once_says_nothing(log):
    with Display(log, total_steps=4, log_every=1) as display:
        display.phase("validating", 2)
        display.advance()
    assert text_of(log) == ""


@pytest.mark.parametrize(("items", "seconds"), [(1, 0.7), (9, 0.25)])
def test_one_item_and_a_short_phase_over_a_tick_say_nothing(log, items, seconds):
    with Display(log, total_steps=4, log_every=1, tick_seconds=0.3) as display:
        time.sleep(0.2)  # the clock ticks in the middle of the phase
        display.phase("answering", items)
        time.sleep(seconds)
        display.training(0)
    assert text_of(log) == ""


def test_what_was_chosen_waits_for_the_next_message(log):
    chosen, other = logging.getLogger("mlx_ft.memory"), logging.getLogger("mlx_ft.other")
    chosen.info("memory_profile=cpu")
    assert text_of(log) == ""
    other.info("model on cpu")
    chosen.warning("not enough memory")
    assert text_of(log) == "memory_profile=cpu\nmodel on cpu\nwarning: not enough memory\n"
