"""The page: complete, self-contained, and deaf to what answers and names may hold."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from mlx_ft.report.analyse import Goal, analyse
from mlx_ft.report.collect import sweep
from mlx_ft.report.page import page, sample_answers
from tests.report import fakes

pytestmark = pytest.mark.figures

LOSS = Goal("val_loss_after", low=True)
VOID = {"meta", "br", "link", "hr", "img"}
EVIL = "</pre><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>"


class Reader(HTMLParser):
    """Tags with their attributes, texts, and what is not closed as it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text += f"{data} "


def analysed(folder, trials, **more):
    return analyse(sweep(fakes.sweep(folder, trials, **more)), LOSS)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    trials = fakes.grid(ranks=(4, 8), rates=(1e-4, 3e-4), answers=[(EVIL, EVIL, True)])
    trials[0] |= {"status": "FAILED", "error": f"{EVIL}\nsecond line", "loss": None}
    trials[1] |= {"model.path": EVIL}
    return page(analysed(tmp_path_factory.mktemp("evil"), trials), f"/a/{EVIL}/best.yaml")


def test_hostile_text_stays_text(hostile):
    read = Reader(hostile)
    assert read.wrong == []
    assert read.open == []
    assert [tag for tag, _ in read.tags if tag == "script"] == ["script"]
    assert "img" not in {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert read.text.count("alert(1)") >= 6  # shown, in question, answers, error and command


def test_nothing_is_loaded_from_elsewhere(hostile):
    for tag, attributes in Reader(hostile).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    style = hostile[hostile.index("<style>") : hostile.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


def test_a_browser_runs_the_one_script_only(hostile):
    script = hostile[hostile.rindex("<script>") + 8 : hostile.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [a["content"] for tag, a in Reader(hostile).tags
                if a.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_what_a_page_tells(tmp_path):
    trials = fakes.grid(seconds=1000.0)
    trials[8] |= {"status": "FAILED", "error": "memory ran out", "loss": None}
    found = analysed(tmp_path / "mine", trials, unrun=[{"rank": 32, "rate": 1e-4}])
    read = Reader(page(found, "/out/best.yaml"))
    assert (read.wrong, read.open) == ([], [])
    text = " ".join(read.text.split())
    for part in (
        "Sweep mine",
        "10 runs: 8 finished, 1 failed, 1 not run",
        "lora.rank 4, 8, 16, 32",
        "optimizer.learning_rate 1e-4, 3e-4, 1e-3",
        "model.path embedded",
        "best validation loss 0.3000 base model 2.0000",
        "from one seed nobody can tell",
        "rank=16 learning_rate=1e-3 : FAILED . memory ran out",
        "rank=32 learning_rate=1e-4 : NOT RUN . out of hours",
        "python train.py --config-dir /out --config-name best",
        "The best configuration # Run again",
        "mlx 0.32.4",
        "all runs 2.5 h",
    ):
        assert part in text, part
    assert sum(tag == "svg" for tag, _ in read.tags) == 7
    best = [a for tag, a in read.tags if tag == "tr" and a.get("class") == "best"]
    assert len(best) == 1
    assert {a["aria-sort"] for _, a in read.tags if "aria-sort" in a} == set()


def test_a_page_of_nothing_but_failures(tmp_path):
    trials = [{"rank": 4, "loss": None, "status": "FAILED", "error": "boom"}]
    text = page(analysed(tmp_path, trials))
    assert "No run has finished with a validation loss." in text
    assert "boom" in text
    assert "<svg" in text  # how it went until then


def answers(*rights):
    return [(f"q{number}", f"a{number}", right) for number, right in enumerate(rights)]


def test_answers_on_which_the_best_differ_come_first(tmp_path):
    trials = [
        {"rank": 4, "loss": 0.3, "answers": answers(True, False, True, False)},
        {"rank": 8, "loss": 0.4, "answers": answers(True, False, False, True)},
        {"rank": 16, "loss": 0.5, "answers": answers(True, False, False)},
        {"rank": 32, "loss": 0.6, "answers": answers(False, True, False)},  # not of the best three
    ]
    samples, asked = sample_answers(analysed(tmp_path, trials))
    assert asked == 4
    assert [sample.question for sample in samples] == ["q2", "q3", "q1", "q0"]
    assert [(a.name, a.text, a.correct) for a in samples[0].answers] == [
        ("base model", "?", False), ("rank=4", "a2", True), ("rank=8", "a2", False),
        ("rank=16", "a2", False),
    ]  # fmt: skip
    assert [a.name for a in samples[1].answers] == ["base model", "rank=4", "rank=8"]


def test_long_answers_are_cut_and_said_to_be(tmp_path):
    trials = [{"rank": 4, "loss": 0.3, "answers": [("q", "x" * 5000, None)]}]
    [sample], _ = sample_answers(analysed(tmp_path, trials))
    assert sample.answers[1].text == "x" * 700 + "… (5,000 characters in all)"
    assert sample.answers[1].correct is None


def test_lines_of_the_style_sheet_name_every_variable_in_every_mode(hostile):
    style = hostile[hostile.index("<style>") : hostile.index("</style>")]
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark, printed = (set(re.findall(r"(--[a-z]+):", block)) for block in blocks)
    assert light == dark == printed
    assert set(re.findall(r"var\((--[a-z]+)", hostile)) <= light
