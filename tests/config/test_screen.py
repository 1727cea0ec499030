import pytest

from mlx_ft.config.screen import LINES, fit, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 😀", "plain é 😀"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eabc\ufeff", "\\u202eabc\\ufeff"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_not_printable_is_escaped(text, expected):
    assert shown(text) == expected


def test_the_middle_of_a_long_text_is_left_out():
    text = shown("a" * 500 + "z" * 500, longest=120)
    assert text.startswith("a" * 80 + "[... 890 characters ...]z")
    assert text.endswith("z" * 30)
    assert len(text) < 150


def test_short_text_stays_as_it_is():
    text = "2 faults:\n  - one\n  - two"
    assert fit(text) == text


def test_many_lines_fit_one_screen_and_the_rest_is_counted():
    lines = fit("\n".join(f"  - fault {number}" for number in range(3000))).split("\n")
    assert lines[:2] == ["  - fault 0", "  - fault 1"]
    assert len(lines) == LINES + 1
    assert lines[-1] == f"  and {3000 - LINES:,} more lines"


def test_long_lines_count_by_their_height():
    lines = fit("\n".join("x" * 450 for _ in range(20))).split("\n")
    assert lines[-1] == "  and 14 more lines"


def test_a_single_endless_line_is_shown():
    assert len(fit("x" * 10**6)) < 700
