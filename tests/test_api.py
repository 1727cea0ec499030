"""What Python calls refuse, before anything is loaded or generated."""

import math

import pytest

import mlx_ft
from mlx_ft.data.chat import generation_prompt
from mlx_ft.data.rows import Message
from mlx_ft.errors import ConfigError


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(mlx_ft.api, "load", lambda *_, **__: pytest.fail("loaded a model"))


def tuned(adapted: bool) -> mlx_ft.Tuned:
    return mlx_ft.Tuned(None, None, None, adapted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"max_tokens": 0}, "max_tokens: found 0; expected at least 1"),
        ({"temperature": -0.1}, "temperature: found -0.1; expected a number, at least 0"),
        ({"temperature": math.nan}, "temperature: found nan"),
        ({"temperature": math.inf}, "temperature: found inf"),
        ({"top_p": 0.0}, "top_p: found 0.0; expected above 0, at most 1"),
        ({"top_p": 1.1}, "top_p: found 1.1"),
        ({"top_p": math.nan}, "top_p: found nan"),
        ({"seed": -1}, "seed: found -1; expected at least 0, below 2**64"),
        ({"seed": 2**64}, "seed: found 18446744073709551616"),
    ],
)
def test_options_out_of_range(nothing_loads, options, fault):
    with pytest.raises(ConfigError) as caught:
        mlx_ft.generate("hi", **options)  # without asking for a first piece
    assert [fault in line for line in caught.value.faults] == [True]


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("", "found nothing"),
        (" \n", "found nothing"),
        ([], "found nothing"),
        (["x"], "prompt[0]: found 'x'"),
        ([{"content": "x"}], "prompt[0]"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": 3}], "prompt[1]"),
    ],
)
def test_prompts_that_are_none(nothing_loads, prompt, fault):
    with pytest.raises(ConfigError) as caught:
        mlx_ft.generate(prompt)
    assert fault in str(caught.value)


def test_all_faults_at_once(nothing_loads):
    with pytest.raises(ConfigError) as caught:
        mlx_ft.generate(["x"], max_tokens=0, top_p=2)
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("adapted", [True, False])
def test_what_is_loaded_must_be_what_is_asked_for(adapted):
    given = tuned(adapted)
    assert mlx_ft.load(given, adapter=adapted) is given
    for use in (
        lambda: mlx_ft.load(given, adapter=not adapted),
        lambda: mlx_ft.evaluate(given, base=adapted),
        lambda: mlx_ft.generate("hi", given, base=adapted),
    ):
        with pytest.raises(ConfigError, match=rf"base=\w+.*load\(run, adapter={not adapted}\)"):
            use()


def test_a_system_message_beside_messages_is_refused(nothing_loads):
    with pytest.raises(ConfigError, match="system: is for a question"):
        mlx_ft.generate([{"role": "user", "content": "x"}], system="Be brief.")


def test_a_prompt_beyond_the_window_is_refused(using):
    with pytest.raises(ConfigError, match=r"the prompt has \d+ tokens, the model was made for 128"):
        mlx_ft.generate("a" * 200, "outputs/runs/one")


def test_an_answer_says_what_cut_it(using):
    def end(prompt, count):
        pieces = mlx_ft.generate(prompt, tuned, max_tokens=count)
        number = 0
        while True:
            try:
                next(pieces)
            except StopIteration as stopped:
                return stopped.value, number
            number += 1

    tuned = mlx_ft.load("outputs/runs/one")
    assert end("say 1", 2)[0] == "max_tokens"
    assert end("say 1", 64)[0] is None  # it has learned to end
    long = "a" * 110
    room = 128 - len(generation_prompt([Message("user", long)], tuned.tokenizer))
    assert room < 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned.tokenizer, "_eos_token_ids", set())  # so that nothing ends it before
        assert end(long, 64)[0] == "window"
        assert end(long, room)[0] == "max_tokens"
