"""The page of figures on a dataset: drawn for every report, with names as they are."""

import copy
import warnings

import pytest

from mlx_ft.plots import png
from mlx_ft.plots_data import TITLES, data_figure

pytestmark = pytest.mark.figures

HISTOGRAM = {"counts": [1, 2, 1], "edges": [0, 10, 20, 30]}
LENGTHS = {"min": 1, "p50": 12.0, "p95": 28.0, "max": 30, "histogram": HISTOGRAM}
NONE = {"rows": 0, "tokens": 0, "loss_share": 0.0, "stop_coverage": 1.0, "duplicates": 0,
        "near_duplicates": 0, "length": {}, "targets": {}}  # fmt: skip
SOME = NONE | {"rows": 4, "tokens": 60, "loss_share": 0.5, "length": LENGTHS, "targets": LENGTHS}


def file(path="rows.jsonl", rows=4, **more):
    none = {"kept": rows, "truncated": 0, "rejected": 0, "set_aside": 0}
    return {"path": path, "split": "train", "rows": rows, **none, **more}


def report(*files, **more):
    files = files or (file(),)
    names = ("rows", "kept", "truncated", "rejected")
    return {
        "rows": {name: sum(one[name] for one in files) for name in names},
        "files": list(files), "max_seq_length": 512, "overlap": {}, "faults": [], "notes": [],
        "recommendations": [], "splits": {"train": SOME, "valid": SOME, "test": NONE}, **more,
    }  # fmt: skip


def drawn(content):
    """The figure's four axes, after drawing it with every warning an error."""
    before = copy.deepcopy(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = data_figure(content)
        assert png(figure).startswith(b"\x89PNG")
    assert content == before
    return figure.axes


def bars(axes):
    """(file, start, width) of every bar."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    found = []
    for bar in axes.patches:
        place = round(bar.get_y() + bar.get_height() / 2)
        found.append((labels[place], bar.get_x(), bar.get_width()))
    return sorted(found)


def test_lengths_are_shares_of_each_split():
    lengths, targets, *_ = drawn(report())
    for axes in (lengths, targets):
        train, valid = axes.patches
        assert train.get_data().values.tolist() == [25.0, 50.0, 25.0]
        assert (train.get_fill(), valid.get_fill()) == (True, False)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == [f"{TITLES[s]}: median 12, 95% below 28" for s in ("train", "valid")]


def test_the_limit_is_drawn_where_rows_come_near_it():
    assert [*drawn(report())[0].lines] == []
    [line] = drawn(report(max_seq_length=35))[0].lines
    assert list(line.get_xdata()) == [35, 35]


def test_bars_add_up_to_the_rows_of_each_file():
    one = file("a/one.jsonl", 10, kept=6, truncated=3, rejected=1, set_aside=2)
    fates = drawn(report(one, file("two.csv", 5, split="valid")))[2]
    name = "one.jsonl (train)"
    expected = [(name, 0, 4), (name, 4, 3), (name, 7, 2), (name, 9, 1), ("two.csv (valid)", 0, 5)]
    assert [bar for bar in bars(fates) if bar[2]] == expected


def test_files_of_the_same_name_have_a_bar_each():
    fates = drawn(report(file("a/rows.jsonl", 3), file("b/rows.jsonl", 4)))[2]
    assert [width for *_, width in bars(fates)] == [3, 4]
    assert len({bar.get_y() for bar in fates.patches}) == 2


@pytest.mark.parametrize(
    "name", ["$x$.jsonl", r"a_b^c$\frac$.jsonl", "$1_000 {x}%.csv", "#&~.json"]
)
def test_names_are_shown_as_they_are(name):
    fates = drawn(report(file(f"data/{name}")))[2]
    [label] = fates.get_yticklabels()
    assert label.get_text() == f"{name} (train)"
    assert not label.get_parse_math()


def test_of_many_files_the_first_are_drawn_and_the_others_counted():
    fates = drawn(report(*(file(f"{i}.jsonl") for i in range(40))))[2]
    assert fates.get_title(loc="left") == "Rows of each file (and 32 more files)"
    assert len(bars(fates)) == 8


@pytest.mark.parametrize("rows", [0, 3])
def test_a_dataset_without_a_usable_row(rows):
    empty = file(rows=rows, kept=0, rejected=rows)
    axes = drawn(report(empty, splits=dict.fromkeys(TITLES, NONE)))
    assert [one.get_legend() for one in axes[:2]] == [None, None]
    assert (axes[2].get_legend() is None) == (rows == 0)


def test_what_to_know_is_written_out_and_never_taken_for_a_formula():
    words = "cost $5 and $6_x, " * 40
    content = report(
        overlap={"valid": {"rows": 2, "exact": 1, "near": 3}},
        faults=[{"code": "weight", "count": 7}], notes=[words], recommendations=["Add rows."],
    )  # fmt: skip
    [text] = drawn(content)[3].texts
    shown = text.get_text()
    for part in (
        "50% carry loss", "validation rows that training has too: 1 exact, 3 near",
        "fault weight: 7", "! cost $5 and $6_x,", "[...]", "! Add rows.",
    ):  # fmt: skip
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 70
