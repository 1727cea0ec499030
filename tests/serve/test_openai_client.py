"""The unmodified OpenAI client; with a real process and a real training: test_process.py."""

import openai
import pytest

from mlx_ft.serve import jobs as module
from tests.serve.served import until
from tests.serve.test_training import FAKE, LINES

ASKED = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 8, "temperature": 0}


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(autouse=True)
def _fake(tmp_path, models, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE.replace("ADAPTER", repr(str(models["small"]))))
    monkeypatch.setattr(module, "COMMAND", (module.COMMAND[0], str(fake)))


def test_it_uploads_trains_polls_and_chats_with_the_result(client):
    file = client.files.create(file=("rows.jsonl", LINES), purpose="fine-tune")
    assert client.files.content(file.id).read() == LINES
    assert [one.id for one in client.files.list()] == [file.id]
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="mine",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_headers={"Idempotency-Key": "openai"},
    )  # fmt: skip
    assert job.status == "queued"
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"))
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.fine_tuned_model == "mine"
    assert job.hyperparameters.n_epochs == 2
    events = [*client.fine_tuning.jobs.list_events(job.id, limit=2)]  # page after page
    assert events[0].message.endswith("completed")
    assert events[-1].message.startswith("Created")
    assert [*client.fine_tuning.jobs.checkpoints.list(job.id)] == []
    assert job.id in [one.id for one in client.fine_tuning.jobs.list(limit=1)]
    tuned = client.chat.completions.create(model="mine", **ASKED).choices[0].message.content
    base = client.chat.completions.create(model="tiny", **ASKED).choices[0].message.content
    assert tuned != base
    stream = client.chat.completions.create(
        model="mine", stream=True, stream_options={"include_usage": True}, **ASKED
    )
    chunks = [*stream]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == tuned
    assert chunks[-1].usage.completion_tokens <= 8
    assert {"base", "tiny", "mine"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("mine").id == "mine"
    assert client.models.delete("mine").deleted
    assert client.files.delete(file.id).deleted


def test_it_knows_our_errors(client):
    with pytest.raises(openai.NotFoundError, match="does not exist") as error:
        client.chat.completions.create(model="nothing", **ASKED)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="maximum context length") as error:
        client.completions.create(model="tiny", prompt="x" * 500)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="Unrecognized request argument"):
        client.chat.completions.create(model="tiny", extra_body={"colour": 1}, **ASKED)
    with pytest.raises(openai.BadRequestError, match=r"rows\.jsonl:1: not JSON"):
        client.files.create(file=("rows.jsonl", b"no rows"), purpose="fine-tune")


def test_log_probabilities_and_texts(client):
    found = client.chat.completions.create(model="tiny", logprobs=True, top_logprobs=2, **ASKED)
    content = found.choices[0].logprobs.content
    assert all(len(one.top_logprobs) == 2 for one in content)
    found = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=4, logprobs=2)
    assert len(found.choices) == 2
    assert len(found.choices[0].logprobs.token_logprobs) <= 4
