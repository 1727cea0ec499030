"""Attention by segments is the model's own attention, row by row: values, gradients, no leaks."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import llama

from mlx_ft import exponentials, lora
from mlx_ft.config.schema import LoraConfig
from mlx_ft.data.arrays import packed, padded
from mlx_ft.data.batch import collate
from mlx_ft.layout import lay_out
from mlx_ft.models import segments
from mlx_ft.models.forward import Forward, forward_of
from mlx_ft.models.segments import Segments, attend
from mlx_ft.step import summed_gradient
from tests.fakes import answer_row, furthest, randomize, snapshot
from tests.families import FAMILIES
from tests.models import tiny

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
# Under a common prompt; another with a beginning of its own; one alone; one that is a prefix.
BRANCH = [*PROMPT, 21, 22, 23, 24, 25, 26, 27, 28]
ROWS = [
    [*PROMPT, 1, 2, 3, 4, 1], [*PROMPT, 2, 2, 9, 4, 1], [*PROMPT, 3, 2], [*PROMPT, 1, 2],
    [*BRANCH, 1, 2, 3], [*BRANCH, 9], [40, 41, 42], PROMPT,
]  # fmt: skip
LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=8)


def adapted(config: dict, seed: int = 0) -> tuple[nn.Module, Forward]:
    model = tiny.build(config, seed=seed)
    lora.attach(model, LoraConfig(rank=4, alpha=8))
    randomize(model, scale=0.1)
    return model, forward_of(model)


def gradients(model: nn.Module, forward: Forward, rows: list[list[int]], share: bool | None):
    """(loss sum, targets, gradients): padded, or without padding, with shared beginnings or not."""
    examples = [answer_row(tokens, min(4, len(tokens) - 1)) for tokens in rows]
    batch = collate(examples, np.arange(len(rows)), pad_id=258)
    gradient = summed_gradient(model, forward, 0.0)
    if share is None:
        (total, count), found = gradient(*padded(batch).tensors)
    else:
        arrays = packed(batch, share=share)
        (total, count), found = gradient(*arrays.tensors, Segments(arrays.layout))
    return float(total), float(count), snapshot(found)


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_of_every_family(family: str, share: bool) -> None:
    model, forward = adapted(FAMILIES[family].config)
    assert forward.segments  # gpt2 too, whose positions are added to the embedding
    expected, found = (gradients(model, forward, ROWS, way) for way in (None, share))
    assert found[1] == expected[1]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert furthest(found[2], expected[2]) < 1e-4


@settings(max_examples=25)
@given(LENGTHS, st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_random_lengths_under_random_prompts(lengths: list[int], prompt: int, seed: int) -> None:
    random = np.random.RandomState(seed)
    shared = random.randint(0, 258, prompt).tolist()
    rows = [shared * (random.rand() < 0.7) + random.randint(0, 258, n).tolist() for n in lengths]
    model, forward = MODEL
    expected, apart, together = (gradients(model, forward, rows, w) for w in (None, False, True))
    for found in (apart, together):
        assert found[1] == expected[1]
        assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
        assert furthest(found[2], expected[2]) < 1e-3


MODEL = adapted(tiny.LLAMA)


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
def test_another_segment_is_never_seen(share: bool) -> None:
    """One row changes behind what it shares: the logits of the others stay, to the bit."""
    _, forward = MODEL
    others = []
    for last in (3, 200):
        rows = [ROWS[0], [*PROMPT, 9, last, last, 1, last], [*range(60, 70)]]
        layout = lay_out([answer_row([*r, 0], 1) for r in rows], share=share)
        tokens = mx.array(layout.tokens[:, None])
        logits = forward.head(forward.at(tokens, mx.array(layout.positions), Segments(layout)))
        ends = np.cumsum([len(r) for r in rows])
        kept = np.r_[0 : ends[0], ends[1] : ends[2]]
        others.append(np.array(logits)[kept])
    assert np.array_equal(*others)


def test_a_window_hides_what_lies_further_back() -> None:
    """Against full attention with the mask written out, over a prompt in segments of its own."""
    random = np.random.RandomState(0)
    layout = lay_out([answer_row([*r, 0], 1) for r in (ROWS[4], ROWS[5], ROWS[0])], share=True)
    total, window = len(layout.tokens), 5
    queries, keys, values = (
        mx.array(random.standard_normal((total, heads, 1, 8)).astype(np.float32))
        for heads in (4, 2, 2)
    )
    found = np.array(attend(queries, keys, values, layout.groups, 0.3, window))[:, :, 0]
    for group in layout.groups:
        for member in range(group.count):
            own = range(
                group.start + member * group.length, group.start + (member + 1) * group.length
            )
            before = [
                i
                for at, which in group.before
                for i in range(
                    layout.groups[at].start + which * layout.groups[at].length,
                    layout.groups[at].start + (which + 1) * layout.groups[at].length,
                )
            ]
            for count, index in enumerate(own, 1):
                visible = [*before, *own[:count]][-window:]
                key, value = (np.array(a)[visible][:, [0, 0, 1, 1], 0] for a in (keys, values))
                scores = 0.3 * np.einsum("hd,khd->hk", np.array(queries)[index, :, 0], key)
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                expected = np.einsum("hk,khd->hd", weights, value)
                np.testing.assert_allclose(found[index], expected, atol=1e-5)


def test_other_caches_are_attended_to_as_before() -> None:
    from mlx_lm.models.cache import make_prompt_cache

    model, _ = MODEL
    tokens = mx.array([[1, 2, 3, 4, 5]])
    cache = make_prompt_cache(model)
    parts = [model(tokens[:, :3], cache=cache), model(tokens[:, 3:], cache=cache)]
    assert mx.allclose(mx.concatenate(parts, axis=1), model(tokens), atol=1e-5).item()


@pytest.mark.parametrize("kept", ["plain", "quantized"])
def test_other_caches_get_vectors_of_exponentials_where_they_can(
    kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    model = tiny.build({**tiny.LLAMA, "hidden_size": 128})  # heads of 32, as quantizing asks for
    tokens = mx.array([[*PROMPT, 1, 2, 3]])
    found, calls, own = [], [], exponentials.attention
    monkeypatch.setattr(
        exponentials, "attention", lambda *args: calls.append(args[4]) or own(*args)
    )
    for install in (False, True):
        if install:
            segments.install(model)
        else:
            plain = llama.scaled_dot_product_attention
            plain = getattr(plain, "without_segments", plain)
            monkeypatch.setattr(llama, "scaled_dot_product_attention", plain)
        make = KVCache if kept == "plain" else lambda: QuantizedKVCache(group_size=32)
        cache = [make() for _ in model.layers]
        parts = [model(tokens[:, :9], cache=cache), model(tokens[:, 9:12], cache=cache)]
        found.append(mx.concatenate([*parts, model(tokens[:, 12:], cache=cache)], axis=1))
    assert mx.allclose(*found, atol=1e-5).item()
    expected = ["causal", "causal", None] if kept == "plain" and exponentials.native() else []
    assert calls == [mask for mask in expected for _ in model.layers]


def test_a_model_that_cannot_is_told_apart() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(260, 8)
            self.layers = [self.table]

        def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
            return self.table.as_linear(self.table(tokens))

    assert not forward_of(Embedded()).segments


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "phi"])
def test_a_model_that_ignores_where_tokens_stand_is_refused(family: str, dtype: mx.Dtype) -> None:
    for seed in range(4):
        model = tiny.build(FAMILIES[family].config, seed=seed)
        model.set_dtype(dtype)
        assert forward_of(model).segments
        for layer in model.layers:
            layer.self_attn.rope = Blind(layer.self_attn.rope)
        assert not forward_of(model).segments


class Blind(nn.Module):
    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def __call__(self, x: mx.array, offset: object = 0) -> mx.array:
        return self.rope(x, offset=0)


def test_a_mask_of_the_models_own_is_never_dropped() -> None:
    forward_of(tiny.build())
    layout = lay_out([answer_row(PROMPT, 1)], share=False)
    arrays = [mx.zeros((len(layout.tokens), 4, 1, 8))] * 3
    with pytest.raises(TypeError, match="mask"):
        llama.scaled_dot_product_attention(
            *arrays, cache=Segments(layout), scale=1.0, mask=mx.zeros((1, 1))
        )


def test_values_may_have_another_width_than_keys() -> None:
    layout = lay_out([answer_row(PROMPT, 1), answer_row([1, 2, 3], 1)], share=False)
    total = len(layout.tokens)
    found = attend(
        mx.zeros((total, 2, 1, 8)), mx.zeros((total, 2, 1, 8)), mx.ones((total, 2, 1, 4)),
        layout.groups, 1.0,
    )  # fmt: skip
    assert found.shape == (total, 2, 1, 4)
    assert mx.allclose(found, mx.ones_like(found)).item()
