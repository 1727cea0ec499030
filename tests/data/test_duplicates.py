"""Likenesses are planted, and the estimate is held against the exact Jaccard similarity."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from mlx_ft.data.duplicates import _WORDS, PERMUTATIONS, Signatures, _words, group
from mlx_ft.data.rows import Conversation, Message, Record

WORDS = [f"word{i}" for i in range(3000)]


def row(text, answer="", system=None):
    messages = [Message("system", system)] if system else []
    messages += [Message("user", text), Message("assistant", answer)]
    return Conversation(tuple(messages), None, None, Record({}, Path("x"), 1))


def signatures(rows):
    collected = Signatures()
    for i in range(0, len(rows), 7):
        collected.add(rows[i : i + 7])
    return collected.all()


def found(rows, fingerprints=None):
    prints = np.arange(len(rows)) if fingerprints is None else fingerprints
    return group(signatures(rows), np.asarray(prints, np.uint64))


def text(rng, count=60):
    return " ".join(rng.choices(WORDS, k=count))


def test_a_planted_near_duplicate_is_found_and_nothing_else():
    rng = random.Random(0)
    texts = [text(rng) for _ in range(3000)]
    words = texts[17].split()
    texts[2500] = " ".join([*words[:30], "changed", *words[31:]])
    groups = found([row(one) for one in texts])
    assert groups.repeats() == 1
    assert groups.of[2500] == 17
    these, others = np.arange(2400, 3000), np.arange(2000)
    assert groups.shared(these, others).tolist() == [2500]
    assert groups.partner(2500, others) == 17


def test_rows_with_one_fingerprint_are_one_group_however_few_words_they_have():
    groups = found([row("a"), row("b"), row("c")], [7, 8, 7])
    assert groups.of.tolist() == [0, 1, 0]


def test_the_instructions_that_all_rows_share_do_not_make_them_alike():
    rng = random.Random(1)
    system = text(rng, 400)
    groups = found([row(text(rng), system=system) for _ in range(50)])
    assert groups.repeats() == 0


def test_a_chain_of_likenesses_is_one_group():
    rng = random.Random(2)
    words = text(rng, 200).split()
    chain = []
    for step in range(4):
        words[step * 40] = f"changed{step}"
        chain.append(" ".join(words))
    groups = found([row(text(rng)), *map(row, chain), row(text(rng))])
    assert groups.of.tolist() == [0, 1, 1, 1, 1, 5]


@pytest.mark.parametrize("changed", [1, 4, 10, 30])
def test_the_estimate_is_that_of_the_exact_similarity(changed):
    rng = random.Random(changed)
    differences = []
    for _ in range(30):
        words = text(rng, 100).split()
        other = list(words)
        for place in rng.sample(range(100), changed):
            other[place] = "other" + str(place)
        exact = jaccard(words, other)
        a, b = signatures([row(" ".join(words)), row(" ".join(other))])
        differences.append(float(np.mean(a == b)) - exact)
    # The mean of 30 estimates of 64 coin tosses each.
    assert abs(np.mean(differences)) < 4 * 0.5 / np.sqrt(30 * PERMUTATIONS)


def jaccard(a, b):
    shingles = [{tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (a, b)]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


def test_the_signatures_rank_pairs_as_datasketch_does():
    rng = random.Random(9)
    ours, theirs = [], []
    for changed in range(0, 60, 2):
        words = text(rng, 100).split()
        other = [f"o{i}" if i < changed else word for i, word in enumerate(words)]
        a, b = signatures([row(" ".join(words)), row(" ".join(other))])
        ours.append(float(np.mean(a == b)))
        hashes = []
        for said in (words, other):
            minhash = MinHash(num_perm=256, seed=3)
            minhash.update_batch([" ".join(said[i : i + 3]).encode() for i in range(len(said) - 2)])
            hashes.append(minhash)
        theirs.append(hashes[0].jaccard(hashes[1]))
    assert np.abs(np.array(ours) - theirs).max() < 0.25  # of 64 and 256 coin tosses
    assert abs(np.mean(np.array(ours) - theirs)) < 0.04


def test_the_fast_way_with_ascii_text_gives_the_same_words():
    said = "It's 3.5 o'clock, Bob_2 -- said \"NO\"; (x+y)/2 = z\ta\nb"
    assert _words(said) == _WORDS.findall(said.casefold())


def test_text_without_spaces_is_compared_by_its_characters():
    rng = random.Random(3)
    letters = [chr(0x4E00 + i) for i in range(2000)]
    one = "".join(rng.choices(letters, k=120))
    near = one[:60] + letters[0] + one[61:]
    groups = found([row(one), row("".join(rng.choices(letters, k=120))), row(near)])
    assert groups.of.tolist() == [0, 1, 0]
    assert len(re.findall(r"\w+", one)) == 1  # by words they would have nothing in common


def test_many_rows_of_one_bucket_stay_fast_and_one_group():
    groups = found([row("the same words again and again")] * 5000)
    assert groups.repeats() == 4999


def test_no_rows():
    assert found([]).repeats() == 0
    assert signatures([row("")]).shape == (1, PERMUTATIONS)
