"""Words are drawn as the formulas say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_ft.engine.request import Sampling
from mlx_ft.engine.sampling import Chooser

LOGITS = np.array([2.0, 1.0, 0.5, -1.0, 1.5, -3.0], np.float32)


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def drawn(sampling, count=20_000):
    chooser = Chooser(sampling)
    found = np.zeros(len(LOGITS))
    for _ in range(count):
        found[chooser.choose(LOGITS)[0]] += 1
    return found / count


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, range(6)),
        ({"temperature": 0.5}, range(6)),
        ({"top_k": 2}, [0, 4]),
        ({"top_p": 0.8}, [0, 4, 1]),  # 0.46 + 0.28 < 0.8 <= 0.46 + 0.28 + 0.17
        ({"top_p": 0.01}, [0]),
        ({"min_p": 0.3}, [0, 4, 1]),
        ({"temperature": 2.0, "top_k": 4, "top_p": 0.6}, [0, 4]),
    ],
)
def test_shares_are_those_of_what_is_kept(settings, kept):
    expected = np.zeros(len(LOGITS))
    kept = [*kept]
    expected[kept] = softmax(LOGITS[kept] / settings.get("temperature", 1.0))
    found = drawn(Sampling(seed=1, **settings))
    assert np.abs(found - expected).max() < 0.015
    assert not found[expected == 0].any()


def test_penalties_fall_on_what_was_said():
    chooser = Chooser(Sampling(temperature=0, presence=0.3, frequency=0.3))
    # 2.0, then 2.0 - 0.6 < 1.5, then 1.5 - 0.6 < 1.4, then 1.4 - 0.3 > 1.0
    assert [chooser.choose(LOGITS)[0] for _ in range(4)] == [0, 4, 0, 0]


@given(st.integers(0, 2**62), st.floats(0.1, 5))
def test_the_seed_says_it_all(seed, temperature):
    sampling = Sampling(seed=seed, temperature=temperature)
    first, second = Chooser(sampling), Chooser(sampling)
    assert [first.choose(LOGITS)[0] for _ in range(9)] == [
        second.choose(LOGITS)[0] for _ in range(9)
    ]


def test_log_probabilities_are_the_models_own():
    chooser = Chooser(Sampling(temperature=0.1, alternatives=3, seed=0))
    token, logprob, best = chooser.choose(LOGITS)
    expected = np.log(softmax(LOGITS.astype(np.float64)))
    assert logprob == pytest.approx(expected[token])
    assert [word for word, _ in best] == [0, 4, 1]
    assert [value for _, value in best] == pytest.approx([expected[at] for at in (0, 4, 1)])


def test_what_cannot_be_used_is_named():
    faults = Sampling(
        max_tokens=0, temperature=float("nan"), top_p=0, top_k=-1, min_p=2, presence=3,
        frequency=-3, seed=-1, stop=("",),
    ).faults()  # fmt: skip
    assert [fault.partition(":")[0] for fault in faults] == [
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
        "frequency_penalty", "seed", "stop",
    ]  # fmt: skip
    assert Sampling().faults() == []
