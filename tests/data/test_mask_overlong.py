"""Rows that are too long: what is kept is told, and no target is lost or learned twice."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ft.data.chat import EncodeOptions, encode_rows
from mlx_ft.data.overlong import OVERLONG
from mlx_ft.data.rows import RowError

from .conftest import LLAMA3, THINKING_MARKED, chatml, conversation, unmarked
from .test_mask import FOUR, encoded, fault, parts, weighted
from .test_mask import said as turns

SYSTEM = conversation("Sky?", "Blue.", "Grass?", "Green.", "Sea?", "Deep.", system="Short.")
TEXT = conversation(text="The sky is blue, and the grass is green, as it always was.")


def length(row, tokenizer):
    return len(encoded(row, tokenizer).examples[0].tokens)


def test_error_and_drop(tokenizers):
    tokenizer = tokenizers["chatml"]
    size = length(SYSTEM, tokenizer)
    for overlong in OVERLONG:
        row = encoded(SYSTEM, tokenizer, size=size, overlong=overlong)
        assert (row.status, row.cut_tokens, len(row.examples)) == ("kept", 0, 1)
    assert fault(SYSTEM, tokenizer, size=size - 1, overlong="error") == (
        "overlong", f"the row has {size} tokens, memory_profile.max_seq_length is {size - 1}",
    )  # fmt: skip
    dropped = encoded(SYSTEM, tokenizer, size=size - 1, overlong="drop")
    assert (dropped.status, dropped.code, dropped.cut_tokens, dropped.examples) == (
        "rejected", "overlong", size, (),
    )  # fmt: skip


def test_drop_leaves_the_short_answers_of_a_row():
    tokenizer = chatml(unmarked(THINKING_MARKED))
    row = conversation("1?", "2", "2?", "<think>b</think>3, and more than before", "3?", "4")
    lengths = [len(example.tokens) for example in encoded(row, tokenizer).examples]
    kept = encoded(row, tokenizer, size=max(lengths) - 1, overlong="drop")
    assert kept.status == "truncated"
    assert kept.cut_tokens == max(lengths)
    assert [len(e.tokens) for e in kept.examples] == [n for n in lengths if n < max(lengths)]


def test_left_keeps_bos_and_system_and_whole_turns(tokenizers):
    tokenizer = tokenizers["llama3"]
    size = length(SYSTEM, tokenizer)
    without_first = dataclasses.replace(SYSTEM, messages=SYSTEM.messages[:1] + SYSTEM.messages[3:])
    expected = encoded(without_first, tokenizer).examples[0]
    row = encoded(SYSTEM, tokenizer, size=size - 1, overlong="truncate_left")
    assert row.status == "truncated"
    assert row.cut_tokens == size - len(expected.tokens) == row.examples[0].truncated
    assert row.examples[0].tokens.tolist() == expected.tokens.tolist()
    assert row.examples[0].targets.tolist() == expected.targets.tolist()
    last = dataclasses.replace(SYSTEM, messages=SYSTEM.messages[-2:])
    shortest = encoded(last, tokenizer).examples[0]
    row = encoded(SYSTEM, tokenizer, size=len(shortest.tokens), overlong="truncate_left")
    assert row.examples[0].tokens.tolist() == shortest.tokens.tolist()
    row = encoded(SYSTEM, tokenizer, size=len(shortest.tokens) - 1, overlong="truncate_left")
    tokens = row.examples[0].tokens.tolist()
    assert tokens == [tokenizer.bos_token_id, *shortest.tokens.tolist()[2:]]
    assert parts(row.examples[0], tokenizer)[1] == "Deep.<|eot_id|>"


def test_left_of_raw_text_and_of_separate_answers(tokenizers):
    llama = tokenizers["llama3"]
    whole = encoded(TEXT, llama).examples[0].tokens.tolist()
    row = encoded(TEXT, llama, size=9, overlong="truncate_left")
    assert row.examples[0].tokens.tolist() == [llama.bos_token_id, *whole[-8:]]
    assert row.cut_tokens == len(whole) - 9
    tokenizer = chatml(unmarked(THINKING_MARKED))
    talk = conversation("1?", "<think>a</think>2", "2?", "<think>b</think>3")
    alone = dataclasses.replace(talk, messages=talk.messages[2:])
    expected = encoded(alone, tokenizer).examples[0].tokens.tolist()
    row = encoded(talk, tokenizer, size=len(expected), overlong="truncate_left")
    assert [parts(e, tokenizer)[1] for e in row.examples] == [
        "<think>a</think>2<|im_end|>", "<think>b</think>3<|im_end|>",
    ]  # fmt: skip
    assert row.examples[1].tokens.tolist() == expected


def test_right_may_leave_no_target(tokenizers):
    tokenizer = tokenizers["chatml"]
    first = int(encoded(SYSTEM, tokenizer).examples[0].targets.argmax())
    row = encoded(SYSTEM, tokenizer, size=first + 1)
    assert (row.status, int(row.examples[0].targets.sum())) == ("truncated", 1)
    code, sentence = fault(SYSTEM, tokenizer, size=first)
    total = len(encoded(SYSTEM, tokenizer).examples[0].tokens)
    assert code == "cut_off"
    assert sentence == (
        f"nothing to learn is left of the row: what is to be learned begins after {first} of its "
        f"{total} tokens; memory_profile.max_seq_length is {first} (data.overlong=truncate_right)"
    )


def test_left_may_leave_no_target(tokenizers):
    tokenizer = tokenizers["chatml"]
    row = turns(("user", "a"), ("assistant", "b"), ("user", "c " * 40))
    code, sentence = fault(row, tokenizer, size=30, overlong="truncate_left")
    assert code == "cut_off"
    assert "no answer lies within the last 30 of its" in sentence


def test_an_answer_of_weight_0_is_not_what_is_to_be_learned(tokenizers):
    row = weighted(FOUR, 1, 0, 1, 1, 1, 1)
    first = int(encoded(row, tokenizers["chatml"]).examples[0].targets.argmax())
    code, sentence = fault(row, tokenizers["chatml"], size=first)
    assert (code, f"begins after {first} of" in sentence) == ("cut_off", True)


said = st.lists(st.text("ab. é漢\n", min_size=1, max_size=40).filter(str.strip), min_size=2,
                max_size=6).map(lambda s: s[: len(s) // 2 * 2])  # fmt: skip


@settings(max_examples=150)
@given(
    said=said,
    size=st.integers(4, 60),
    family=st.sampled_from(["chatml", "llama3", "gemma", "plain"]),
    raw=st.booleans(),
)
def test_split_learns_every_target_once_with_what_precedes_it(tokenizers, said, size, family, raw):
    tokenizer = tokenizers[family]
    row = conversation(text="".join(said)) if raw else conversation(*said)
    (whole,) = encoded(row, tokenizer, size=99999).examples
    found = encoded(row, tokenizer, size=size, overlong="split")
    tokens, targets = whole.tokens.tolist(), np.flatnonzero(whole.targets).tolist()
    # ChatML's BOS here opens every turn: it begins no window.
    bos = tokenizer.bos_token_id if family in ("llama3", "gemma") else None
    learned, covered = [], set()
    for example in found.examples:
        assert len(example.tokens) <= size
        assert example.targets.any()
        assert not example.targets[0]
        mine = np.flatnonzero(example.targets).tolist()
        # Where in the row the window lies: its first target is the next one to be learned.
        start = targets[len(learned)] - mine[0]
        shift = int(start > 0 and bos is not None)
        end = start + len(example.tokens)
        assert example.tokens.tolist()[shift:] == tokens[start + shift : end]
        if shift:
            assert example.tokens[0] == bos
        learned += [start + i for i in mine]
        covered.update(range(start, end))
        context = mine[0]
        assert context >= min(start + mine[0], 1 if raw else size // 2)
    assert learned == targets
    assert found.cut_tokens == len(tokens) - len(covered)
    assert found.status == ("truncated" if found.cut_tokens else "kept")
    assert sum(example.endless for example in found.examples) == whole.endless


@settings(max_examples=100)
@given(
    talks=st.lists(said, min_size=1, max_size=4),
    size=st.integers(2, 60),
    overlong=st.sampled_from(OVERLONG),
    train_on=st.sampled_from(["assistant", "last", "all"]),
    template=st.sampled_from([unmarked(LLAMA3), unmarked(THINKING_MARKED)]),
)
def test_every_row_is_kept_truncated_or_rejected(talks, size, overlong, train_on, template):
    rows = [conversation(*talk) for talk in talks]
    results = encode_rows(rows, chatml(template), EncodeOptions(size, train_on, overlong))
    assert len(results) == len(rows)
    for result in results:
        if isinstance(result, RowError):
            assert result.found[0].code in ("overlong", "cut_off")
        elif result.status == "rejected":
            assert (overlong, result.code, result.examples) == ("drop", "overlong", ())
        else:
            assert result.examples
            assert (result.status == "truncated") == (result.cut_tokens > 0)
            for example in result.examples:
                assert 0 < len(example.tokens) <= size
                assert example.targets.any()


@pytest.mark.parametrize("overlong", ["truncate_left", "truncate_right", "split"])
def test_all_tokens_of_a_cut_row_are_learned(tokenizers, overlong):
    row = encoded(SYSTEM, tokenizers["chatml"], size=40, train_on="all", overlong=overlong)
    first = row.examples[0]
    assert first.targets.tolist() == [False] + [True] * (len(first.tokens) - 1)
