"""What was read is found again, for the longest beginning, within a budget."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlx_ft.engine.prefixes import COUNT, Prefixes


def cache(tokens, kind=KVCache):
    """One whose keys are its tokens."""
    one = kind()
    keys = mx.array(tokens, mx.float32).reshape(1, 1, -1, 1)
    one.update_and_fetch(keys, keys)
    return [one]


def kept(found):
    return found[0].keys[0, 0, : found[0].offset, 0].tolist()


texts = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(texts, max_size=8), texts)
def test_the_longest_beginning_is_found(known, prompt):
    prefixes = Prefixes(1 << 30)
    for tokens in known:
        prefixes.keep("a", tokens, cache(tokens))
    prefixes.keep("b", prompt, cache(prompt))
    found, read = prefixes.find("a", prompt)
    common = [next((at for at, (x, y) in enumerate(zip(tokens, prompt, strict=False)) if x != y),
                   min(len(tokens), len(prompt))) for tokens in known]  # fmt: skip
    assert read == min(max(common, default=0), len(prompt) - 1)
    assert (found is None) == (read == 0)
    if found is not None:
        assert kept(found) == prompt[:read]


def test_a_copy_is_given():
    prefixes = Prefixes(1 << 30)
    prefixes.keep("a", [1, 2, 3], cache([1, 2, 3]))
    found, _ = prefixes.find("a", [1, 2, 9, 9])
    more = mx.full((1, 1, 2, 1), 9.0)
    found[0].update_and_fetch(more, more)
    assert kept(found) == [1, 2, 9, 9]
    assert kept(prefixes.find("a", [1, 2, 3, 4])[0]) == [1, 2, 3]


def test_one_that_cannot_be_cut_is_used_whole_or_not_at_all():
    prefixes = Prefixes(1 << 30)
    full = RotatingKVCache(max_size=2)
    for token in (1, 2, 3):
        full.update_and_fetch(mx.full((1, 1, 1, 1), token), mx.full((1, 1, 1, 1), token))
    prefixes.keep("a", [1], cache([1]))
    prefixes.keep("a", [1, 2, 3], [full])
    assert prefixes.find("a", [1, 2, 3, 4])[1] == 3
    assert prefixes.find("a", [1, 2, 3])[1] == 1  # one token is to be left
    assert prefixes.find("a", [1, 2, 9])[1] == 1


def test_what_was_used_longest_ago_goes_first():
    one = sum(layer.nbytes for layer in cache([0, 0]))
    prefixes = Prefixes(2 * one)
    for token in (1, 2):
        prefixes.keep("a", [token, 0], cache([token, 0]))
    prefixes.find("a", [1, 0, 5])
    prefixes.keep("a", [3, 0], cache([3, 0]))
    assert [prefixes.find("a", [token, 0, 5])[1] for token in (1, 2, 3)] == [2, 0, 2]
    assert prefixes.nbytes == 2 * one
    prefixes.keep("a", [*range(2000)], cache([*range(2000)]))  # more than all of it
    assert prefixes.find("a", [1, 0, 5])[1] == 2


def test_a_longer_one_stands_for_its_beginnings():
    prefixes = Prefixes(1 << 30)
    for tokens in ([1], [1, 2], [1, 2, 3], [4]):
        prefixes.keep("a", tokens, cache(tokens))
    assert prefixes.nbytes == 2 * sum(layer.nbytes for layer in cache([1]))  # room for 256 each


def test_owners_are_forgotten_and_there_are_only_so_many():
    prefixes = Prefixes(1 << 30)
    for at in range(COUNT + 3):
        prefixes.keep(f"{at}", [1, 2], cache([1, 2]))
    assert prefixes.find("2", [1, 2, 3])[1] == 0
    assert prefixes.find("3", [1, 2, 3])[1] == 2
    prefixes.forget(["3", "4"])
    assert [prefixes.find(name, [1, 2, 3])[1] for name in "345"] == [0, 0, 2]
    prefixes.clear()
    assert prefixes.nbytes == 0


@pytest.mark.parametrize("prompt", [[1], [2]])
def test_a_prompt_of_one_token_is_read(prompt):
    prefixes = Prefixes(1 << 30)
    prefixes.keep("a", [1], cache([1]))
    assert prefixes.find("a", prompt) == (None, 0)
    assert kept(prefixes.find("a", [1, 2])[0]) == [1]
