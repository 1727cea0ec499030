"""Jobs by both kinds of paths, with a quick stand-in for the training itself."""

import json
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from mlx_ft.serve import fine_tuning
from mlx_ft.serve import jobs as module
from mlx_ft.serve.plan import Plan
from tests.serve.served import events, fine, refused, tree, until

# As long as it takes for train.max_steps=N: N / 100 seconds. Goes on where it was stopped.
FAKE = """
import json, os, pathlib, shutil, signal, sys, threading, time
def follow():
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=follow, daemon=True).start()
given = dict(text.partition("=")[::2] for text in sys.argv[1:])
run = pathlib.Path(given["hydra.run.dir"].strip("'"))
run.mkdir(exist_ok=True)
steps = int(given.get("train.max_steps", "5").replace("null", "5"))
(run / "origin.json").write_text(json.dumps({
    "steps": steps, "fingerprint": {"model": {"weights": None}}, "given": sys.argv[1:],
}))
rows = run / "metrics.jsonl"
done = len(rows.read_text().splitlines()) if rows.exists() else 0
def stop(*_):
    folder = run / "checkpoints" / f"step-{done:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print(f"from step {done}", flush=True)
while done < steps:
    time.sleep(0.01)
    done += 1
    with rows.open("a") as file:
        file.write(json.dumps({"step": done, "train/loss": 3 / done}) + chr(10))
if steps == 13:
    sys.exit("the data is no good")
shutil.copytree(ADAPTER, run / "adapter", dirs_exist_ok=True)
(run / "summary.json").write_text(json.dumps({"status": "FINISHED", "run_id": "r1", "steps": done}))
"""
TEXTS = ["### Instruction:\nWhat is 42?\n\n### Response:\nA method.", "Another text."]
LINES = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
START = {
    "model_name": "tiny",
    "dataset_name": "page",
    "lora_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05},
    "training_config": {"num_epochs": 3, "batch_size": 1, "learning_rate": 2e-4, "max_steps": 5},
    "output_dir": "./adapters/42_methodology",
}


@pytest.fixture(autouse=True)
def _fake(tmp_path, models, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE.replace("ADAPTER", repr(str(models["small"]))))
    monkeypatch.setattr(module, "COMMAND", (sys.executable, str(fake)))


def upload(served, name="page", texts=TEXTS):
    return served.post("/api/training/data/upload", {"dataset_name": name, "train_texts": texts})


def wait(served, job_id, *wanted):
    found = {}

    def there():
        found.update(served.get(f"/api/training/status/{job_id}"))
        return found["status"] in wanted

    until(there)
    return found


def long(steps=3000, **more):
    return {**START, "training_config": {"max_steps": steps}, **more}


def test_the_whole_way_by_the_reference_systems_paths(served):
    base = served.chat("tiny")
    told = upload(served)
    assert told["rows"] == 2
    assert "1 texts are trained as a question and its answer" in told["message"]
    assert "as they are" in told["message"]
    started = served.post("/api/training/start", START)
    assert started["status"] == "queued"
    ended = wait(served, started["job_id"], "completed", "failed")
    assert ended["status"] == "completed", ended
    assert ended["adapter_name"] == "42_methodology"
    assert (ended["current_step"], ended["total_steps"], ended["progress"]) == (5, 5, 100.0)
    assert ended["loss"] == pytest.approx(0.6)
    assert ended["metrics"]["train/loss"] == ended["loss"]
    assert ended["error"] is None
    (adapter,) = served.get("/api/adapters")["adapters"]
    assert (adapter["name"], adapter["job_id"]) == ("42_methodology", started["job_id"])
    served.post("/api/adapters/42_methodology/load")
    assert served.chat("tiny") != base
    served.post("/api/adapters/unload")
    assert served.chat("tiny") == base
    assert served.get("/api/training/jobs", params={"limit": 1})["jobs"] == [ended]
    given = json.loads(
        (served.home / "jobs" / started["job_id"] / "run" / "origin.json").read_text()
    )["given"]
    assert {"lora.rank=4", "lora.alpha=8.0", "lora.dropout=0.05", "train.max_steps=5",
            "optimizer.learning_rate=0.0002", "memory_profile.micro_batch_size=1",
            "data.valid_fraction=0.0", "train.resume=auto"} <= set(given)  # fmt: skip


def test_rows_of_messages_and_files(served):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = "/api/training/data/upload"
    for messages in (turns, [{"messages": turns}]):
        told = served.post(path, {"dataset_name": "chat", "messages": messages})
        assert told["rows"] == 1
    assert told["replaced"] is True
    for content in (LINES, b'[{"text": "### Instruction:\\na\\n### Response:\\nb"}]'):
        told = fine(served.client.post(path, data={"dataset_name": "file"},
                                       files={"file": ("../../x.jsonl", content)}))  # fmt: skip
    assert "question and its answer" in told["message"]
    listed = served.get("/api/datasets")["datasets"]
    assert {one["name"]: one["rows"] for one in listed} == {"chat": 1, "file": 1}
    report = served.get("/api/datasets/file/report")
    assert report["report"]["splits"]["train"]["rows"] == 1
    assert str(served.home) not in json.dumps(report)
    assert fine(served.client.delete("/api/datasets/chat"))["status"] == "deleted"
    refused(served.client.get("/api/datasets/chat"), 404)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"dataset_name": "x"}, 422),
        ({"dataset_name": "x", "train_texts": []}, 422),
        ({"dataset_name": "x", "train_texts": [" "]}, 400),
        ({"dataset_name": "x", "train_texts": [7]}, 422),
        ({"dataset_name": "x", "train_texts": ["a"], "messages": [{"role": "user"}]}, 422),
        ({"dataset_name": "x", "messages": [{"role": "user", "content": "a"}]}, 400),
        ({"dataset_name": "x", "messages": [{"messages": "a"}]}, 400),
        ({"dataset_name": "x", "train_texts": ["a"], "path": "/etc"}, 422),
        ({"train_texts": ["a"]}, 422),
        ([], 422),
    ],
)
def test_data_that_is_none(served, content, status):
    before = tree(served.home)
    response = served.client.post("/api/training/data/upload", json=content)
    refused(response, status)
    assert tree(served.home) == before


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"GGUF\x03", b"{", b"[1]", b"not json",
                                     b'{"a": 1}\n', b'{"messages": []}\n'])  # fmt: skip
def test_files_that_are_no_rows(served, content):
    before = tree(served.home)
    for path, data in (("/v1/files", {"purpose": "fine-tune"}),
                       ("/api/training/data/upload", {"dataset_name": "x"})):  # fmt: skip
        files = {"file": ("rows.jsonl", content)}
        refused(served.client.post(path, data=data, files=files), 400)
    assert tree(served.home) == before


@pytest.mark.parametrize(
    "change",
    [
        {"_target_": "os.system"}, {"hydra.run.dir": "/tmp/x"}, {"overrides": ["a=b"]},
        {"lora_config": {"_target_": "os.system"}}, {"lora_config": {"r": "${oc.env:HOME}"}},
        {"lora_config": {"r": 0}}, {"lora_config": {"r": 10**6}},
        {"lora_config": {"bias": "all"}},
        {"training_config": {"hydra.launcher": "x"}}, {"training_config": {"data.path": "/etc"}},
        {"training_config": {"learning_rate": "1e-4 hydra.run.dir=/tmp"}},
        {"training_config": {"learning_rate": -1}}, {"training_config": {"webhook": "http://x"}},
        {"model_name": ["tiny"]}, {"train_texts": ["a"]}, {"dataset_name": None},
    ],
)  # fmt: skip
def test_what_no_job_can_be_told(served, change):
    upload(served)
    before = tree(served.home)
    refused(served.client.post("/api/training/start", json={**START, **change}), 422)
    assert tree(served.home) == before


@pytest.mark.parametrize(
    "modules", ["a;b", "x y", "${seed}", "['a']", "../x", ["q_proj", "a,b=c"], ["nothing_here"]]
)
def test_modules_are_names(served, modules):
    upload(served)
    asked = {**START, "lora_config": {"target_modules": modules}}
    response = served.client.post("/api/training/start", json=asked)
    if modules == ["nothing_here"]:  # the run itself knows the model's names
        assert "lora.target_modules=['nothing_here']" in (
            served.server.jobs.get(fine(response)["job_id"]).overrides
        )
    else:
        refused(response, 400)


def test_models_that_cannot_be_trained(served):
    upload(served)
    for name, code in (("nothing", "model_not_found"), ("tinyllama", "model_not_downloaded"),
                       ("base", "model_not_found")):  # fmt: skip
        asked = {**START, "model_name": name}
        refused(served.client.post("/api/training/start", json=asked), 404, code)
    for name in ("tiny", "base"):
        asked = {**START, "output_dir": f"x/{name}"}
        refused(served.client.post("/api/training/start", json=asked), 400, "invalid_name")


def test_stopped_resumed_and_cancelled(served):
    upload(served)
    job = served.post("/api/training/start", long(120))["job_id"]
    until(lambda: served.get(f"/api/training/status/{job}")["current_step"] > 2)
    running = served.get(f"/api/training/status/{job}")
    assert running["status"] == "running"
    assert 0 < running["progress"] < 100
    served.post(f"/api/training/stop/{job}")
    stopped = wait(served, job, "stopped")
    assert stopped["current_step"] < 120
    page = served.get(f"/v1/fine_tuning/jobs/{job}/checkpoints")
    assert page["data"][0]["step_number"] == stopped["current_step"]
    served.post(f"/api/training/resume/{job}")
    assert wait(served, job, "completed", "failed")["current_step"] == 120
    first = served.get(f"/api/training/logs/{job}", params={"limit": 12})
    assert first["text"].startswith("from step 0")
    rest = served.get(f"/api/training/logs/{job}", params={"offset": first["next_offset"]})
    assert f"from step {stopped['current_step']}" in first["text"] + rest["text"]
    assert rest["next_offset"] == rest["size"]
    refused(served.client.post(f"/api/training/stop/{job}"), 409, "conflict")
    refused(served.client.post(f"/api/training/resume/{job}"), 409, "conflict")
    other = served.post("/api/training/start", long())["job_id"]
    served.post(f"/api/training/cancel/{other}")
    wait(served, other, "cancelled")
    refused(served.client.post(f"/api/training/resume/{other}"), 409, "conflict")
    for path in ("stop", "resume", "cancel"):
        refused(served.client.post(f"/api/training/{path}/job-0"), 404, "not_found")


def test_a_job_that_fails_says_why(served):
    upload(served)
    job = served.post("/api/training/start", long(13))["job_id"]
    assert "no good" in wait(served, job, "failed")["error"]
    told = served.get(f"/v1/fine_tuning/jobs/{job}")
    assert told["status"] == "failed"
    assert "no good" in told["error"]["message"]
    assert served.get("/api/adapters")["adapters"] == []


def test_the_same_key_is_the_same_job(served):
    upload(served)
    headers = {"Idempotency-Key": "one"}  # another test does not have it
    jobs = {served.post("/api/training/start", long(), headers=headers)["job_id"] for _ in "abc"}
    assert len(jobs) == 1
    texts = {"model_name": "tiny", "train_texts": TEXTS}
    keyed = {"Idempotency-Key": "two"}
    jobs = {served.post("/api/training/start", texts, headers=keyed)["job_id"] for _ in "ab"}
    assert len(jobs) == 1
    response = served.client.post("/api/training/start", json=long(7), headers=headers)
    refused(response, 409, "conflict")


def test_what_happens_is_told_as_it_happens(served):
    upload(served)
    job = served.post("/api/training/start", long(80))["job_id"]
    with served.client.stream("GET", f"/api/training/events/{job}") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = "".join(response.iter_text())
    told = events(text)
    steps = [one["step"] for one in told if "step" in one]
    assert steps == [*range(1, 81)]
    assert told[-1] == {"job_id": job, "status": "completed"}
    assert [one["status"] for one in told if "progress" in one][-1] == "completed"
    assert text.rstrip().split("event: ")[-1].startswith("end")
    page = served.get(f"/api/training/metrics/{job}", params={"after": 70, "limit": 5})
    assert [row["step"] for row in page["rows"]] == [71, 72, 73, 74, 75]
    assert page["has_more"] is True


def test_a_server_that_ends_ends_its_streams_and_saves_its_job(serve):
    served = serve()
    upload(served)
    job = served.post("/api/training/start", long())["job_id"]
    until(lambda: served.get(f"/api/training/status/{job}")["current_step"] > 2)
    told, connected = [], threading.Event()

    def watch():
        with (
            httpx.Client(base_url=served.url, timeout=60) as client,
            client.stream("GET", f"/api/training/events/{job}") as response,
        ):
            for text in response.iter_text():
                told.append(text)
                connected.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert connected.wait(60)
    served.close()
    thread.join(60)
    assert events("".join(told))[-1]["status"] == "running"
    again = serve()
    assert again.get(f"/api/training/status/{job}")["status"] == "interrupted"
    assert again.get(f"/v1/fine_tuning/jobs/{job}")["status"] == "paused"
    assert [*(again.home / "jobs" / job / "run" / "checkpoints").iterdir()]


def test_without_memory_for_both_the_model_leaves_and_comes_back(served, models, monkeypatch):
    monkeypatch.setattr("mlx_ft.serve.around.plan", lambda config, limit: Plan(2, 1))
    upload(served)
    served.server.shelf.put("small", models["small"], {"base": "tiny", "digest": None})
    served.post("/api/adapters/small/load")
    answer = served.chat("tiny")
    job = served.post("/api/training/start", long(100))["job_id"]
    until(lambda: served.client.get("/ready").status_code == 503)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    response = served.client.post("/v1/chat/completions", json=asked)
    assert job in refused(response, 503, "away")
    assert int(response.headers["retry-after"]) > 0
    wait(served, job, "completed")
    assert served.client.get("/ready").status_code == 200
    assert served.chat("tiny") == answer
    assert served.get("/api/adapters")["active"] == "small"


def test_openais_paths(served):
    file = fine(served.client.post("/v1/files", data={"purpose": "fine-tune"},
                                   files={"file": ("rows.jsonl", LINES)}))  # fmt: skip
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(LINES), "rows.jsonl")
    assert served.get(f"/v1/files/{file['id']}") == file
    assert served.client.get(f"/v1/files/{file['id']}/content").content == LINES
    assert [one["id"] for one in served.get("/v1/files")["data"]] == [file["id"]]
    asked = {
        "model": "tiny", "training_file": file["id"], "suffix": "by-path",
        "method": {"type": "supervised",
                   "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4,
                                                      "learning_rate_multiplier": 0.5}}},
    }  # fmt: skip
    job = served.post("/v1/fine_tuning/jobs", asked)
    assert (job["object"], job["status"], job["fine_tuned_model"]) == (
        "fine_tuning.job", "queued", None,
    )  # fmt: skip
    assert job["hyperparameters"]["n_epochs"] == 2
    overrides = served.server.jobs.get(job["id"]).overrides
    assert {"train.epochs=2.0", "memory_profile.micro_batch_size=4",
            "optimizer.learning_rate=0.0005"} <= set(overrides)  # fmt: skip
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    until(lambda: served.get(path)["status"] in ("succeeded", "failed"))
    ended = served.get(path)
    assert (ended["status"], ended["fine_tuned_model"]) == ("succeeded", "by-path")
    assert served.chat("by-path") != served.chat("tiny")  # at once
    newest = served.get(f"{path}/events", params={"limit": 3})
    assert newest["has_more"] is True
    assert "completed" in newest["data"][0]["message"]
    older = served.get(f"{path}/events", params={"after": newest["data"][-1]["id"], "limit": 99})
    assert older["data"][-1]["message"].startswith("Created")
    losses = [one["data"]["train_loss"] for one in older["data"] if one["type"] == "metrics"]
    assert losses == sorted(losses)
    again = served.post("/v1/fine_tuning/jobs", asked)
    assert served.server.jobs.get(again["id"]).adapter.startswith("by-path-")
    listed = served.get("/v1/fine_tuning/jobs", params={"limit": 2})["data"]
    assert [one["id"] for one in listed] == [again["id"], job["id"]]
    assert fine(served.client.delete(f"/v1/files/{file['id']}"))["deleted"] is True
    refused(served.client.get(f"/v1/files/{file['id']}"), 404, "not_found")
    until(lambda: served.get(f"/v1/fine_tuning/jobs/{again['id']}")["status"] == "succeeded")


def test_openais_pause_resume_and_cancel(served):
    upload(served)
    before = served.post("/api/training/start", long())["job_id"]  # the other one waits for it
    file = fine(served.client.post("/v1/files", data={"purpose": "fine-tune"},
                                   files={"file": ("rows.jsonl", LINES)}))["id"]  # fmt: skip
    job = served.post("/v1/fine_tuning/jobs", {"model": "tiny", "training_file": file})
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    assert served.post(f"{path}/pause")["status"] == "paused"
    assert served.post(f"{path}/resume")["status"] == "queued"
    served.post(f"/api/training/cancel/{before}")
    until(lambda: served.get(path)["status"] == "succeeded")
    refused(served.client.post(f"{path}/cancel"), 409, "conflict")
    assert served.get(f"/v1/fine_tuning/jobs/{before}")["status"] == "cancelled"


def test_two_jobs_at_once_do_not_get_one_name(served, monkeypatch):
    file = fine(served.client.post("/v1/files", data={"purpose": "fine-tune"},
                                   files={"file": ("rows.jsonl", LINES)}))["id"]  # fmt: skip
    genuine, both = fine_tuning._name, threading.Barrier(2)

    def name(*given):
        found = genuine(*given)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # until the other one has looked as well, if it can
        return found

    monkeypatch.setattr(fine_tuning, "_name", name)
    asked, made = {"model": "tiny", "training_file": file, "suffix": "once"}, []
    threads = [
        threading.Thread(target=lambda: made.append(served.post("/v1/fine_tuning/jobs", asked)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = (served.server.jobs.get(job["id"]).adapter for job in made)
    assert one != other
    assert "once" in (one, other)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"training_file": "file-" + "0" * 24}, 400), ({"training_file": "../x"}, 400),
        ({"validation_file": "file-1"}, 400),
        ({"suffix": "a b"}, 400), ({"suffix": ""}, 400), ({"suffix": "tiny"}, 400),
        ({"hyperparameters": {"n_epochs": 0}}, 400), ({"hyperparameters": {"x": 1}}, 400),
        ({"method": {"type": "dpo"}}, 400), ({"integrations": [{"type": "wandb"}]}, 400),
        ({"model": "nothing"}, 404), ({"seed": -1}, 400), ({"_target_": "x"}, 400),
    ],
)  # fmt: skip
def test_openais_jobs_that_cannot_be(served, change, status):
    file = fine(served.client.post("/v1/files", data={"purpose": "fine-tune"},
                                   files={"file": ("rows.jsonl", LINES)}))["id"]  # fmt: skip
    before = tree(served.home)
    asked = {"model": "tiny", "training_file": file, **change}
    refused(served.client.post("/v1/fine_tuning/jobs", json=asked), status)
    assert tree(served.home) == before


class Hook(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.told.append(json.loads(self.rfile.read(length)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_webhook_is_told_how_a_job_has_ended(serve):
    hook = HTTPServer(("127.0.0.1", 0), Hook)
    hook.told = []
    thread = threading.Thread(target=hook.serve_forever)
    thread.start()
    try:
        served = serve(webhook=f"http://127.0.0.1:{hook.server_port}/")
        upload(served)
        job = served.post("/api/training/start", START)["job_id"]
        wait(served, job, "completed")
        until(lambda: hook.told)
        assert hook.told[0]["status"] == "succeeded"
        assert hook.told[0]["run"] == "42_methodology"
    finally:
        hook.shutdown()
        thread.join()
        hook.server_close()
