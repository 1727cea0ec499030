"""Adapters and base models come and go; names are names and nothing more."""

import json
import shutil
import threading

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_ft import lora_files
from mlx_ft.engine.engine import Limits
from mlx_ft.saved import TEMPLATE
from tests.serve.hostile import TEXTS, attack
from tests.serve.served import fine, refused, tree, until


def keep(served, models, *names, **about):
    for name in names:
        served.server.shelf.put(name, models[name], {"base": "tiny", "digest": None, **about})


def test_the_active_adapter_answers_in_the_name_of_the_base(served, models):
    keep(served, models, "small", "large")
    base = served.chat("tiny")
    assert served.get("/api/adapters")["active"] is None
    loaded = served.post("/api/adapters/small/load")
    assert (loaded["status"], loaded["active"]) == ("loaded", "small")
    assert served.chat("tiny") == served.chat("small") != base
    assert served.chat("base") == base
    listed = served.get("/api/adapters")
    assert listed["active"] == "small"
    by_name = {one["name"]: one for one in listed["adapters"]}
    assert set(by_name) == {"small", "large"}
    assert by_name["small"]["loaded"] is True
    assert by_name["large"]["loaded"] is False
    assert by_name["small"]["base_model"] == "tiny"
    assert by_name["small"]["size"] > 1000
    served.post("/api/adapters/large/load")
    assert served.chat("tiny") == served.chat("large") != base
    assert served.post("/api/adapters/unload")["unloaded"] == "large"
    assert served.post("/api/adapters/unload")["unloaded"] is None
    assert served.chat("tiny") == base
    assert fine(served.client.delete("/api/adapters/large"))["status"] == "deleted"
    refused(served.client.post("/api/adapters/large/load"), 404, "not_found")
    refused(served.client.delete("/api/adapters/large"), 404, "not_found")
    served.post("/api/adapters/small/load")
    assert fine(served.client.delete("/api/adapters/small"))["active"] is None
    assert served.chat("tiny") == base


def test_openais_list(served, models):
    keep(served, models, "small")
    found = served.get("/v1/models")
    assert found["object"] == "list"
    by_id = {one["id"]: one for one in found["data"]}
    assert {"base", "tiny", "second", "small"} <= set(by_id)
    assert "tinyllama" not in by_id  # not on this machine
    assert by_id["small"]["parent"] == "tiny"
    assert served.get("/v1/models/small") == by_id["small"]
    refused(served.client.get("/v1/models/large"), 404, "model_not_found")
    refused(served.client.delete("/v1/models/tiny"), 403)
    deleted = fine(served.client.delete("/v1/models/small"))
    assert deleted == {"id": "small", "object": "model", "deleted": True}
    refused(served.client.get("/v1/models/small"), 404)


def test_an_adapter_of_the_same_name_takes_the_place_of_the_other(served, models):
    keep(served, models, "small", "large")
    large = served.chat("large")
    served.post("/api/adapters/small/load")
    served.server.shelf.put("small", models["large"], {"base": "tiny", "digest": None})
    served.server.state.refresh("small")
    assert served.chat("small") == served.chat("tiny") == large


def test_its_own_defaults_are_drawn_with(served, models):
    keep(served, models, "small")
    asked = {"model": "small", "messages": [{"role": "user", "content": "abc"}]}
    path = "/v1/chat/completions"
    shown = fine(served.client.put("/api/adapters/small/defaults",
                                   json={"temperature": 0, "max_tokens": 3}))  # fmt: skip
    assert shown["defaults"] == {"temperature": 0, "max_tokens": 3}
    found = served.post(path, asked)
    assert found["usage"]["completion_tokens"] <= 3
    assert found["choices"][0]["message"]["content"] == served.chat("small", max_tokens=3)
    assert served.post(path, {**asked, "max_tokens": 5})["usage"]["completion_tokens"] <= 5
    # One that is more than the context has left is no fault of the request.
    fine(served.client.put("/api/adapters/small/defaults", json={"max_tokens": 1 << 24}))
    assert served.post(path, {**asked, "temperature": 0})["usage"]["completion_tokens"] > 5
    for wrong in ({"temperature": -1}, {"colour": 1}, {"max_tokens": 0}):
        refused(served.client.put("/api/adapters/small/defaults", json=wrong), 422)
    refused(served.client.put("/api/adapters/nothing/defaults", json={}), 404)


def test_another_base_takes_its_turn(served, models):
    keep(served, models, "small")
    first = served.chat("tiny")
    served.post("/api/adapters/small/load")
    second = served.chat("second")
    assert second != first
    assert served.server.state.active is None
    assert served.chat("second") == served.chat("base") == second
    assert served.chat("small") != first  # its own base comes back for it
    assert served.server.state.base.name == "tiny"
    assert served.chat("tiny") == first


def test_a_base_is_left_once_its_answers_are_whole(served):
    whole = served.post("/v1/completions", {"model": "tiny", "prompt": "ab", "temperature": 0,
                                            "max_tokens": 100})  # fmt: skip
    found = []

    def ask():
        with httpx.Client(base_url=served.url, timeout=60) as client:
            asked = {"model": "tiny", "prompt": "ab", "temperature": 0, "max_tokens": 100}
            found.append(fine(client.post("/v1/completions", json=asked)))

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: served.server.state.current.engine.load_now[1] == 1 or found)
    served.chat("second")
    thread.join(60)
    assert found[0]["choices"][0]["text"] == whole["choices"][0]["text"]


def test_an_adapter_of_other_weights_is_refused(served, models):
    keep(served, models, "small", digest="0" * 64)
    message = refused(served.client.post("/api/adapters/small/load"), 400, "invalid_adapter")
    assert "other weights" in message
    keep(served, models, "small", digest=served.server.state.current.model.digest)
    served.post("/api/adapters/small/load")


def damage_shape(folder):
    save_file({"model.layers.0.self_attn.q_proj.lora_a": np.zeros((3, 3), np.float32)},
              folder / lora_files.WEIGHTS)  # fmt: skip


def damage_header(folder):
    (folder / lora_files.WEIGHTS).write_bytes(b"\xff" * 100)


def damage_names(folder):
    save_file({"os.system": np.zeros(3, np.float32)}, folder / lora_files.WEIGHTS)


def damage_settings(folder):
    (folder / lora_files.SETTINGS).write_text(json.dumps({"lora_parameters": {"rank": 10**9}}))


def damage_link(folder):
    (folder / lora_files.SETTINGS).rename(folder / "elsewhere")
    (folder / lora_files.SETTINGS).symlink_to(folder / "elsewhere")


def damage_kind(folder):
    save_file({"a.lora_a": np.zeros(3, np.int32)}, folder / lora_files.WEIGHTS)


def damage_template(folder):
    (folder / "own.jinja").write_text("{{ messages }}")
    (folder / TEMPLATE).write_text(str(folder / "own.jinja"))


@pytest.mark.parametrize("damage", [damage_shape, damage_header, damage_names, damage_settings,
                                    damage_link, damage_kind, damage_template])  # fmt: skip
def test_files_are_looked_at_before_they_are_loaded(served, models, damage):
    base = served.chat("tiny")
    keep(served, models, "small")
    damage(served.home / "adapters" / "small")
    refused(served.client.post("/api/adapters/small/load"), 400, "invalid_adapter")
    assert served.chat("tiny") == base


def test_vllms_paths_are_there_only_when_switched_on(served):
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        refused(served.client.post(path, json={"lora_name": "x", "lora_path": "/tmp"}), 404)


def test_vllms_paths(serve, models):
    served = serve(lora_routes=True)
    load = {"lora_name": "mine", "lora_path": str(models["small"])}
    keep(served, models, "small")
    assert "mine" in served.post("/v1/load_lora_adapter", load)
    assert served.chat("mine") == served.chat("small")
    refused(served.client.post("/v1/load_lora_adapter", json=load), 400)
    again = {"lora_name": "mine", "lora_path": str(models["large"]), "load_inplace": True}
    served.post("/v1/load_lora_adapter", again)
    assert served.chat("mine") != served.chat("small")
    refused(served.client.delete("/api/adapters/mine"), 400)
    served.post("/v1/unload_lora_adapter", {"lora_name": "mine"})
    refused(served.client.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}), 404)
    for path in ("/nowhere", "relative", "a\0b", "x" * 4000, str(models["tiny"])):
        wrong = {"lora_name": "mine", "lora_path": path}
        refused(served.client.post("/v1/load_lora_adapter", json=wrong), 400)
    for name in ("tiny", "base"):
        wrong = {"lora_name": name, "lora_path": str(models["small"])}
        refused(served.client.post("/v1/load_lora_adapter", json=wrong), 400)


def test_a_folder_that_has_another_adapter_by_now_is_read_again(serve, models, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(models["small"], folder)
    served = serve(lora_routes=True, limits=Limits(rows=4, waiting=8, adapters=1))
    served.post("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": str(folder)})
    first = served.chat("mine")
    keep(served, models, "small")
    served.chat("small")  # "mine" leaves memory
    shutil.rmtree(folder)
    shutil.copytree(models["large"], folder)
    asked = {"model": "mine", "messages": [{"role": "user", "content": "a"}]}
    response = served.client.post("/v1/chat/completions", json=asked)
    refused(response, 503, "adapter_replaced")
    assert response.headers["retry-after"] == "1"
    keep(served, models, "large")
    assert served.chat("mine") == served.chat("large") != first


@pytest.mark.parametrize("names", [TEXTS[3::8], pytest.param(TEXTS, marks=pytest.mark.slow)])
def test_hostile_names_reach_nothing(names, serve, models, tmp_path):
    served = serve(lora_routes=True)
    keep(served, models, "small")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("secret")
    served.chat("tiny")
    before = tree(tmp_path / "home"), tree(tmp_path / "outside")
    client = served.client
    assert [fault for name in names for fault in attack(client, name, models["small"])] == []
    for name in ("..", ".", "/", "a/..", "../..", "a\\..", "x/.hidden", "x/CON"):
        start = {"model_name": "tiny", "train_texts": ["a b c"], "output_dir": name}
        refused(client.post("/api/training/start", json=start), 400, "invalid_name")
    assert (tree(tmp_path / "home"), tree(tmp_path / "outside")) == before


def test_a_template_in_a_text_is_a_text(served):
    plain = served.post("/v1/chat/completions", {
        "model": "tiny", "max_tokens": 1,
        "messages": [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}],
    })  # fmt: skip
    assert plain["usage"]["prompt_tokens"] == len("u:{{ 7 * 7 }}{% raw %}a:") + 1
    text = "### Instruction:\n{{ 7 * 7 }} ${oc.env:HOME}\n\n### Response:\n{% include 'x' %}"
    served.post("/api/training/data/upload", {"dataset_name": "d", "train_texts": [text]})
    (row,) = (served.home / "datasets" / "d" / "rows.jsonl").read_text().splitlines()
    assert json.loads(row) == {"prompt": "{{ 7 * 7 }} ${oc.env:HOME}",
                               "completion": "{% include 'x' %}"}  # fmt: skip


def test_no_template_comes_with_a_request(served):
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    for more in ({"chat_template": "{{ 7 }}"}, {"chat_template_kwargs": {"a": 1}}):
        refused(served.client.post("/v1/chat/completions", json={**chat, **more}), 400)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('true') }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ messages",
    ],
)
def test_an_adapters_template_does_nothing_but_render(served, models, template):
    keep(served, models, "small")
    (served.home / "adapters" / "small" / TEMPLATE).write_text(template)
    base = served.chat("tiny")
    asked = {"model": "small", "messages": [{"role": "user", "content": "abc"}]}
    message = refused(served.client.post("/v1/chat/completions", json=asked), 400)
    assert "subclasses" not in message.replace(template, "")
    assert served.chat("tiny") == base
