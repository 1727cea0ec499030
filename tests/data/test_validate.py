import hashlib
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ft.config.schema import DataConfig
from mlx_ft.data.formats import fingerprint, parse
from mlx_ft.data.load import Record
from mlx_ft.data.validate import check, encode_all, prepare, split
from mlx_ft.errors import DataError

from .conftest import conversation


def pair(question, answer="Yes.", **more):
    return {"prompt": f"{question}?", "completion": answer, **more}


def rows(count, **more):
    return [pair(f"Question {i}", **more) for i in range(count)]


def parsed(*fields):
    return [parse(Record(row, "a.jsonl", i)) for i, row in enumerate(fields, start=1)]


def prompts(conversations):
    return [row.messages[0].content for row in conversations]


def test_a_folder_as_it_is(write, tmp_path, tokenizers):
    for name, count in (("train", 5), ("valid", 3), ("test", 2)):
        write(f"set/{name}.jsonl", *[pair(f"{name} {i}") for i in range(count)])
    folder = tmp_path / "set"
    dataset = prepare(DataConfig(path=str(folder)), tokenizers["chatml"], 99, seed=1)
    assert [len(part) for part in (dataset.train, dataset.valid, dataset.test)] == [5, 3, 2]
    assert [example.record.line for example in dataset.train] == [1, 2, 3, 4, 5]
    assert prompts(dataset.test) == ["test 0?", "test 1?"]
    assert dataset.notes == ()
    digests = [
        hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest()
        for name in ("train", "valid", "test")
    ]
    assert dataset.digest == hashlib.sha256("\0".join(digests).encode()).hexdigest()


def test_statistics_against_a_count_by_hand(write, tokenizers):
    tokenizer = tokenizers["plain"]
    path = write("a.jsonl", {"text": "a"}, pair("b", "cc"), pair("b", "cc"))
    valid = write("b.jsonl", pair("d"))
    config = DataConfig(path=str(path), valid_path=str(valid))
    stats = prepare(config, tokenizer, 99, seed=1).stats["train"]
    one = len(tokenizer.encode("a", add_special_tokens=False)) + 1
    prompt = len(tokenizer.encode("b?\n", add_special_tokens=False))
    two = prompt + len(tokenizer.encode("cc", add_special_tokens=False)) + 1
    assert stats == {
        "rows": 3,
        "turns": 5,
        "duplicates": 1,
        "tokens": one + 2 * two,
        "target_tokens": one - 1 + 2 * (two - prompt),
        "length_min": one,
        "length_mean": pytest.approx((one + 2 * two) / 3),
        "length_p95": two,
        "length_max": two,
        "truncated_rows": 0,
        "truncated_tokens": 0,
        "endless_turns": 0,
    }


def test_all_faults_of_all_files_at_once(write):
    train = write("train.jsonl", pair("a"), b"{", {"x": 1}, *[{"text": 3}] * 30)
    valid = write("valid.jsonl")
    config = DataConfig(path=str(train), valid_path=str(valid))
    with pytest.raises(DataError) as error:
        check(config, seed=1)
    assert "33 fault(s)" in error.value.message
    faults = error.value.faults
    assert len(faults) == 16
    assert faults[0].startswith(f"{train}:2: not JSON")
    assert faults[1].startswith(f"{train}:3: no known format")
    assert faults[2] == f"{train}:4: text is not a string but a number"
    assert faults[-1] == "... and 18 more"
    assert error.value.exit_code == 2


def test_faults_that_only_the_tokenizer_shows_are_collected_too(write, tokenizers):
    system = {"role": "system", "content": "Short."}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    refused = {"messages": [system, *turns]}
    train = write("train.jsonl", {"messages": turns}, refused, pair("long " * 30))
    test = write("test.jsonl", refused)
    config = DataConfig(path=str(train), valid_path=str(train), test_path=str(test))
    with pytest.raises(DataError) as error:
        prepare(config, tokenizers["mistral"], 40, seed=1)
    where = [fault.split(": ")[0] for fault in error.value.faults]
    assert where == [f"{train}:2", f"{train}:3", f"{train}:2", f"{train}:3", f"{test}:1"]
    assert "memory_profile.max_seq_length is 40" in error.value.faults[1]


def test_a_test_row_may_be_longer_than_training_allows(write, tokenizers):
    train = write("train.jsonl", *rows(4))
    test = write("test.jsonl", pair("long " * 50))
    config = DataConfig(path=str(train), test_path=str(test))
    assert len(prepare(config, tokenizers["chatml"], 60, seed=1).test) == 1


def test_a_row_without_an_answer_cannot_be_judged(write):
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    train = write("train.jsonl", *rows(4))
    test = write("test.jsonl", {"text": "raw"}, pair("b"), {"messages": turns})
    config = DataConfig(path=str(train), test_path=str(test))
    assert len(check(config, seed=1).test) == 3
    config.metric = "exact_match"
    with pytest.raises(DataError) as error:
        check(config, seed=1)
    sentence = "does not end in an assistant turn, which data.metric would judge"
    assert list(error.value.faults) == [f"{test}:{line}: {sentence}" for line in (1, 3)]


def test_without_validation_rows(write, tokenizers):
    path = write("a.jsonl", *rows(4))
    dataset = prepare(DataConfig(path=str(path), valid_fraction=0), tokenizers["chatml"], 99, 1)
    assert [len(part) for part in (dataset.train, dataset.valid, dataset.test)] == [4, 0, 0]
    assert dataset.stats["valid"]["tokens"] == 0


def test_a_single_file_is_split_and_its_validation_rows_are_the_test(write, tokenizers):
    path = write("a.jsonl", *rows(40))
    config = DataConfig(path=str(path), valid_fraction=0.25)
    dataset = prepare(config, tokenizers["chatml"], 99, seed=1)
    assert [len(part) for part in (dataset.train, dataset.valid, dataset.test)] == [30, 10, 10]
    assert [row.record.line for row in dataset.test] == [e.record.line for e in dataset.valid]
    assert dataset.stats["valid_from_train"] == 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.sampled_from(["x", "y", None])), min_size=2, max_size=60
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_a_split_loses_nothing_and_shares_nothing(drawn, fraction, seed):
    conversations = parsed(*[pair(f"Q {n}", label=label) for n, label in drawn])
    if len({n for n, _ in drawn}) < 2:
        with pytest.raises(DataError, match=r"cannot be split.*data\.valid_fraction=0"):
            split(conversations, fraction, seed)
        return
    train, valid = split(conversations, fraction, seed)
    assert train
    assert valid
    lines = [row.record.line for row in train], [row.record.line for row in valid]
    assert sorted(lines[0] + lines[1]) == list(range(1, len(drawn) + 1))
    assert lines == (sorted(lines[0]), sorted(lines[1]))
    assert not {fingerprint(row) for row in train} & {fingerprint(row) for row in valid}
    assert not set(prompts(train)) & set(prompts(valid))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_side_of_a_split_is_empty(fraction):
    assert list(map(len, split(parsed(*rows(2)), fraction, seed=1))) == [1, 1]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_a_split_takes_its_share_of_each_label(fraction):
    data = [pair(f"Q {i}", label="rare" if i % 10 == 0 else "common") for i in range(400)]
    _, valid = split(parsed(*data), fraction, seed=3)
    labels = [row.label for row in valid]
    assert len(labels) == pytest.approx(400 * fraction, abs=1)
    assert labels.count("rare") == pytest.approx(40 * fraction, abs=1)


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    data = rows(200)
    chosen = prompts(split(parsed(*data), 0.1, 1)[1])
    assert sorted(prompts(split(parsed(*reversed(data)), 0.1, 1)[1])) == sorted(chosen)
    other = prompts(split(parsed(*data), 0.1, 2)[1])
    assert len(set(chosen) & set(other)) < 10


def test_rows_that_differ_in_case_and_space_are_the_same():
    first, second, third = parsed(pair("The  sky", "Blue"), pair("the sky", "blue"), pair("sky"))
    assert fingerprint(first) == fingerprint(second) != fingerprint(third)
    assert fingerprint(conversation("a", "b c")) != fingerprint(conversation("a b", "c"))


def test_repeats_leaks_labels_and_unused_files_are_said(write, tmp_path, caplog):
    write("set/train.jsonl", *rows(3), pair("Question 0"), pair("z", label="good", id=5))
    write("set/valid.jsonl", pair("Question 1"), pair("new"))
    write("set/test.jsonl", pair("question 2"))
    write("set/dev.jsonl", pair("new"))
    with caplog.at_level(logging.INFO, "mlx_ft.data"):
        checked = check(DataConfig(path=str(tmp_path / "set")), seed=1)
    assert checked.notes == (
        f"{tmp_path / 'set' / 'dev.jsonl'} is not used; "
        "data.valid_path and data.test_path name files.",
        "1 of 5 training rows repeat another one.",
        "1 of 2 validation rows are also training rows: figures on them flatter the model.",
        "1 of 1 test rows are also training rows: figures on them flatter the model.",
        "Rows carry labels (good 1): the split keeps their shares; all are trained on.",
    )
    assert set(checked.notes) < set(caplog.messages)
    [unused] = [line for line in caplog.messages if "does not look at" in line]
    assert unused.endswith("id (1).")
    assert checked.stats["train"]["duplicates"] == 1


def test_cuts_missing_templates_and_control_tokens_are_said(write, tokenizers):
    path = write("a.jsonl", pair("a", "word " * 20), pair("b", "x</s>y"))
    valid = write("b.jsonl", pair("c"))
    config = DataConfig(path=str(path), valid_path=str(valid))
    checked = check(config, seed=1)
    dataset = encode_all(checked, tokenizers["plain"], 20)
    cut = dataset.stats["train"]["truncated_tokens"]
    whole = encode_all(checked, tokenizers["plain"], 999).train[0]
    assert cut == len(whole.tokens) - 20 > 0
    template, truncated, control = dataset.notes
    assert template.startswith("The model has no chat template")
    assert truncated == (
        "1 of 2 train rows are longer than memory_profile.max_seq_length=20: "
        f"{cut} tokens cut off at their ends."
    )
    assert control.startswith("1 training rows hold text that the tokenizer reads as a control")
    assert control.endswith(f"(one of </s>), first {path}:2.")
