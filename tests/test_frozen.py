"""Layers below the adapter: computed once, the same numbers, whatever happens to the disk."""

import fcntl
import logging
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft import activations, lora
from mlx_ft.activations import RECORD, Store, key_of
from mlx_ft.config.schema import LoraConfig
from mlx_ft.data.arrays import packed
from mlx_ft.data.batch import collate
from mlx_ft.models.checkpointing import checkpoint_layers
from mlx_ft.models.forward import Forward, forward_of, with_frozen
from mlx_ft.step import summed_gradient
from tests.fakes import answer_row, furthest, randomize, snapshot
from tests.families import FAMILIES
from tests.models import tiny

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
EXAMPLES = [answer_row(r, 2) for r in ([*PROMPT, 1, 2, 3], [*PROMPT, 4, 5, 6], [7, 8, 9, 1])]
BATCH = collate(EXAMPLES, np.arange(3), pad_id=258)


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Every store that a test opens is closed behind it."""
    opened, genuine = [], Store.__init__

    def remembered(self, *arguments):
        opened.append(self)
        genuine(self, *arguments)

    monkeypatch.setattr(Store, "__init__", remembered)
    yield
    for store in opened:
        store.close()


def upper_half(family: str = "llama", dtype: mx.Dtype = mx.float32) -> tuple[object, Forward]:
    model = tiny.build(FAMILIES[family].config)
    model.set_dtype(dtype)
    lora.attach(model, LoraConfig(rank=4, alpha=8, num_layers=1))
    randomize(model, scale=0.1)
    return model, forward_of(model)


def gradients(model, forward: Forward) -> tuple[float, dict[str, np.ndarray]]:
    arrays = packed(BATCH, share=True)
    gradient = summed_gradient(model, forward, 0.0)
    cache = forward.cache(BATCH.examples, arrays.layout)
    (total, _), found = gradient(*arrays.tensors, cache)
    return float(total), snapshot(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_entered_above_its_frozen_layers(family, tmp_path):
    model, forward = upper_half(family)
    expected = gradients(model, forward)
    remembering = with_frozen(forward, model, 1, Store(tmp_path / "a", 2**30))
    assert remembering.frozen is not None
    first, second = gradients(model, remembering), gradients(model, remembering)
    assert first[0] == pytest.approx(expected[0], rel=1e-5)
    assert furthest(first[1], expected[1]) < 1e-4
    assert first[0] == second[0]
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


def test_the_lower_layers_are_not_computed_again(tmp_path):
    model, forward = upper_half()
    calls = []
    below = model.layers[0].self_attn
    kind = type(below)

    class Counting(kind):
        def __call__(self, *args, **kwargs):
            calls.append(1)
            return kind.__call__(self, *args, **kwargs)

    remembering = with_frozen(forward, model, 1, Store(tmp_path / "a", 2**30))
    below.__class__ = Counting
    gradients(model, remembering)
    assert len(calls) == len(EXAMPLES)  # each row by itself
    gradients(model, remembering)
    assert len(calls) == len(EXAMPLES)
    remembering.frozen.close()
    again = with_frozen(forward, model, 1, Store(tmp_path / "a", 2**30))  # another process
    before = len(calls)
    found = gradients(model, again)
    assert len(calls) == before
    assert found[0] == gradients(model, remembering)[0]


def by_context(examples, layout, hidden: np.ndarray) -> dict[bytes, np.ndarray]:
    places = zip(layout.origins, layout.offsets, hidden, strict=True)
    return {examples[row].tokens[: at + 1].tobytes(): found for row, at, found in places}


def test_what_a_row_gives_does_not_depend_on_its_batch(tmp_path):
    model, forward = upper_half()
    alone = with_frozen(forward, model, 1, Store(tmp_path / "a", 2**30))
    layout = packed(BATCH, share=False).layout
    together = np.array(alone.frozen.hidden(BATCH.examples, layout))
    other = with_frozen(forward, model, 1, Store(tmp_path / "b", 2**30))
    reverse = EXAMPLES[::-1]
    turned = packed(collate(reverse, np.arange(3), pad_id=258), share=False).layout
    apart = np.array(other.frozen.hidden(reverse, turned))
    mine = by_context(EXAMPLES, layout, together)
    theirs = by_context(reverse, turned, apart)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_kept_as_it_is(dtype, tmp_path):
    model, forward = upper_half(dtype=dtype)
    remembering = with_frozen(forward, model, 1, Store(tmp_path / "a", 2**30))
    layout = packed(BATCH, share=True).layout
    first = remembering.frozen.hidden(BATCH.examples, layout)
    second = remembering.frozen.hidden(BATCH.examples, layout)
    assert first.dtype == dtype
    assert mx.array_equal(first, second).item()


def test_with_layers_that_forget_their_activations(tmp_path):
    model, forward = upper_half()
    expected = gradients(model, forward)
    checkpoint_layers(model)
    remembering = with_frozen(forward_of(model), model, 1, Store(tmp_path / "a", 2**30))
    found = gradients(model, remembering)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert furthest(found[1], expected[1]) < 1e-4


def put(folder: Path, entries: dict[bytes, bytes], limit: int = 2**20) -> Store:
    store = Store(folder, limit)
    for name, content in entries.items():
        store.put(key_of(np.frombuffer(name, np.uint8)), content)
    return store


def got(store: Store, name: bytes) -> bytes | None:
    return store.get(key_of(np.frombuffer(name, np.uint8)))


def test_a_store_is_found_again(tmp_path):
    put(tmp_path / "s", {b"a": b"1" * 100, b"b": b""}).close()
    again = Store(tmp_path / "s", 2**20)
    assert got(again, b"a") == b"1" * 100
    assert got(again, b"b") == b""
    assert got(again, b"c") is None


@pytest.mark.parametrize("cut", [1, RECORD.size - 1, RECORD.size, RECORD.size + 1])
def test_an_index_that_was_cut_off_loses_its_last_entries_only(tmp_path, cut):
    put(tmp_path / "s", {b"a": b"1" * 9, b"b": b"2" * 9, b"c": b"3" * 9}).close()
    index = tmp_path / "s" / "index"
    index.write_bytes(index.read_bytes()[:-cut])
    again = put(tmp_path / "s", {b"d": b"4" * 9})
    assert got(again, b"a") == b"1" * 9
    assert got(again, b"c") is None
    again.close()
    assert got(Store(tmp_path / "s", 2**20), b"d") == b"4" * 9


@pytest.mark.parametrize("bit", range(0, 72, 5))
def test_a_damaged_entry_is_a_miss_and_is_said(tmp_path, bit, caplog):
    put(tmp_path / "s", {b"a": b"1" * 9, b"b": b"2" * 9}).close()
    data = tmp_path / "s" / "data"
    content = bytearray(data.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    data.write_bytes(bytes(content))
    again = Store(tmp_path / "s", 2**20)
    with caplog.at_level(logging.WARNING):
        assert got(again, b"a") is None
    assert "damaged" in caplog.text
    assert got(again, b"b") == b"2" * 9


def test_data_that_never_reached_the_disk_are_a_miss(tmp_path):
    put(tmp_path / "s", {b"a": b"1" * 9, b"b": b"2" * 9}).close()
    data = tmp_path / "s" / "data"
    data.write_bytes(data.read_bytes()[:12])
    again = Store(tmp_path / "s", 2**20)
    assert got(again, b"a") == b"1" * 9
    assert got(again, b"b") is None


def test_a_second_writer_reads_and_keeps_its_own_in_memory(tmp_path):
    first = put(tmp_path / "s", {b"a": b"1" * 9})
    second = put(tmp_path / "s", {b"b": b"2" * 9})
    assert got(second, b"a") == b"1" * 9
    assert got(second, b"b") == b"2" * 9
    first.close()
    assert got(Store(tmp_path / "s", 2**20), b"b") is None


def test_no_more_than_the_limit_is_kept(tmp_path):
    limit = 100 + 2 * RECORD.size
    store = put(tmp_path / "s", {b"a": b"1" * 60, b"b": b"2" * 60, b"c": b"3" * 40}, limit)
    assert got(store, b"a") == b"1" * 60
    assert got(store, b"b") is None
    assert got(store, b"c") == b"3" * 40
    assert sum(path.stat().st_size for path in (tmp_path / "s").iterdir()) == limit


def test_the_store_that_was_used_longest_ago_makes_room(tmp_path):
    for age, name in enumerate(("new", "held", "old")):
        store = put(tmp_path / name, {b"a": b"1" * 200})
        if name != "held":
            store.close()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "no store").mkdir()
    mine = put(tmp_path / "mine", {b"a": b"1" * 200}, limit=1000)
    assert len(list(tmp_path.iterdir())) == 5  # there is room yet
    mine.put(b"b" * 16, b"2" * 200)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["held", "mine", "new", "no store"]
    mine.put(b"c" * 16, b"3" * 400)
    assert mine.get(b"c" * 16) is None  # what another process holds stays
    assert sorted(p.name for p in tmp_path.iterdir()) == ["held", "mine", "no store"]


def test_a_full_disk_is_said_once_and_memory_takes_over(tmp_path, caplog, monkeypatch):
    store = put(tmp_path / "s", {b"a": b"1" * 9})

    real = store._data

    class Full:
        def write(self, _content):
            raise OSError(28, "No space left on device")

        def close(self):
            real.close()
            raise OSError(28, "No space left on device")

    store._data = Full()
    with caplog.at_level(logging.WARNING):
        for name in (b"b", b"c"):
            store.put(key_of(np.frombuffer(name, np.uint8)), b"x")
    assert caplog.text.count("No space left") == 1
    assert got(store, b"c") == b"x"


def test_a_place_that_cannot_be_written_is_no_fault_of_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = put(tmp_path / "file" / "s", {b"a": b"1"})
    assert got(store, b"a") == b"1"
    assert "cannot be written" in caplog.text


def test_a_second_writer_holds_only_so_much(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "HELD", 100)
    put(tmp_path / "s", {})
    second = put(tmp_path / "s", {b"a": b"1" * 60, b"b": b"2" * 60, b"c": b"3" * 40})
    assert [got(second, name) for name in (b"a", b"b", b"c")] == [b"1" * 60, None, b"3" * 40]


def test_what_cannot_be_read_is_computed_again(tmp_path, monkeypatch):
    store = put(tmp_path / "s", {b"a": b"1" * 60})

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    assert got(store, b"a") is None


def test_a_file_that_shrinks_after_it_was_checked_is_a_miss(tmp_path):
    store = put(tmp_path / "s", {b"a": b"1" * 60})
    assert got(store, b"a") == b"1" * 60
    os.truncate(tmp_path / "s" / "data", 30)
    assert got(store, b"a") is None


def test_without_locks_it_says_that_memory_is_used(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    store = put(tmp_path / "s", {b"a": b"1"})
    assert got(store, b"a") == b"1"
    assert "No locks available" in caplog.text
