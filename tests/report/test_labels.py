"""Names and numbers as people read them."""

from pathlib import Path

import pytest

from mlx_ft.report.labels import (
    figure_text,
    name_of,
    p_text,
    percent_text,
    short_keys,
    statuses,
    step_text,
    value_text,
)
from mlx_ft.report.read import Row


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"), (3e-4, "3e-4"), (2.5e-5, "2.5e-5"), (0.001, "1e-3"), (0.05, "0.05"),
        (0.0, "0"), (32.0, "32"), (1.5, "1.5"), (2e7, "2e7"), (12345.0, "12345"), (8, "8"),
        (0.00031622776, "3.16e-4"), (True, "true"), (None, "null"), ("lion", "lion"),
        ("a\x1b[2J\n", "a\\x1b[2J\\n"), ("x" * 50, f"{'x' * 20}…{'x' * 20}"), ([1, 2], "[1, 2]"),
    ],
)  # fmt: skip
def test_values(value, text):
    assert value_text(value) == text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("val_loss_after", 0.28612, "0.2861"), ("accuracy_after", 0.907, "90.7%"),
        ("wall_seconds", 1234.5, "1,234"), ("wall_seconds", 3.14, "3.1"),
        ("peak_memory_gb", 1.5, "1.50"), ("peak_memory_gb", 123.4, "123"),
        ("mine", 0.123456, "0.1235"), ("mine", None, "-"), ("mine", float("nan"), "-"),
    ],
)  # fmt: skip
def test_figures(key, value, text):
    assert figure_text(key, value) == text


def test_differences():
    assert step_text("val_loss_after", 0.00123) == "0.0012"
    assert step_text("val_loss_after", 0.000012) == "1.2e-5"
    assert step_text("accuracy_after", -0.034) == "-3.4 points"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.934, "93"), (0.99961, "99.9"), (0.9999, "99.9"), (1.0, "100"), (0.004, "0.4"), (0, "0.0")],
)
def test_percentages_do_not_claim_all(share, text):
    assert percent_text(share) == text


def test_names():
    assert short_keys(["lora.rank", "a.path", "b.path"]) == {
        "lora.rank": "rank", "a.path": "a.path", "b.path": "b.path",
    }  # fmt: skip
    row = Row("FINISHED", {"lora.rank": 8, "optimizer.learning_rate": 1e-4}, folder=Path("x/run"))
    assert name_of(row, ["lora.rank", "optimizer.learning_rate"]) == "rank=8 learning_rate=1e-4"
    assert name_of(row, []) == "run"
    assert name_of(row, [*"abcd", "lora.rank"]) == "run"  # too many to say
    assert (p_text(0.00001), p_text(0.0312), p_text(1.0)) == ("p < 0.001", "p = 0.031", "p = 1")
    rows = [Row(status, {}) for status in ("FAILED", "FINISHED", "NOT RUN", "FINISHED")]
    assert statuses(rows) == "2 finished, 1 failed, 1 not run"
