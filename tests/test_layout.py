"""Rows laid one behind the other: every token in its place, common beginnings once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_ft.layout import MIN_SHARED, Layout, lay_out
from tests.fakes import answer_row, example

ROW = st.lists(st.integers(0, 2), min_size=2, max_size=30)  # few tokens: many common beginnings
TREES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 20), ROW).map(
        lambda parts: (
            [[7, 8, 9, 10, 11, 12] * 5, [7] * 25, [8] * 9, []][parts[0]][: parts[1]] + parts[2]
        )
    ),
    min_size=1,
    max_size=9,
)


def seen(layout: Layout) -> list[tuple[int, ...]]:
    """What each token stands for: all the tokens that its attention sees, itself the last."""
    places = [
        (group, member) for group in range(len(layout.groups))
        for member in range(layout.groups[group].count)
    ]  # fmt: skip

    def segment(group: int, member: int) -> list[int]:
        start = layout.groups[group].start + member * layout.groups[group].length
        return list(range(start, start + layout.groups[group].length))

    found: list[tuple[int, ...]] = []
    for group, member in places:
        before = [i for place in layout.groups[group].before for i in segment(*place)]
        own = segment(group, member)
        for count, index in enumerate(own, 1):
            assert index == len(found)
            assert layout.offsets[index] == len(before) + count - 1
            found.append(tuple(layout.tokens[before + own[:count]].tolist()))
    return found


@given(TREES, st.booleans())
def test_every_row_is_there_as_it_was(rows: list[list[int]], share: bool) -> None:
    examples = [answer_row(tokens, 1) for tokens in rows]
    layout = lay_out(examples, share=share)
    contexts = seen(layout)
    assert len(contexts) == len(layout.tokens)
    place = 0
    for tokens in rows:  # targets: each token but the first, seen after all before it
        for at in range(1, len(tokens)):
            assert contexts[layout.positions[place]] == tuple(tokens[:at])
            assert layout.labels[place] == tokens[at]
            place += 1
    assert place == len(layout.positions)


@given(TREES)
def test_what_is_common_lies_once(rows: list[list[int]]) -> None:
    layout = lay_out([answer_row(tokens, 1) for tokens in rows], share=True)
    prefixes = {tuple(tokens[:at]) for tokens in rows for at in range(1, len(tokens))}
    contexts = seen(layout)
    # Beginnings shorter than MIN_SHARED past the last branch may be there more than once.
    assert prefixes == set(contexts)
    assert len(contexts) <= len(prefixes) + len(rows) * len(rows) * (MIN_SHARED - 1)
    apart = lay_out([answer_row(tokens, 1) for tokens in rows], share=False)
    assert len(apart.tokens) == sum(len(tokens) - 1 for tokens in rows)


def test_a_prompt_eight_times_is_one_segment_and_equal_answers_one_group() -> None:
    prompt = list(range(100, 120))
    layout = lay_out([answer_row([*prompt, row, *range(5)], 20) for row in range(8)], share=True)
    assert [(g.count, g.length, g.offset) for g in layout.groups] == [(1, 20, 0), (8, 5, 20)]
    assert layout.groups[1].before == ((0, 0),)
    # The first token of each answer is predicted at the one last token of the prompt.
    assert (layout.positions == 19).sum() == 8
    assert sorted(layout.labels[layout.positions == 19]) == list(range(8))


def test_equal_rows_are_computed_once_and_count_each() -> None:
    row = answer_row(range(12), 4)
    layout = lay_out([row, row, row], share=True)
    assert len(layout.tokens) == 11
    assert len(layout.positions) == 3 * 8


def test_origins_name_a_row_that_has_the_token_there() -> None:
    rows = [[*range(10), 1, 2, 3], [*range(10), 4, 5], [9, 9, 9]]
    layout = lay_out([answer_row(tokens, 1) for tokens in rows], share=True)
    for token, origin, offset in zip(layout.tokens, layout.origins, layout.offsets, strict=True):
        assert rows[origin][offset] == token


def test_a_row_without_targets_has_none() -> None:
    layout = lay_out([example([1, 2, 3], [False] * 3)], share=True)
    assert layout.positions.shape == layout.labels.shape == (0,)
    assert layout.labels.dtype == np.int32


def test_rows_that_branch_off_one_another_without_end() -> None:
    longest = list(range(250)) * 40
    rows = [answer_row([*longest[: 9 * turn], 251, 252], 1) for turn in range(1, 1000)]
    layout = lay_out(rows, share=True)
    assert len(layout.positions) == sum(len(row.tokens) - 1 for row in rows)
