"""`mlx-ft serve` as a process: the unmodified OpenAI client, signals, and a real training."""

import json
import os
import signal
import subprocess
import sys
import time

import openai
import pytest

from tests.serve.process import Process
from tests.serve.served import fine, until

ROWS = "".join(
    json.dumps({"prompt": f"say {at % 5}", "completion": "abc" * (1 + at % 3)}) + "\n"
    for at in range(24)
)
KEY = "0123456789abcdef-key"


@pytest.fixture
def start(tmp_path, models):
    made = []

    def one(*arguments, **environment):
        made.append(Process(tmp_path, str(models["tiny"]), *arguments, **environment))
        return made[-1]

    yield one
    for process in made:
        process.close()


@pytest.mark.slow
def test_openais_client_chats_and_a_signal_drains(start, models):
    server = start("--adapter", f"mine={models['small']}", "--no-tracking", MLX_FT_API_KEY=KEY)
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").models.list()
    client = server.client(KEY)
    assert {"base", "tiny", "mine"} <= {model.id for model in client.models.list()}
    asked = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 8, "temperature": 0}
    answers = {
        name: client.chat.completions.create(model=name, **asked).choices[0].message.content
        for name in ("tiny", "mine")
    }
    assert answers["tiny"] != answers["mine"]
    streamed = client.chat.completions.create(model="mine", stream=True, **asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == answers["mine"]
    found = client.completions.create(model="tiny", prompt="abc", max_tokens=4, logprobs=2)
    assert len(found.choices[0].logprobs.tokens) <= 4
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="nothing", **asked)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model="tiny", prompt="x" * 500)
    begun = client.completions.create(model="tiny", prompt="ab", max_tokens=100, stream=True,
                                      temperature=0)  # fmt: skip
    first = next(iter(begun))
    server.process.send_signal(signal.SIGTERM)
    rest = [*begun]
    assert first.choices[0].finish_reason is None
    assert rest[-1].choices[0].finish_reason in ("stop", "length")  # it came to its end
    assert server.process.wait(60) == 143
    assert "Traceback" not in server.said()


@pytest.mark.slow
def test_ctrl_c_is_a_clean_end_and_the_place_is_free_again(start, models):
    first = start("--no-tracking")
    port = first.url.rpartition(":")[2]
    busy = subprocess.run(
        [sys.executable, "-m", "mlx_ft", "serve", "--model", str(models["tiny"]), "--port", port],
        cwd=first.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert busy.returncode == 2
    assert "--port" in busy.stderr
    assert first.end(signal.SIGINT) == 0
    assert "Traceback" not in first.said()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--model", "nothing"], "neither a recipe"),
        (["--model", "tinyllama"], "mlx-ft models download tinyllama"),
        (["--adapter", "x"], "NAME=RUN"),
        (["--adapter", "x=nowhere"], "--adapter"),
        (["--api-key-file", "nowhere"], "cannot be read"),
        (["--port", "99999"], "0 to 65535"),
        (["--queue", "0"], "1 or more"),
        (["--memory-gb", "nan"], "above 0"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_listens(
    arguments, words, tmp_path, monkeypatch, capsys
):
    from mlx_ft import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("MLX_FT_API_KEY", raising=False)
    command = ["serve", "--port", "0", "--home", "home", *arguments]
    try:
        code = cli.main(command)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err


@pytest.mark.slow
def test_openais_client_trains_and_asks_what_came_of_it(start):
    server = start("--no-tracking")
    client = server.client()
    file = client.files.create(file=("rows.jsonl", ROWS.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="mine", seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 20, "batch_size": 4, "learning_rate_multiplier": 10,
        }}},
    )  # fmt: skip
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"), 300)
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    events = [*client.fine_tuning.jobs.list_events(job.id, limit=50)]
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]
    assert losses[0] < 0.7 * losses[-1]  # the newest first
    asked = {"messages": [{"role": "user", "content": "say 1"}], "temperature": 0.01,
             "max_tokens": 12}  # fmt: skip
    tuned = client.chat.completions.create(model=job.fine_tuned_model, **asked)
    base = client.chat.completions.create(model="tiny", **asked)
    assert tuned.choices[0].message.content.startswith("abcabc")
    assert not base.choices[0].message.content.startswith("abc")
    client.models.delete("mine")
    assert server.end() == 143


@pytest.mark.slow
def test_the_reference_systems_circle_with_a_real_training_that_is_killed(start):
    server = start("--no-tracking")
    http = server.http()
    texts = [f"### Instruction:\nsay {at % 5}\n\n### Response:\n{'abc' * 2}" for at in range(20)]
    fine(http.post("/api/training/data/upload", json={"dataset_name": "d", "train_texts": texts}))
    job = fine(http.post("/api/training/start", json={
        "model_name": "tiny", "dataset_name": "d", "output_dir": "./adapters/a",
        "lora_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05},
        "training_config": {"batch_size": 2, "learning_rate": 1e-2, "max_steps": 400,
                            "save_steps": 20},
    }))["job_id"]  # fmt: skip

    def status():
        return fine(http.get(f"/api/training/status/{job}"))

    until(lambda: status()["current_step"] >= 40, 120)
    assert status()["total_steps"] == 400
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    again = start("--no-tracking")
    http = again.http()
    assert status()["status"] == "interrupted"
    fine(http.post(f"/api/training/resume/{job}"))
    until(lambda: status()["status"] in ("completed", "failed"), 300)
    ended = status()
    assert ended["status"] == "completed", ended
    assert ended["current_step"] == 400
    fine(http.post("/api/adapters/a/load"))
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "say 1"}],
             "temperature": 0.01, "max_tokens": 12}  # fmt: skip
    answer = fine(http.post("/v1/chat/completions", json=asked))["choices"][0]["message"]
    assert answer["content"].startswith("abcabc")
    time.sleep(0.1)
    assert again.end() == 143
