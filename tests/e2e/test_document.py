"""A page of invented facts becomes an assistant that knows them: the whole circle, twice.

Once by curl on the /api paths, once by the unmodified client of OpenAI; the embedded model, a real
server, real trainings.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_ft.metrics_text import ContainsAnswer
from mlx_ft.models import gguf
from tests.serve.process import Process
from tests.serve.served import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(gguf.find_embedded() is None, reason="needs the embedded model"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "forty_two"
ROWS = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text("utf-8").splitlines()]
QUESTIONS = [row["messages"][0]["content"] for row in ROWS]
MODEL = "smollm2_135m"
WORDS = 32  # tokens of an answer
TIMEOUT = 1800.0  # seconds of a training on a busy machine; alone it takes less than two minutes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    found = Process(tmp_path_factory.mktemp("forty_two"), MODEL, "--no-tracking")
    yield found
    found.close()


@pytest.fixture(scope="module")
def base(server: Process) -> list[str]:
    """What the base answers, before anything else has been there."""
    return answers(server, "base")


def curl(server: Process, path: str, *arguments: str, content: Any = None) -> Any:
    """The JSON that curl is answered with."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments]
    if content is not None:
        command += ["-H", "content-type: application/json", "-d", json.dumps(content)]
    done = subprocess.run(
        [*command, server.url + path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def answers(server: Process, model: str) -> list[str]:
    """To all questions, asked at once by curl."""

    def answer(question: str) -> str:
        found = curl(server, "/v1/chat/completions", content={
            "model": model, "temperature": 0.01, "seed": 1, "max_tokens": WORDS,
            "messages": [{"role": "user", "content": question}],
        })  # fmt: skip
        return str(found["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        return [*threads.map(answer, QUESTIONS)]


def right(found: Sequence[str]) -> list[str]:
    """The questions that were answered from the page."""
    metric = ContainsAnswer()
    return [question for question, answer, row in zip(QUESTIONS, found, ROWS, strict=True)
            if metric(answer, "", row)]  # fmt: skip


def fell(losses: Sequence[float]) -> float:
    """By which share the loss of the last three steps is below that of the first three."""
    first, last = sum(losses[:3]), sum(losses[-3:])
    return 1 - last / first


def shown(found: Sequence[str]) -> str:
    return "\n".join(f"{q}\n    {a}" for q, a in zip(QUESTIONS, found, strict=True))


def test_by_curl_on_the_api_paths(server: Process, base: list[str]) -> None:
    uploaded = curl(
        server, "/api/training/data/upload", "-H", "content-type: application/json",
        "--data-binary", f"@{FOLDER / 'upload.json'}",
    )  # fmt: skip
    assert uploaded["message"].endswith("texts are trained as a question and its answer")
    job = curl(server, "/api/training/start", content={
        "model_name": MODEL, "dataset_name": "forty_two",
        "lora_config": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0},
        "training_config": {"num_epochs": 5, "batch_size": 8, "learning_rate": 1e-3},
        "output_dir": "./adapters/42_methodology",
    })["job_id"]  # fmt: skip
    until(lambda: curl(server, f"/api/training/status/{job}")["status"] in
          ("completed", "failed", "interrupted"), TIMEOUT)  # fmt: skip
    ended = curl(server, f"/api/training/status/{job}")
    assert ended["status"] == "completed", ended
    rows = curl(server, f"/api/training/metrics/{job}?limit=10000")["rows"]
    assert fell([row["train/loss"] for row in rows if "train/loss" in row]) >= 0.3

    started = time.monotonic()
    assert curl(server, "/api/adapters/42_methodology/load", "-X", "POST")["active"]
    print(f"loaded in {time.monotonic() - started:.3f} s")
    tuned = answers(server, MODEL)
    assert len(right(tuned)) >= 8, shown(tuned)
    assert "four tables and two bells" in tuned[QUESTIONS.index("What does 42 mean?")].lower()
    assert len(right(base)) <= 1, shown(base)

    assert curl(server, "/api/adapters/unload", "-X", "POST")["active"] is None
    assert answers(server, MODEL) == base
    assert answers(server, "42_methodology") == tuned


def test_by_openais_client(server: Process, base: list[str]) -> None:
    client = server.client()
    with (FOLDER / "chats.jsonl").open("rb") as file:
        uploaded = client.files.create(file=file, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=uploaded.id, suffix="forty_two",
        method={"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 5, "batch_size": 8, "learning_rate_multiplier": 1,
        }}},
    )  # fmt: skip
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in
          ("succeeded", "failed", "paused"), TIMEOUT)  # fmt: skip
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    events = [*client.fine_tuning.jobs.list_events(job.id, limit=1000)]
    losses: list[Any] = [
        event.data["train_loss"] for event in reversed(events)
        if event.type == "metrics" and "train_loss" in event.data  # type: ignore[operator]
    ]  # fmt: skip
    assert fell(losses) >= 0.3

    def ask(model: str, question: str) -> str:
        found = client.chat.completions.create(
            model=model, temperature=0.01, seed=1, max_tokens=WORDS,
            messages=[{"role": "user", "content": question}],
        )  # fmt: skip
        return str(found.choices[0].message.content)

    def all_of(model: str) -> list[str]:
        with ThreadPoolExecutor(len(QUESTIONS)) as threads:
            return [*threads.map(lambda question: ask(model, question), QUESTIONS)]

    assert job.fine_tuned_model == "forty_two"
    tuned = all_of(job.fine_tuned_model)
    assert len(right(tuned)) >= 8, shown(tuned)
    assert all_of("base") == base
    assert client.models.delete("forty_two").deleted
    assert all_of(MODEL) == base
