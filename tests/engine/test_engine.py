"""Answers of many at once are those of each alone."""

import queue
import shutil
import threading
import time
from dataclasses import replace

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from mlx_ft.engine.batch import Row
from mlx_ft.engine.engine import Engine, Limits
from mlx_ft.engine.request import (
    Busy,
    Closed,
    End,
    Failed,
    Piece,
    Replaced,
    Request,
    Sampling,
    Unknown,
)
from mlx_ft.errors import AdapterError, ConfigError
from mlx_ft.models.read import read_tokenizer
from tests.engine.adapters import SHAPES, greedy, save, with_adapter
from tests.models import tiny

GREEDY = Sampling(max_tokens=12, temperature=0)
TIMEOUT = 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    tiny.save(folder / "model")
    return {**save(None, folder), "model": folder / "model"}


@pytest.fixture
def make(folders):
    """Makes engines that are closed after the test."""
    made = []

    def one(limits=None, names=()):
        def model():
            tokenizer = read_tokenizer(folders["model"], 257)
            return with_adapter(None, None), tokenizer

        made.append(Engine(model, limits))
        made[-1].ready(TIMEOUT)
        for name in names:
            made[-1].load(name, folders[name])
        return made[-1]

    yield one
    for engine in made:
        engine.close(drain=False, timeout=TIMEOUT)


class Asked:
    """A request and what came of it."""

    def __init__(self, engine, prompt, adapter=None, sampling=GREEDY):
        self.events = queue.SimpleQueue()
        self.request = Request(tuple(prompt), self.events.put, adapter, sampling)
        self.pieces = []
        engine.submit(self.request)

    def next(self):
        return self.events.get(timeout=TIMEOUT)

    def end(self):
        while isinstance(event := self.next(), Piece):
            self.pieces.append(event)
        assert self.events.empty()
        return event

    def tokens(self):
        end = self.end()
        assert isinstance(end, End), end
        return [piece.token for piece in self.pieces if piece.token is not None], end


def prompts(count, start=0):
    return [[(7 * at + step * step) % 250 for step in range(3 + at % 9)]
            for at in range(start, start + count)]  # fmt: skip


def alone(folders, prompt, adapter, count=12):
    found = greedy(with_adapter(None, adapter and folders[adapter]), prompt, count)
    return found[: found.index(257)] if 257 in found else found


def test_a_mixed_batch_answers_as_each_adapter_alone(make, folders):
    engine = make(Limits(rows=6), SHAPES)
    names = [None, *SHAPES]
    asked = [
        (prompt, names[at % 5], Asked(engine, prompt, names[at % 5]))
        for at, prompt in enumerate(prompts(20))
    ]
    for prompt, name, one in asked:
        tokens, end = one.tokens()
        assert tokens == alone(folders, prompt, name)
        assert end.prompt_tokens == len(prompt)
        assert end.reason == ("length" if len(tokens) == 12 else "stop")
        text = "".join(piece.text for piece in one.pieces)
        assert text == engine._tokenizer.decode(tokens)
    assert engine.steps < 20 * 12 / 3  # they were answered together


def test_what_is_drawn_does_not_hang_on_others(make, folders):
    engine = make(names=["small"])
    sampling = Sampling(max_tokens=10, temperature=1.0, top_p=0.9, seed=7, alternatives=2)
    first, _ = Asked(engine, [1, 2, 3], "small", sampling).tokens()
    crowd = [Asked(engine, prompt, None, sampling) for prompt in prompts(7)]
    one = Asked(engine, [1, 2, 3], "small", sampling)
    again, _ = one.tokens()
    assert again == first
    assert all(len(piece.alternatives) == 2 for piece in one.pieces if piece.token is not None)
    assert all(piece.logprob < 0 for piece in one.pieces if piece.token is not None)
    other, _ = Asked(engine, [1, 2, 3], "small", replace(sampling, seed=8)).tokens()
    assert other != first
    for asked in crowd:
        asked.tokens()


def test_a_known_beginning_is_not_read_again(make, folders):
    engine = make(names=["small"])
    prompt = [*range(40)]
    first, end = Asked(engine, prompt).tokens()
    assert end.cached == 0
    again, end = Asked(engine, prompt).tokens()
    assert again == first
    assert end.cached == 39
    longer = [*prompt, *first, 5]
    _, end = Asked(engine, longer).tokens()
    assert end.cached >= 50
    assert Asked(engine, prompt, "small").tokens()[1].cached == 0  # another one's
    assert Asked(engine, longer).tokens()[0] == alone(folders, longer, None)


def test_long_prompts_are_read_in_pieces(make, folders, monkeypatch):
    monkeypatch.setattr("mlx_ft.engine.engine.PIECE", 4)
    engine = make()
    for prompt in ([*range(17)], [*range(16)], [3]):
        assert Asked(engine, prompt).tokens()[0] == alone(folders, prompt, None)


def test_a_stop_text_ends_it(make, folders):
    engine = make()
    free = Asked(engine, [9, 8, 7])
    free.tokens()
    whole = "".join(piece.text for piece in free.pieces)
    stop = whole[3:5]
    one = Asked(engine, [9, 8, 7], None, replace(GREEDY, stop=(stop,)))
    _, end = one.tokens()
    assert end.reason == "stop"
    assert "".join(piece.text for piece in one.pieces) == whole[: whole.index(stop)]


LONG = replace(GREEDY, max_tokens=10_000, temperature=1.0, seed=0)


def test_who_leaves_makes_room_at_once(make):
    engine = make(Limits(rows=1, waiting=1))
    first = Asked(engine, [1], None, LONG)
    first.next()
    second = Asked(engine, [2])
    with pytest.raises(Busy, match="waiting"):
        Asked(engine, [3])
    first.request.cancelled = True
    assert first.end().reason == "cancelled"
    assert len(second.tokens()[0]) > 0
    assert engine.load_now == (0, 0)


def test_who_leaves_while_waiting_is_not_answered(make):
    engine = make(Limits(rows=1))
    first, second = Asked(engine, [1], None, LONG), Asked(engine, [2])
    second.request.cancelled = True
    first.next()
    first.request.cancelled = True
    first.end()
    assert second.end() == End("cancelled", 1, 0, 0)


def test_who_cannot_be_told_is_not_answered_further(make):
    engine = make(Limits(rows=1))

    def tell(_):
        raise RuntimeError("gone")

    engine.submit(Request((1,), tell, None, LONG))
    assert len(Asked(engine, [2]).tokens()[0]) > 0


def test_an_adapter_that_is_unloaded_finishes_what_it_began(make, folders):
    engine = make(Limits(rows=2), ["small"])
    running = Asked(engine, [1, 2], "small", replace(GREEDY, max_tokens=60))
    waiting = Asked(engine, [3], "small")
    engine.unload("small")
    with pytest.raises(Unknown, match="small"):
        Asked(engine, [1], "small")
    with pytest.raises(Unknown):
        engine.unload("small")
    assert running.tokens()[0] == alone(folders, [1, 2], "small", 60)
    assert waiting.tokens()[0] == alone(folders, [3], "small")
    until = time.monotonic() + TIMEOUT
    while engine.call(lambda: engine._slots.names) and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.call(lambda: engine._slots.nbytes) == 0


def test_a_name_is_given_to_another_adapter_under_load(make, folders):
    engine = make(names=["small"])
    before = Asked(engine, [1, 2], "small", replace(GREEDY, max_tokens=40))
    engine.load("small", folders["large"])
    after = Asked(engine, [1, 2], "small")
    assert before.tokens()[0] == alone(folders, [1, 2], "small", 40)
    assert after.tokens()[0] == alone(folders, [1, 2], "large")


def test_adapters_over_the_budget_come_and_go(make, folders):
    engine = make(Limits(adapters=1), SHAPES)
    for name in [*SHAPES, *SHAPES]:
        assert Asked(engine, [4, 5], name).tokens()[0] == alone(folders, [4, 5], name)
        assert len(engine.call(lambda: engine._slots.names)) == 1
    assert set(engine.adapters) == set(SHAPES)


def test_an_adapter_that_was_replaced_while_it_was_away_does_not_answer(make, folders, tmp_path):
    shutil.copytree(folders["small"], tmp_path / "a")
    engine = make(Limits(adapters=1))
    engine.load("a", tmp_path / "a")
    engine.load("large", folders["large"])  # "a" goes
    shutil.copytree(folders["small"], tmp_path / "copy")  # the same once more
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "copy").rename(tmp_path / "a")
    assert Asked(engine, [1, 2], "a").tokens()[0] == alone(folders, [1, 2], "small")
    assert Asked(engine, [1, 2], "large").tokens()[0] == alone(folders, [1, 2], "large")
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(folders["large"], tmp_path / "a")
    end = Asked(engine, [1, 2], "a").end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, Replaced)
    assert "have changed since it was loaded" in str(end.error)
    assert "a" not in engine.adapters
    assert Asked(engine, [1, 2], "large").tokens()[0] == alone(folders, [1, 2], "large")
    engine.load("a", tmp_path / "a")
    assert Asked(engine, [1, 2], "a").tokens()[0] == alone(folders, [1, 2], "large")


def test_what_cannot_be_loaded_is_said_and_changes_nothing(make, folders, tmp_path):
    engine = make(names=["small"])
    with pytest.raises(AdapterError, match="not an adapter folder"):
        engine.load("small", tmp_path)
    assert Asked(engine, [1], "small").tokens()[0] == alone(folders, [1], "small")
    with pytest.raises(ConfigError, match="max_tokens") as error:
        Asked(engine, [], None, Sampling(max_tokens=0))
    assert len(error.value.faults) == 2


def test_a_pass_is_begun_ahead_and_none_too_many(make, folders, monkeypatch):
    engine = make()
    seen = []
    genuine = engine._batch._logits

    def logits(tokens):
        seen.append(tokens.shape[0])
        return genuine(tokens)

    monkeypatch.setattr(engine._batch, "_logits", logits)
    found = Asked(engine, [1, 2], None, replace(GREEDY, max_tokens=9)).tokens()[0]
    assert found == alone(folders, [1, 2], None, 9)
    assert seen == [1] * 8  # the first token is the prompt's


def test_what_was_read_ahead_of_an_answers_end_is_known(make, folders):
    engine = make(names=["large"])
    begun, whole, at = next(
        (prompt, whole, at)
        for prompt in prompts(30)
        for whole in [alone(folders, prompt, "large")]
        for at in range(3, len(whole) - 1)
        if whole[at] not in whole[:at]
    )
    events = queue.SimpleQueue()
    engine.submit(Request(tuple(begun), events.put, "large", GREEDY, ends=(whole[at],)))
    while isinstance(end := events.get(timeout=TIMEOUT), Piece):
        pass
    assert (end.reason, end.completion_tokens) == ("stop", at + 1)
    prompt = [*begun, *whole[: at + 1], 9, 8]
    found, end = Asked(engine, prompt, "large").tokens()
    assert end.cached == len(begun) + at + 1  # with the token that ended it
    assert found == alone(folders, prompt, "large")


def test_one_that_is_drawn_joins_those_that_are_not(make, folders):
    engine = make(names=["small"])
    drawn = Sampling(max_tokens=30, temperature=1, seed=3)
    expected = Asked(engine, [9], "small", drawn).tokens()[0]
    long = replace(GREEDY, max_tokens=60)
    first = [Asked(engine, prompt, None, long) for prompt in prompts(2)]
    for one in first:
        one.pieces.append(one.next())
    later = Asked(engine, [9], "small", drawn)
    assert later.tokens()[0] == expected
    for one, prompt in zip(first, prompts(2), strict=True):
        assert one.tokens()[0] == alone(folders, prompt, None, 60)


def test_one_that_is_alone_now_and_then_says_the_same(make, folders):
    engine = make()
    prompt = next(one for one in prompts(30) if len(alone(folders, one, None, 90)) == 90)
    long = Asked(engine, prompt, None, replace(GREEDY, max_tokens=90))
    kinds = set()
    for other in prompts(3, start=40):
        for _ in range(4):
            long.pieces.append(long.next())
        kinds.add(engine.call(lambda: type(engine._batch._cache[0])))
        joined = Asked(engine, other, None, replace(GREEDY, max_tokens=6))
        joined.pieces.append(joined.next())
        assert joined.tokens()[0] == alone(folders, other, None, 6)
    assert kinds == {KVCache}  # the plain one, which takes fewer operations
    found = long.tokens()[0]
    assert found == alone(folders, prompt, None, 90)
    again, end = Asked(engine, [*prompt, *found, 3]).tokens()
    assert end.cached >= len(prompt) + len(found) - 1
    assert again == alone(folders, [*prompt, *found, 3], None)


def test_what_is_kept_of_answers_is_theirs_alone(make):
    """Not the caches of all answers that were under way with them."""
    engine = make(Limits(rows=16))
    asked = [
        Asked(engine, [(at * 7 + place) % 250 for place in range(60)], None,
              replace(GREEDY, max_tokens=8 + at))
        for at in range(16)
    ]  # fmt: skip
    for one in asked:
        one.tokens()

    def memory():
        mx.synchronize()
        mx.clear_cache()
        return mx.get_active_memory()

    kept, before = engine._prefixes.nbytes, engine.call(memory)
    engine.call(engine._prefixes.clear)
    freed = before - engine.call(memory)
    assert kept > 0
    assert freed < 2 * kept


def test_a_budget_holds_as_many_as_fit(make, folders):
    engine = make()
    engine.load("a", folders["small"])
    engine.load("b", folders["small"])
    two = engine.call(lambda: engine._slots.nbytes)
    engine.limits = replace(engine.limits, adapters=two)
    for name in ("c", "d", "e"):
        engine.load(name, folders["small"])
        assert len(engine.call(lambda: engine._slots.names)) == 2
    assert engine.call(lambda: engine._slots.nbytes) == two
    engine.load("large", folders["large"])  # of a higher rank, which no other one keeps
    engine.unload("large")
    for name in "abcde":
        assert Asked(engine, [4, 5], name).tokens()[0] == alone(folders, [4, 5], "small")
    assert engine.call(lambda: engine._slots.nbytes) == two


def test_a_row_that_fails_fails_alone(make, folders, monkeypatch):
    engine = make()
    genuine = Row.take

    def take(row, likeliest, logits, ends):
        if row.request.prompt[0] == 77 and row.answered == 3:
            raise RuntimeError("not a word")
        genuine(row, likeliest, logits, ends)

    monkeypatch.setattr(Row, "take", take)
    asked = [Asked(engine, prompt) for prompt in ([1, 2], [77, 1], [3])]
    assert str(asked[1].end().error) == "not a word"
    for one, prompt in ((asked[0], [1, 2]), (asked[2], [3])):
        assert one.tokens()[0] == alone(folders, prompt, None)


def test_an_engine_that_fails_lets_nobody_wait(make, monkeypatch):
    engine = make(Limits(rows=1))
    first = Asked(engine, [1], None, LONG)
    first.next()
    second = Asked(engine, [2])

    def broken(_):
        raise MemoryError("full")

    monkeypatch.setattr(engine._residents, "forget_all_but", broken)
    assert isinstance(first.end(), Failed)
    assert isinstance(second.end(), Failed)
    with pytest.raises(Closed, match="full"):
        engine.ready(0)
    for ask in (lambda: Asked(engine, [1]), lambda: engine.call(int)):
        with pytest.raises(Closed):
            ask()


def test_all_or_nothing_is_queued(make):
    engine = make(Limits(waiting=3))
    with pytest.raises(ConfigError, match="at once; expected at most 3"):
        engine.submit(*(Request((1,), print, None, GREEDY) for _ in range(4)))
    known = Request((1,), print, None, GREEDY)
    with pytest.raises(Unknown):
        engine.submit(known, Request((1,), print, "nobody", GREEDY))
    assert engine.load_now == (0, 0)


def test_what_was_read_for_an_adapter_goes_with_it(make):
    engine = make(names=["small"])
    Asked(engine, [1, 2, 3]).tokens()
    own = engine.call(lambda: engine._prefixes.nbytes)
    Asked(engine, [1, 2, 3], "small").tokens()
    assert engine.call(lambda: engine._prefixes.nbytes) > own
    engine.unload("small")
    engine.call(int)  # a turn, at whose end it is forgotten
    assert engine.call(lambda: engine._prefixes.nbytes) == own


def test_a_step_that_fails_ends_its_answers_and_no_others(make, folders, monkeypatch):
    engine = make()
    genuine = engine._batch._logits

    def logits(tokens):
        if len(engine._batch.rows) == 3:
            raise MemoryError("full")
        return genuine(tokens)

    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "_logits", logits)
        asked = [Asked(engine, prompt, None, LONG) for prompt in prompts(3)]
        for one in asked:
            event = one.end()
            assert isinstance(event, Failed), event
            assert str(event.error) == "full"
    assert Asked(engine, [1]).tokens()[0] == alone(folders, [1], None)


def test_closing_answers_what_was_taken(make):
    engine = make(Limits(rows=2))
    asked = [Asked(engine, prompt) for prompt in prompts(6)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    for one in asked:
        assert one.end().reason in ("length", "stop")
    closing.join(TIMEOUT)
    assert not closing.is_alive()
    with pytest.raises(Busy):
        Asked(engine, [1])


def test_a_model_that_cannot_be_loaded_is_told():
    def make():
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        Engine(make).ready(TIMEOUT)
