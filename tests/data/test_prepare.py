"""Whole datasets: every row accounted for, from files to examples, fresh and from the cache."""

import copy
import gc
import hashlib
import json
import logging
import os
import re
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_ft import store
from mlx_ft.config.schema import DataConfig
from mlx_ft.data import build, sources
from mlx_ft.data import prepare as preparing
from mlx_ft.data.chat import encode
from mlx_ft.data.formats import parse
from mlx_ft.data.prepare import prepare
from mlx_ft.data.rows import Record
from mlx_ft.errors import DataError


def pair(question, answer="Yes.", **more):
    return {"prompt": f"{question}?", "completion": answer, **more}


def rows(count, **more):
    return [pair(f"Question {i}", **more) for i in range(count)]


def prompts(conversations):
    return [row.messages[0].content for row in conversations]


@pytest.fixture
def prepared(tokenizers, tmp_path):
    def call(path, tokenizer="chatml", length=99, seed=1, accept_faults=False, **keys):
        given = path if isinstance(path, list) else str(path)
        own = copy.deepcopy(tokenizers[tokenizer])  # the template is installed in it
        return prepare(
            DataConfig(path=given, **keys), own, length, seed, tmp_path / "cache",
            accept_faults=accept_faults,
        )  # fmt: skip

    return call


def test_a_folder_as_it_is(write, tmp_path, prepared):
    for name, count in (("train", 5), ("valid", 3), ("test", 2)):
        write(f"set/{name}.jsonl", *[pair(f"{name} {i}") for i in range(count)])
    dataset = prepared(tmp_path / "set")
    assert [len(part) for part in (dataset.train, dataset.valid, dataset.test)] == [5, 3, 2]
    assert dataset.train.rows["line"].tolist() == [1, 2, 3, 4, 5]
    assert prompts(dataset.test) == ["test 0?", "test 1?"]
    assert dataset.test[1].messages[0].content == "test 1?"
    assert prompts(dataset.test[1:]) == ["test 1?"]
    assert dataset.report["notes"] == []


def test_tokens_and_targets_are_those_of_each_row_by_itself(write, prepared, tokenizers):
    data = [pair("b", "cc"), {"text": "raw"}, pair("long " * 40, "answer")]
    dataset = prepared(write("a.jsonl", *data), valid_fraction=0, length=500)
    for i, fields in enumerate(data):
        expected = encode(parse(Record(fields, "a", i)), tokenizers["chatml"], 500)
        assert dataset.train[i].tokens.tolist() == expected.tokens.tolist()
        assert dataset.train[i].targets.tolist() == expected.targets.tolist()
    assert dataset.train.lengths.tolist() == [len(one.tokens) for one in dataset.train]


def test_statistics_against_a_count_by_hand(write, prepared, tokenizers):
    tokenizer = tokenizers["plain"]
    path = write("a.jsonl", {"text": "a"}, pair("b", "cc"), pair("b", "cc"))
    valid = write("b.jsonl", pair("d"))
    stats = prepared(path, "plain", valid_path=str(valid)).stats["train"]
    one = len(tokenizer.encode("a", add_special_tokens=False)) + 1
    prompt = len(tokenizer.encode("b?\n", add_special_tokens=False))
    two = prompt + len(tokenizer.encode("cc", add_special_tokens=False)) + 1
    tokens, targets = one + 2 * two, one - 1 + 2 * (two - prompt)
    assert {key: stats[key] for key in ("rows", "turns", "duplicates", "near_duplicates")} == {
        "rows": 3, "turns": 5, "duplicates": 1, "near_duplicates": 0
    }  # fmt: skip
    assert (stats["tokens"], stats["target_tokens"]) == (tokens, targets)
    assert stats["loss_share"] == pytest.approx(targets / tokens)
    assert (stats["length"]["min"], stats["length"]["max"]) == (min(one, two), max(one, two))
    assert stats["length"]["mean"] == pytest.approx(tokens / 3, abs=0.01)
    assert sum(stats["length"]["histogram"]["counts"]) == 3
    assert (stats["answers"], stats["endless_turns"], stats["stop_coverage"]) == (3, 0, 1.0)


def test_all_faults_of_all_files_at_once(write, prepared):
    train = write("train.jsonl", pair("a"), b"{", {"x": 1}, *[{"text": 3}] * 30)
    valid = write("valid.jsonl", b'{"text": "a", "text": "b"}')
    with pytest.raises(DataError) as error:
        prepared(train, valid_path=str(valid))
    assert "33 of 34 rows are faulty" in error.value.message
    faults = error.value.faults
    assert faults[0].startswith(f"{train}:2: ")
    assert faults[1].startswith(f"{train}:3: no known format")
    assert faults[-1].startswith("... and ")
    assert error.value.exit_code == 2


def test_faults_that_only_the_tokenizer_shows_are_in_the_same_list(write, prepared):
    train = write("train.jsonl", pair("a"), b"{", pair("long " * 30))
    with pytest.raises(DataError) as error:
        prepared(train, "mistral", 40, valid_fraction=0)
    assert [fault.split(": ")[0] for fault in error.value.faults] == [f"{train}:2", f"{train}:3"]
    assert "memory_profile.max_seq_length is 40" in error.value.faults[1]


def test_some_faults_may_be_left_out_and_lie_in_the_quarantine(write, prepared, caplog):
    bad = ["{", '{"x": 1}', '{"text": 3}']
    path = write("a.jsonl", *rows(20), *[line.encode() for line in bad])
    with pytest.raises(DataError, match=r"more than data\.max_errors=10% allows"):
        prepared(path, max_errors="10%")
    dataset = prepared(path, max_errors="15%", valid_fraction=0)
    assert len(dataset.train) == 20
    assert "3 of 23 rows are faulty and left out" in caplog.text
    assert [json.loads(line) if i else line for i, line in
            enumerate(dataset.quarantine.read_text().splitlines())] == [
        bad[0], *map(json.loads, bad[1:])
    ]  # fmt: skip
    assert [fault["code"] for fault in dataset.report["faults"]] == [
        "json_syntax", "no_format", "wrong_type",
    ]  # fmt: skip


def test_undesirable_rows_are_set_aside_and_counted(write, prepared, caplog):
    good = [pair(f"good {i}", label=True) for i in range(7)]
    bad = [pair(f"bad {i}", label=False) for i in range(3)]
    dataset = prepared(write("a.jsonl", *good, *bad), valid_fraction=0)
    assert len(dataset.train) == 7
    assert dataset.stats["train"]["labels"] == {"desirable": 7, "undesirable": 3}
    counts = dataset.report["rows"]
    assert (counts["rows"], counts["kept"], counts["set_aside"]) == (10, 10, 3)
    assert "3 of 10 rows are labelled undesirable and left aside" in caplog.text
    assert "learns from the 7 others" in caplog.text


@pytest.mark.parametrize(
    ("overlong", "counts", "examples"),
    [
        ("truncate_right", (3, 1, 0, 0), 4),
        ("truncate_left", (3, 1, 0, 0), 4),
        ("drop", (3, 0, 1, 1), 3),
        ("split", (4, 0, 0, 0), 5),
    ],
)
def test_rows_too_long(write, prepared, overlong, counts, examples):
    path = write("a.jsonl", *rows(3), {"text": "word " * 80})
    dataset = prepared(path, length=150, overlong=overlong, valid_fraction=0)
    found = dataset.report["rows"]
    assert tuple(found[key] for key in ("kept", "truncated", "rejected", "dropped")) == counts
    if overlong == "split":
        assert len(dataset.train) >= examples
        assert dataset.report["notes"]
    else:
        assert len(dataset.train) == examples
    assert dataset.train.lengths.max() <= 150


def test_too_long_is_an_error_when_that_is_asked_for(write, prepared):
    path = write("a.jsonl", *rows(3), {"text": "word " * 80})
    with pytest.raises(DataError, match=r"1 of 4 rows are faulty"):
        prepared(path, length=150, overlong="error")


def test_rows_that_are_only_too_long_say_what_would_take_them(write, prepared):
    path = write("a.jsonl", *rows(3), pair("long " * 80), pair("longer " * 90))
    with pytest.raises(
        DataError, match=r"2 of 5 rows are faulty.* The faulty rows are only"
    ) as error:
        prepared(path, length=90)
    (longest,) = re.findall(r"memory_profile\.max_seq_length=(\d+) takes", error.value.message)
    assert "data.overlong=drop leaves them out and counts them" in error.value.message
    assert prepared(path, length=int(longest)).report["rows"]["kept"] == 5
    with pytest.raises(DataError, match="The faulty row is only too long"):
        prepared(path, length=int(longest) - 100)
    for overlong, rejected in (("truncate_left", 0), ("drop", 2)):
        counts = prepared(path, length=90, overlong=overlong).report["rows"]
        assert (counts["rejected"], counts["dropped"]) == (rejected, rejected)
    mixed = write("b.jsonl", *rows(3), pair("long " * 80), b"{")
    with pytest.raises(DataError, match=r"faulty.* 1 of the 2 faulty rows is only too long: "):
        prepared(mixed, length=90)
    report = prepared(mixed, length=90, accept_faults=True).report
    assert any("1 of the 2 faulty rows is only" in text for text in report["recommendations"])


def test_a_test_row_may_be_longer_than_training_allows(write, prepared):
    train = write("train.jsonl", *rows(4))
    test = write("test.jsonl", pair("long " * 50))
    assert len(prepared(train, length=60, test_path=str(test)).test) == 1


def test_a_row_without_an_answer_cannot_be_judged(write, prepared):
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    train = write("train.jsonl", *rows(4))
    test = write("test.jsonl", {"text": "raw"}, pair("b"), {"messages": turns})
    assert prepared(train, test_path=str(test)).report["rows"]["rejected"] == 0
    with pytest.raises(DataError) as error:
        prepared(train, test_path=str(test), metric="exact_match")
    where = [fault.split(": ")[0] for fault in error.value.faults]
    assert where == [f"{test}:{line}" for line in (1, 3)]


def test_without_validation_rows(write, prepared):
    dataset = prepared(write("a.jsonl", *rows(4)), valid_fraction=0)
    assert [len(part) for part in (dataset.train, dataset.valid, dataset.test)] == [4, 0, 0]
    assert dataset.stats["valid"]["tokens"] == 0


def test_a_single_file_is_split_and_its_validation_rows_are_the_test(write, prepared):
    dataset = prepared(write("a.jsonl", *rows(40)), valid_fraction=0.25)
    assert [len(part) for part in (dataset.train, dataset.valid, dataset.test)] == [30, 10, 10]
    assert [row.record.line for row in dataset.test] == dataset.valid.rows["line"].tolist()
    lines = dataset.train.rows["line"].tolist() + dataset.valid.rows["line"].tolist()
    assert sorted(lines) == list(range(1, 41))


def test_weights_follow_the_sources(write, prepared):
    a, b = write("a.jsonl", *rows(4)), write("b.jsonl", *[pair(f"other {i}") for i in range(6)])
    mixture = [{"path": str(a), "weight": 2.0}, {"path": str(b), "weight": 0.5}]
    dataset = prepared(mixture, valid_fraction=0)
    assert dataset.weights.tolist() == [2.0] * 4 + [0.5] * 6


def test_leaks_and_repeats_are_said_with_their_places(write, tmp_path, prepared, caplog):
    words = [f"w{i}" for i in range(60)]
    near = " ".join([*words[:30], "changed", *words[31:]])
    write("set/train.jsonl", *rows(3), pair("Question 0"), pair("z", " ".join(words)))
    write("set/valid.jsonl", pair("question  1"), pair("new"), pair("z", near))
    with caplog.at_level(logging.INFO, "mlx_ft.data"):
        dataset = prepared(tmp_path / "set")
    overlap = dataset.report["overlap"]["valid"]
    assert (overlap["rows"], overlap["exact"], overlap["near"]) == (3, 1, 1)
    places = [[place.rsplit("/", 1)[1] for place in pair] for pair in overlap["first"]]
    assert places == [["valid.jsonl:1", "train.jsonl:2"], ["valid.jsonl:3", "train.jsonl:5"]]
    assert "1 of 5 training rows repeat another one." in caplog.messages
    assert "Of 3 validation rows 1 are also training rows and 1 say nearly what" in caplog.text


@pytest.mark.parametrize(("count", "said"), [(49, True), (50, False)])
def test_a_likeness_in_very_few_rows_is_a_figure_only(write, tmp_path, prepared, count, said):
    words = [f"w{i}" for i in range(60)]
    near = " ".join([*words[:30], "changed", *words[31:]])
    write("set/train.jsonl", *rows(3), pair("z", " ".join(words)))
    others = [pair(f"Other {i}") for i in range(count - 1)]
    write("set/valid.jsonl", *others, pair("z", near))
    report = prepared(tmp_path / "set").report
    assert (report["overlap"]["valid"]["rows"], report["overlap"]["valid"]["near"]) == (count, 1)
    assert any("may flatter" in note for note in report["notes"]) == said


def test_the_second_time_comes_from_the_cache_and_is_the_same(write, prepared, monkeypatch):
    path = write("a.jsonl", *rows(50), {"text": "word " * 80})
    first = prepared(path, length=150)
    monkeypatch.setattr(build.Job, "write", lambda *_: pytest.fail("encoded again"))
    again = prepared(path, length=150)
    assert again.report == first.report
    assert again.report["rows"]["truncated"] == 1
    for name in ("train", "valid"):
        old, new = getattr(first, name), getattr(again, name)
        assert [one.tokens.tolist() for one in old] == [one.tokens.tolist() for one in new]
        assert [one.targets.tolist() for one in old] == [one.targets.tolist() for one in new]


@pytest.mark.parametrize(
    "change",
    [
        {"length": 60},
        {"seed": 2},
        {"tokenizer": "llama3"},
        {"template": "chatml"},
        {"train_on": "all"},
        {"overlong": "drop"},
        {"valid_fraction": 0.5},
        {"format": "prompt_completion"},
    ],
    ids=str,
)
def test_whatever_decides_the_tokens_makes_another_cache_entry(write, prepared, change):
    path = write("a.jsonl", *rows(20))
    first = prepared(path)
    assert prepared(path, **change).encoded.folder != first.encoded.folder
    assert prepared(path).encoded.folder == first.encoded.folder


def test_a_changed_file_is_read_again(write, prepared):
    first = prepared(write("a.jsonl", *rows(20)))
    second = prepared(write("a.jsonl", *rows(21)))
    assert first.digest != second.digest
    assert second.report["rows"]["rows"] == 21


def test_a_damaged_cache_entry_is_made_again(write, prepared, caplog):
    path = write("a.jsonl", *rows(20))
    first = prepared(path)
    tokens = [one.tokens.tolist() for one in first.train]
    with (first.encoded.folder / "tokens.i32").open("ab") as file:
        file.write(b"more")
    again = prepared(path)
    assert "is damaged" in caplog.text
    assert [one.tokens.tolist() for one in again.train] == tokens


def test_cache_entries_that_nobody_uses_go(write, prepared):
    old = prepared(write("a.jsonl", *rows(20))).encoded.folder
    month = time.time() - 40 * 86400
    os.utime(old / store.MANIFEST, (month, month))
    prepared(write("a.jsonl", *rows(21)))
    assert not old.exists()


def test_without_a_cache_nothing_stays(write, prepared, tmp_path):
    dataset = prepared(write("a.jsonl", *rows(20)), cache=False)
    assert len(dataset.train) == 18
    assert not (tmp_path / "cache").exists()
    folder = dataset.encoded.folder
    assert folder.is_dir()
    del dataset
    gc.collect()
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_is_said_and_does_without(
    write, tmp_path, tokenizers, caplog
):
    path = write("a.jsonl", *rows(20))
    (tmp_path / "file").write_text("")
    dataset = prepare(
        DataConfig(path=str(path)), tokenizers["chatml"], 99, 1, tmp_path / "file" / "cache"
    )
    assert len(dataset.train) == 18
    assert "cannot be written" in caplog.text


LINES = st.one_of(
    st.builds(lambda n: json.dumps(pair(f"Q {n}")).encode(), st.integers(0, 30)),
    st.builds(lambda n: json.dumps({"text": "word " * n}).encode(), st.integers(0, 60)),
    st.builds(lambda b: json.dumps(pair("x", label=b)).encode(), st.booleans()),
    st.binary(max_size=30).filter(lambda raw: b"\n" not in raw and b"\r" not in raw),
    st.sampled_from(
        [b"", b"{}", b"[]", b'{"text": NaN}', b'{"messages": []}', b'{"text": "\\ud800"}']
    ),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(LINES, max_size=25),
    st.sampled_from(["error", "drop", "truncate_left", "truncate_right", "split"]),
    st.sampled_from(["assistant", "last", "all"]),
)
def test_kept_and_truncated_and_rejected_are_all_rows(
    prepared, tmp_path, lines, overlong, train_on
):
    path = tmp_path / f"{hashlib.sha256(repr(lines).encode()).hexdigest()[:12]}.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        dataset = prepared(
            path, length=80, overlong=overlong, train_on=train_on, cache=False, accept_faults=True
        )
    except DataError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert "no rows" in refused or "cannot be split" in refused
        return
    counts = dataset.report["rows"]
    assert counts["kept"] + counts["truncated"] + counts["rejected"] == counts["rows"]
    assert counts["rows"] <= max(1, len(lines))  # a file without rows is itself a fault
    quarantined = dataset.quarantine.read_bytes() if dataset.quarantine.exists() else b""
    assert bool(quarantined) == (counts["rejected"] > counts["dropped"])
    for example in (*dataset.train, *dataset.valid):
        assert 1 < len(example.tokens) <= 80
        assert example.targets[1:].any()


def test_look_finds_the_same_faulty_rows_without_a_tokenizer(write):
    path = write("a.jsonl", pair("a"), b"{", {"x": 1})
    config = DataConfig(path=str(path))
    with pytest.raises(DataError) as error:
        build.look(sources.find(config), config)
    assert [fault.split(": ")[0] for fault in error.value.faults] == [f"{path}:2", f"{path}:3"]
    config.max_errors = 2
    build.look(sources.find(config), config)


def test_a_token_beyond_the_vocabulary_is_found_with_its_row(write, prepared):
    dataset = prepared(write("a.jsonl", *rows(3)), valid_fraction=0)
    largest = max(int(one.tokens.max()) for one in dataset.train)
    assert dataset.beyond(largest + 1) == []
    holders = [i for i, one in enumerate(dataset.train) if (one.tokens == largest).any()]
    assert [int(place.split(":")[-2]) - 1 for place in dataset.beyond(largest)] == holders
    assert np.all([f"token {largest}" in place for place in dataset.beyond(largest)])
    assert preparing.VERSION
