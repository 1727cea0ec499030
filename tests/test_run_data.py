"""What data does to whole runs: labels, templates, mixtures, and the report beside the run."""

import json

import pytest

import mlx_ft
from mlx_ft.main import main
from tests.jobs import job, summary


def rows(path, count, **more):
    data = [{"prompt": f"say {i}", "completion": "abc", **more} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in data))


def test_of_1000_labelled_conversations_746_are_trained_on(place, capsys):
    turns = [{"from": "human", "value": "say"}, {"from": "gpt", "value": "ab"}]
    data = []
    for i in range(1000):
        own = [{**turns[0], "value": f"say {i}"}, turns[1]]
        label = "desirable" if i % 1000 < 746 else "undesirable"
        data.append({"conversations": own, "label": label})
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    assert main(job("train.max_steps=2", "data.valid_fraction=0", "data.metric=none")) == 0
    said = capsys.readouterr().err
    assert "254 of 1000 rows are labelled undesirable and left aside" in said
    assert "746 training rows" in said
    report = json.loads((place / "run" / "data" / "report.json").read_text())
    assert report["rows"]["set_aside"] == 254
    assert report["splits"]["train"]["examples"] == 746


def test_the_report_and_the_quarantine_lie_with_the_run(place, capsys):
    rows(place / "rows.jsonl", 30)
    with (place / "rows.jsonl").open("a") as file:
        file.write('{"prompt": 3, "completion": "x"}\n')
    assert main(job()) == 2
    assert "rows.jsonl:31" in capsys.readouterr().err
    assert not (place / "run").exists()
    assert main(job("data.max_errors=1")) == 0
    folder = place / "run" / "data"
    assert json.loads((folder / "quarantine.jsonl").read_text()) == {"prompt": 3, "completion": "x"}
    assert json.loads((folder / "report.json").read_text())["rows"]["rejected"] == 1
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_template_of_ones_own_is_saved_and_used_again(place):
    rows(place / "rows.jsonl", 30)
    own = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}{{ eos_token }}"
        "{% else %}Q:{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    (place / "own.jinja").write_text(own)
    assert main(job("data.template=own.jinja", "data.metric=none")) == 0
    (place / "own.jinja").unlink()  # the adapter keeps it
    assert (place / "run" / "adapter" / "chat_template.jinja").read_text().startswith(own)
    tuned = mlx_ft.load("run")
    assert tuned.tokenizer.chat_template.startswith(own)
    again = mlx_ft.evaluate(tuned)
    assert again.loss == pytest.approx(summary(place / "run")["val_loss_after"], rel=1e-5)


def test_a_mixture_shows_rows_by_their_weights(place, capsys):
    rows(place / "a.jsonl", 8)
    rows(place / "b.jsonl", 8, kind="b")
    mixture = "data.path=[{path: a.jsonl, weight: 3},b.jsonl]"
    arguments = job(mixture, "data.valid_fraction=0", "data.metric=none", "train.epochs=1")
    arguments = [text for text in arguments if not text.startswith("train.max_steps")]
    assert main(arguments) == 0
    assert summary(place / "run")["steps"] == 8  # 3 x 8 + 8 rows, 4 in a step
    assert "weight" not in capsys.readouterr().err


@pytest.mark.parametrize(("load", "said"), [(0.5, False), (1000.0, True)])
def test_a_busy_machine_is_said(place, capsys, monkeypatch, load, said):
    rows(place / "rows.jsonl", 30)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    assert main(job("train.max_steps=1", "data.metric=none")) == 0
    out, err = capsys.readouterr()
    assert ("threads=1 is then often faster" in err) == said
    assert "change it   python train.py --config-dir run --config-name config lora.rank=32" in out


def test_a_run_whose_tokenizer_writes_its_chats_in_python_is_used_again(place, monkeypatch):
    monkeypatch.setenv("MLX_FT_CACHE", str(place / "cache"))  # it remembers tokenizers
    for module in ("render", "template"):
        monkeypatch.setattr(f"mlx_ft.data.{module}.written_by_hand", lambda _: True)
    rows(place / "rows.jsonl", 30)
    assert main(job("data.metric=none")) == 0
    assert not (place / "run/adapter/chat_template.jinja").exists()
    (place / "run/adapter/chat_template.jinja").touch()  # as earlier versions did
    again = mlx_ft.evaluate("run")
    assert again.loss == pytest.approx(summary(place / "run")["val_loss_after"], rel=1e-5)
