import hypothesis.strategies as st
from hypothesis import given, settings

from mlx_ft.documents.split import RUN, groups, shingles, split

WORDS = st.lists(st.sampled_from("abcdefghijkl"), min_size=0, max_size=14).map(" ".join)
TEXTS = st.dictionaries(
    st.text("xyz/", min_size=1, max_size=4), st.lists(WORDS, max_size=4), max_size=12
)


def overlap(a: str, b: str) -> bool:
    """Whether two texts share a run of words; written without shingles."""
    left, right = a.split(), b.split()
    if not left or not right:
        return False
    if len(left) < RUN or len(right) < RUN:
        return left == right
    joined = f" {' '.join(right)} "
    return any(f" {' '.join(left[i : i + RUN])} " in joined for i in range(len(left) - RUN + 1))


@settings(max_examples=150)
@given(TEXTS, st.floats(0, 0.5), st.floats(0, 0.4), st.integers(0, 2**32))
def test_nothing_overlaps_across_the_split(texts, valid, test, seed):
    joined = groups(texts)
    sizes = {key: len(said) for key, said in texts.items()}
    fractions = {"valid": valid, "test": test}
    sides = split(joined, sizes, fractions, seed)
    assert sides.keys() == texts.keys()
    for one, other in ((a, b) for a in texts for b in texts if sides[a] != sides[b]):
        assert not any(overlap(a, b) for a in texts[one] for b in texts[other])
    for side, fraction in fractions.items():
        held = sum(sizes[key] for key in texts if sides[key] == side)
        assert held <= fraction * sum(sizes.values()) + 0.5
    assert split(groups(dict(reversed(texts.items()))), sizes, fractions, seed) == sides


def test_shingles():
    assert shingles("") == set()
    assert shingles("One two.") == {("one", "two")}
    assert len(shingles(" ".join("abcdefghij"))) == 3


def test_groups_join_through_a_third_section():
    run = "one two three four five six seven eight"
    texts = {
        "a": [run],
        "b": [f"so {run} nine ten eleven twelve thirteen fourteen fifteen"],
        "c": ["eight nine ten eleven twelve thirteen fourteen fifteen"],
        "d": ["something else"],
    }
    assert groups(texts) == [["a", "b", "c"], ["d"]]


def test_the_share_is_met_with_small_sections():
    texts = {f"s{n}": [f"text {n}"] for n in range(100)}
    sizes = dict.fromkeys(texts, 1)
    sides = split(groups(texts), sizes, {"valid": 0.1, "test": 0.2}, 1)
    assert [list(sides.values()).count(side) for side in ("train", "valid", "test")] == [70, 10, 20]
    assert split(groups(texts), sizes, {"valid": 0.1, "test": 0.2}, 2) != sides


def test_a_new_section_moves_few_others():
    texts = {f"s{n}": [f"text {n}"] for n in range(200)}
    before = split(groups(texts), dict.fromkeys(texts, 1), {"valid": 0.1}, 1)
    more = {**texts, "new": ["text new"]}
    after = split(groups(more), dict.fromkeys(more, 1), {"valid": 0.1}, 1)
    assert sum(before[key] != after[key] for key in texts) <= 2
