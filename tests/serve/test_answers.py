"""/v1/chat/completions and /v1/completions: the answers are the model's own."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import httpx
import mlx.core as mx
import numpy as np
import pytest
from transformers import AutoTokenizer

from mlx_ft.engine.request import Closed, End, Piece, Sampling
from mlx_ft.serve.answers import Asked, Stream, Wanted
from mlx_ft.serve.metrics import Metrics
from tests.engine.adapters import greedy, with_adapter
from tests.serve.served import events, fine, refused, until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "abc"}]
END = 257


@pytest.fixture(scope="session")
def alone(models):
    """Gives (text, tokens) of an adapter's own greedy answer, by the whole text each time."""
    tokenizer = AutoTokenizer.from_pretrained(models["tiny"])

    def answer(prompt, adapter=None, count=12):
        if isinstance(prompt, list):
            prompt = tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True
            )
        tokens = tokenizer.encode(prompt, add_special_tokens=False)
        model = with_adapter(None, adapter and models[adapter])
        found = greedy(model, tokens, count)
        found = found[: found.index(END)] if END in found else found
        return tokenizer.decode(found), tokens, found

    return answer


@pytest.fixture(autouse=True)
def _adapters(served, models):
    for name in ("small", "large"):
        served.server.shelf.put(name, models[name], {"base": "tiny", "digest": None})


def ask(**more):
    return {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **more}


@pytest.mark.parametrize("name", ["tiny", "base", "small", "large"])
def test_a_chat_is_answered_by_the_model_that_was_named(served, alone, name):
    found = served.post(CHAT, ask(model=name))
    adapter = name if name in ("small", "large") else None
    text, prompt, tokens = alone(MESSAGES, adapter)
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == ("length" if len(tokens) == 12 else "stop")
    assert found["object"] == "chat.completion"
    assert found["model"] == name
    usage = found["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_says_the_same(served):
    whole = served.post(CHAT, ask())
    text = served.post(CHAT, ask(stream=True, stream_options={"include_usage": True}))
    *chunks, last, done = events(text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    said = "".join(delta.get("content", "") for delta in deltas)
    assert said == whole["choices"][0]["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]


def test_a_seed_draws_the_same_again_and_each_answer_is_another_one(served):
    drawn = ask(temperature=1.5, seed=-7, n=3)
    first, again = served.post(CHAT, drawn), served.post(CHAT, drawn)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert len(set(texts)) == 3
    alone = served.post(CHAT, ask(temperature=1.5, seed=-6))
    assert alone["choices"][0]["message"]["content"] == texts[1]
    assert first["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]  # counted once


def test_a_stop_text_ends_it_and_is_not_told(served, alone):
    text, _, _ = alone(MESSAGES)
    stop = text[3:5]
    for given in (stop, ["never said", stop]):
        (choice,) = served.post(CHAT, ask(stop=given))["choices"]
        assert choice["message"]["content"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_log_probabilities_are_those_of_the_whole_text(served, alone):
    (choice,) = served.post(CHAT, ask(logprobs=True, top_logprobs=3))["choices"]
    _, prompt, tokens = alone(MESSAGES)
    model = with_adapter(None, None)
    content = choice["logprobs"]["content"]
    assert len(content) == len(tokens)
    for at, told in enumerate(content):
        logits = np.array(model(mx.array([prompt + tokens[:at]]))[0, -1], np.float64)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert told["logprob"] == pytest.approx(expected[tokens[at]], abs=1e-4)
        best = [one["logprob"] for one in told["top_logprobs"]]
        assert best == pytest.approx(sorted(expected)[::-1][:3], abs=1e-4)
        assert told["bytes"] == [tokens[at]]  # this tokenizer's tokens are bytes
    streamed = events(served.post(CHAT, ask(logprobs=True, stream=True)))
    told = [one["choices"][0]["logprobs"]["content"][0]["bytes"]
            for one in streamed[:-1] if one["choices"][0]["logprobs"]]  # fmt: skip
    assert told == [one["bytes"] for one in content]


def test_turns_roles_and_parts(served, alone):
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "ab"}]},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "c"},
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ab"},
             *turns[2:]]  # fmt: skip
    (choice,) = served.post(CHAT, ask(messages=turns))["choices"]
    assert choice["message"]["content"] == alone(plain)[0]
    assert served.post(CHAT, ask(messages=[{"role": "user", "content": ""}]))["choices"]


def test_what_is_ignored_is_named_and_what_is_unknown_is_refused(served):
    found = served.client.post(CHAT, json=ask(user="me", store=True, metadata={"a": "b"}))
    assert fine(found)
    assert found.headers["x-mlx-ft-ignored"] == "user, metadata, store"
    message = refused(served.client.post(CHAT, json=ask(colour="red")), 400, "unknown_parameter")
    assert message == "Unrecognized request argument supplied: colour"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "abc"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": []}, "functions"),
        ({"stop": [""]}, None),
        ({"model": 7}, "model"),
    ],
)
def test_what_cannot_be_used_is_named(served, change, param):
    response = served.client.post(CHAT, json=ask(**change))
    refused(response, 400)
    if param is not None:
        assert response.json()["error"]["param"].startswith(param)


def test_longer_than_the_context(served):
    long = [{"role": "user", "content": "x" * 200}]
    message = refused(served.client.post(CHAT, json=ask(messages=long)), 400,
                      "context_length_exceeded")  # fmt: skip
    assert "128 tokens" in message
    refused(served.client.post(CHAT, json=ask(max_tokens=121)), 400, "context_length_exceeded")
    # Without a length the answer gets what is left.
    asked = ask(temperature=1.0, seed=0)
    del asked["max_tokens"]
    usage = served.post(CHAT, asked)["usage"]
    assert usage["total_tokens"] <= 128


def test_a_model_that_is_not_there(served):
    for name in ("nothing", "../tiny", "", "a" * 150):
        message = refused(served.client.post(CHAT, json=ask(model=name)), 404, "model_not_found")
        assert "/v1/models" in message
    message = refused(served.client.post(CHAT, json=ask(model="tinyllama")), 404,
                      "model_not_downloaded")  # fmt: skip
    assert "POST /api/download-model/tinyllama" in message


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"), (b"", "application/json"), (b"[]", "application/json"),
        (b'{"model": "tiny"', "text/plain"), (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"), (b'{"model": 1' + b"0" * 6000 + b"}",
                                               "application/json"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}',
         "application/json"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\udc00"}]}',
         "application/json"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\udc00"}]}',
         "Application/JSON"),
        (b'{"model": "tiny", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
         "application/json"),
    ],
)  # fmt: skip
def test_bodies_that_are_none(served, content, kind):
    refused(served.client.post(CHAT, content=content, headers={"content-type": kind}), 400)


def test_paths_and_methods_that_are_none(served):
    refused(served.client.get("/v1/nothing"), 404, "unknown_path")
    response = served.client.get(CHAT)
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    response = served.client.post("/v1/models/tiny")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET"
    assert served.client.delete("/api/adapters/unload").status_code == 404  # a name, like others
    assert served.client.put("/api/adapters/unload").headers["allow"] == "POST"
    response = served.client.post(CHAT)
    assert refused(response, 400) == "Missing required parameter: the body"


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("abc", 1), (["abc", "xyz"], 2), ([97, 98, 99], 1), ([[97, 98, 99], [120]], 2)],
)
def test_texts_are_gone_on_with(served, alone, prompt, count):
    found = served.post(COMPLETIONS, {"model": "small", "prompt": prompt, "temperature": 0})
    texts = prompt if isinstance(prompt, list) and isinstance(prompt[0], str) else None
    texts = texts or ["abc", "x"][:count]
    assert [choice["text"] for choice in found["choices"]] == [
        alone(text, "small", 16)[0] for text in texts
    ]
    assert found["object"] == "text_completion"


def test_completions_as_streams_with_echo_and_log_probabilities(served, alone):
    asked = {"model": "tiny", "prompt": "abc", "temperature": 0, "max_tokens": 5}
    text, _, tokens = alone("abc", None, 5)
    streamed = events(served.post(COMPLETIONS, {**asked, "stream": True, "echo": True}))
    assert streamed[-1] == "[DONE]"
    assert "".join(one["choices"][0]["text"] for one in streamed[:-1]) == "abc" + text
    (choice,) = served.post(COMPLETIONS, {**asked, "logprobs": 2})["choices"]
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"])
    assert [len(best) for best in told["top_logprobs"]] == [2] * len(tokens)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt": [10**6]}, "invalid_value"), ({"prompt": [-1]}, None), ({"prompt": []}, None),
        ({"suffix": "x"}, "unsupported_parameter"), ({"best_of": 3}, "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "unsupported_parameter"),
        ({"prompt": ["a"] * 128, "n": 2}, "invalid_value"),
    ],
)  # fmt: skip
def test_completions_that_cannot_be(served, change, code):
    asked = {"model": "tiny", "prompt": "abc", **change}
    refused(served.client.post(COMPLETIONS, json=asked), 400, code)


def test_tools_the_template_shows_and_one_that_it_leaves_out(served):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    with_tools = served.post(CHAT, ask(tools=tools))
    without = served.post(CHAT, ask(tools=tools, tool_choice="none"))
    more = with_tools["usage"]["prompt_tokens"] - without["usage"]["prompt_tokens"]
    assert more == len("weather;")  # a token is a byte
    message = refused(served.client.post(CHAT, json=ask(tools=[{"type": "x"}])), 400)
    assert "tools[0]" in message


def idle(served):
    return served.server.state.current.engine.load_now == (0, 0)


def test_who_leaves_in_the_middle_frees_the_place(served, monkeypatch):
    served.chat("tiny")
    engine = served.server.state.current.engine
    monkeypatch.setattr(engine, "_ends", ())
    asked = {"model": "tiny", "prompt": "abc", "temperature": 0, "max_tokens": 120}
    genuine = engine._step

    def step():  # an answer takes seconds
        genuine()
        time.sleep(0.05)

    monkeypatch.setattr(engine, "_step", step)
    with served.client.stream("POST", COMPLETIONS, json={**asked, "stream": True}) as response:
        assert next(response.iter_lines()).startswith("data: ")
        assert engine.load_now == (0, 1)
    until(lambda: idle(served), 5)
    with pytest.raises(httpx.ReadTimeout):
        served.client.post(COMPLETIONS, json=asked, timeout=0.5)
    until(lambda: idle(served), 5)
    assert 'status="499"}' in served.get("/metrics")


def test_who_finds_the_queue_full_is_told_to_wait(served, monkeypatch):
    served.chat("tiny")
    engine = served.server.state.current.engine
    found = []

    def first():
        asked = {"model": "tiny", "prompt": ["abc"] * 8, "max_tokens": 4}
        with httpx.Client(base_url=served.url, timeout=60) as client:
            found.append(client.post(COMPLETIONS, json=asked))

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_has_room", lambda request: False)
        thread = threading.Thread(target=first)
        thread.start()
        until(lambda: engine.load_now[0] == 8, 10)
        response = served.client.post(COMPLETIONS, json={"model": "tiny", "prompt": "abc"})
        refused(response, 429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
    thread.join(60)
    assert len(fine(found[0])["choices"]) == 8
    assert served.chat("tiny")


def test_more_than_the_queue_ever_holds_is_refused(served):
    served.chat("tiny")
    for more in ({"prompt": ["abc"] * 9}, {"prompt": "abc", "n": 9}, {"prompt": ["a"] * 3, "n": 3}):
        response = served.client.post(COMPLETIONS, json={"model": "tiny", "max_tokens": 4, **more})
        assert "at most 8, which is what the queue holds" in refused(response, 400)
    assert len(served.server.state.current.engine._waiting) == 0


def test_who_leaves_the_queue_makes_room_in_it(served, monkeypatch):
    served.chat("tiny")
    engine = served.server.state.current.engine
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_has_room", lambda request: False)
        asked = {"model": "tiny", "prompt": ["abc"] * 8, "max_tokens": 4}
        with pytest.raises(httpx.ReadTimeout):
            served.client.post(COMPLETIONS, json=asked, timeout=0.5)
        until(lambda: engine.load_now[0] == 0, 10)
    assert served.chat("tiny")


def test_answers_of_many_at_once_are_not_mixed(served, alone):
    found: dict[int, str] = {}
    prompts = [f"{'abcdefgh'[at]}{at}" for at in range(8)]

    def work(at):
        asked = {"model": ("tiny", "small", "large")[at % 3], "prompt": prompts[at],
                 "temperature": 0, "max_tokens": 10}  # fmt: skip
        with httpx.Client(base_url=served.url, timeout=60) as client:
            found[at] = fine(client.post(COMPLETIONS, json=asked))["choices"][0]["text"]

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for at, text in found.items():
        adapter = (None, "small", "large")[at % 3]
        assert text == alone(prompts[at], adapter, 10)[0]
    assert len(found) == 8


def test_what_fails_in_the_engine_is_an_error_of_the_server(served, monkeypatch):
    served.chat("tiny")
    engine = served.server.state.current.engine

    def logits(_):
        raise MemoryError("full")

    monkeypatch.setattr(engine._batch, "_logits", logits)
    refused(served.client.post(CHAT, json=ask()), 503, "out_of_memory")
    streamed = events(served.post(CHAT, ask(stream=True)))
    assert streamed[-2]["error"]["code"] == "out_of_memory"
    assert streamed[-1] == "[DONE]"
    assert json.dumps(streamed)


def test_an_answer_that_a_server_breaks_off_is_no_answer():
    """OpenAI knows no such reason for an end."""

    class Engine:
        def submit(self, *requests):
            for request in requests:
                request.say(Piece("a", 1))
                request.say(End("cancelled", 1, 1, 0))

    target = SimpleNamespace(engine=Engine(), adapter=None, label="tiny",
                             prompts=SimpleNamespace(stop=None), check=lambda *_: None)  # fmt: skip
    metrics, said = Metrics(), []

    async def stream():
        asked = Asked(target, [Wanted((1,), Sampling())], metrics, "/v1/chat/completions")

        async def events():
            async for _, piece in asked.pieces():
                yield piece.text

        response = Stream(asked, events(), {})

        async def send(message):
            said.append(message)

        async def receive():
            await asyncio.sleep(60)

        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    with pytest.raises(Closed, match="did not wait"):
        asyncio.run(stream())
    assert 'status="500"' in metrics.text({})
