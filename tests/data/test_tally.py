import pytest

from mlx_ft.data.rows import FAULTS, Fault
from mlx_ft.data.tally import KEPT_FAULTS, SHOWN_FAULTS, FaultLog, allowed, refusal


@pytest.mark.parametrize(
    ("limit", "rows", "count"),
    [(0, 100, 0), (7, 100, 7), ("5%", 100, 5), ("5%", 19, 0), ("2.5 %", 1000, 25), ("100%", 3, 3)],
)
def test_how_many_rows_may_be_faulty(limit, rows, count):
    assert allowed(limit, rows) == count


def test_every_fault_is_counted_and_the_first_are_kept():
    log = FaultLog()
    for line in range(1, 101):
        log.add(f"a:{line}", [Fault("label", f"fault {line}"), Fault("weight", "another")])
    assert log.rows == 100
    assert {entry["code"]: entry["count"] for entry in log.as_list()} == {
        "label": 100,
        "weight": 100,
    }
    assert len(log.as_list()[0]["first"]) == KEPT_FAULTS
    assert log.as_list()[0]["first"][2] == {"where": "a:3", "fault": "fault 3"}
    error = refusal(log.rows, 1000, 0, log.shown())
    assert "100 of 1000 rows are faulty. " in error.message
    assert len(error.faults) == SHOWN_FAULTS + 1
    assert error.faults[1] == "a:1: another"
    assert error.faults[-1] == "... and 185 more"
    assert "more than data.max_errors=5% allows" in refusal(100, 1000, "5%", []).message


def test_every_code_says_what_to_do():
    assert all(text and not text.endswith(".") for text in FAULTS.values())


def test_a_share_is_exact():
    assert allowed("0.57%", 10_000) == 57
