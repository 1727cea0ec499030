"""A chat: its answers are the model's, its commands do what they say, nothing ends it by chance."""

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest
from rich.console import Console

import mlx_ft
from mlx_ft import api, cli
from mlx_ft.chat.exchange import Answer, Exchange, Prompt
from mlx_ft.chat.loop import HELP, Chat
from mlx_ft.chat.reader import Reader
from mlx_ft.chat.screen import Screen, plain
from mlx_ft.chat.voices import Voices
from mlx_ft.data.rows import Message
from mlx_ft.engine.request import End, Sampling
from mlx_ft.saved import find_run
from tests import trained
from tests.models import tiny

ONE, TWO = "outputs/runs/one", "outputs/runs/two"
SAMPLING = Sampling(max_tokens=4, temperature=0)


@pytest.fixture(scope="module")
def voices(finished):
    """One engine for all; what is put on it stays."""
    with pytest.MonkeyPatch.context() as patch:
        trained.enter(finished, patch)
        found = Voices(find_run(ONE), None)
    yield found
    found.close()


class Typed(Reader):
    """Lines as if they were typed; an exception among them is raised."""

    def __init__(self, lines, interactive):
        super().__init__(io.StringIO(), interactive=False)
        self.interactive = interactive
        self.lines = iter(lines)

    def read(self):
        line = next(self.lines, None)
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def talk(using, voices):
    """Runs a chat on some lines; returns it with all that it showed."""

    def run(*lines, interactive=True, sampling=SAMPLING, width=None, voice=ONE):
        out, notes = io.StringIO(), io.StringIO()
        console = Console(file=out, width=width or 80, force_terminal=width is not None)
        screen = Screen(console, Console(file=notes, soft_wrap=True))
        chosen = voices.base if voice is None else voices.adapter(voice)
        chat = Chat(voices, Typed(lines, interactive), screen, sampling, chosen)
        chat.run()
        return chat, out.getvalue(), notes.getvalue()

    return run


@pytest.fixture(scope="module")
def alone(finished):
    """What mlx-lm makes of a conversation with each model, as `mlx-ft generate` does."""
    with pytest.MonkeyPatch.context() as patch:
        trained.enter(finished, patch)
        models = {None: api.load(ONE, adapter=False), ONE: api.load(ONE), TWO: api.load(TWO)}

    def answer(run, *turns, count=4):
        roles = ["user", "assistant"] * len(turns)
        prompt = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
        tuned = models[run]
        pieces = api.generate(prompt, tuned, base=not tuned.adapted, max_tokens=count)
        return "".join(pieces).strip()

    return answer


def said(chat):
    return [turn.content for turn in chat.turns]


def test_answers_are_the_models_and_become_part_of_the_conversation(talk, alone):
    chat, out, _ = talk("say 1", "say 2")
    first = alone(ONE, "say 1")
    second = alone(ONE, "say 1", first, "say 2")
    assert said(chat) == ["say 1", first, "say 2", second]
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    assert plain(first) in out
    assert len({first, alone(None, "say 1"), alone(TWO, "say 1")}) == 3  # or this tests nothing


def test_what_was_read_is_not_read_again(talk):
    chat, _, _ = talk("tell me of 1")
    prompt = chat.ask("and then?").answers[0]
    # The first prompt and its answer: only the new turn is read.
    assert prompt.end.cached >= len("tell me of 1</s>") - len("</s>") + 1
    assert prompt.end.cached < prompt.end.prompt_tokens


def test_adapters_are_switched_without_loading_the_base_again(talk, alone, monkeypatch):
    lines = [f"/adapter {TWO}", "say 1", "/adapter base", "say 2", f"/adapter {ONE}", "say 3"]
    with monkeypatch.context() as patch:
        patch.setattr(api, "load", lambda *_, **__: pytest.fail("loaded a model"))
        chat, _, notes = talk(*lines)
    first = alone(TWO, "say 1")
    second = alone(None, "say 1", first, "say 2")
    third = alone(ONE, "say 1", first, "say 2", second, "say 3")
    assert said(chat)[1::2] == [first, second, third]
    assert notes.splitlines()[0] == "(two answers)"
    assert "(base answers)" in notes


@pytest.mark.parametrize("width", [None, 80, 140])
def test_answers_side_by_side(talk, alone, width):
    chat, out, notes = talk("/compare", "say 1", "/compare", "say 2", width=width)
    base, tuned = (plain(alone(run, "say 1")) for run in (None, ONE))
    assert said(chat)[1] == alone(ONE, "say 1")  # the adapter's counts
    assert len(said(chat)) == 4
    if width == 140:
        heads = next(line for line in out.splitlines() if "base" in line and "one" in line)
        assert heads.index("one") > 50
    else:
        parts = out.replace("\r\n", "\n").split("[one]\n")
        assert parts[0].startswith(f"[base]\n{base}")
        assert parts[1].startswith(tuned)
    assert "base and one answer side by side" in notes
    assert "(one answers alone)" in notes


def test_the_base_has_nothing_to_be_compared_with(talk):
    chat, _, notes = talk("/compare", "say 1", voice=None)
    assert "/adapter RUN" in notes
    assert len(chat.turns) == 2


def test_commands_change_the_conversation(talk, alone):
    chat, _, notes = talk("say 1", "say 2", "/undo", "/system Be brief.", "say 3", "/system")
    first = alone(ONE, "say 1")
    assert said(chat)[:2] == ["say 1", first]
    assert said(chat)[2] == "say 3"
    assert chat.messages()[0].role == "system"
    assert chat.messages()[0].content == "Be brief."
    assert "(taken back: say 2)" in notes
    assert notes.count("(system message: Be brief.)") == 2
    chat._take("/system -")
    assert chat.messages()[0].role == "user"
    chat._take("/new")
    assert chat.messages() == []
    assert said(talk("say 4", "/new", "say 1")[0]) == ["say 1", first]


def test_the_system_message_of_the_training_is_the_default(talk, voices):
    from dataclasses import replace

    chat, _, _ = talk("say 1")
    chat.voice = replace(chat.voice, system="As in training.")
    assert chat.messages()[0].content == "As in training."
    chat._take("/system Mine.")
    assert chat.messages()[0].content == "Mine."


def test_a_saved_chat_is_a_row_to_train_on(talk, using, capsys):
    name = "saved.jsonl"
    (using / name).write_text('{"prompt": "say 9", "completion": "x"}')  # without its last newline
    talk("/system Brief.", "say 1", f"/save {name}", "/new", "say 2", "say 3", f"/save {name}")
    rows = [json.loads(line) for line in (using / name).read_text().splitlines()]
    assert [len(row.get("messages", ())) for row in rows] == [0, 3, 5]
    assert rows[1]["messages"][0] == {"role": "system", "content": "Brief."}
    capsys.readouterr()
    words = ["model.path=./model", "data.valid_fraction=0", "--out", str(using / "report")]
    assert cli.main(["validate", name, *words]) == 0
    assert "fit for training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/advpter one", "no such command. Did you mean /adapter?"),
        ("/zzz", "/help lists them"),
        ("/adapter", "/adapter needs RUN|base"),
        ("/adapter nowhere", "'nowhere'"),
        ("/new things", "takes nothing after it"),
        ("/undo", "nothing to take back"),
        ("/save x.jsonl", "nothing to save"),
        ("/compare me", "takes nothing after it"),
    ],
)
def test_a_mistake_does_not_end_the_chat(talk, line, expected):
    chat, _, notes = talk(line, "say 1", interactive=False)
    assert expected in notes
    assert len(chat.turns) == 2
    assert chat.failed


@pytest.mark.parametrize("name", ["saved.txt", "nowhere/at/all.jsonl"])
def test_what_cannot_be_saved_is_told(talk, name):
    _, _, notes = talk("say 1", f"/save {name}")
    assert name in notes


def test_help_names_every_command(talk):
    chat, _, notes = talk("/help")
    assert all(f"/{name}" in notes for name in HELP)
    assert {*chat._commands, "quit"} == {*HELP}


def test_quit_ends_it_and_paths_are_questions(talk):
    chat, _, _ = talk("/etc/hosts?", "/quit", "say 2")
    assert said(chat)[0] == "/etc/hosts?"
    assert len(chat.turns) == 2


def test_what_is_longer_than_the_window_is_told_and_not_cut(talk, alone):
    chat, _, notes = talk("say 1", "x" * 200, "say 2")
    assert "the model was made for 128. Nothing is cut" in notes
    assert said(chat)[2] == "say 2"
    assert said(chat)[3] == alone(ONE, *said(chat)[:3])


def test_an_answer_that_fills_the_window_ends_there_and_says_so(talk, voices):
    turns = [Message("user", "x" * 100)]
    prompt = Prompt.of(voices.base, turns, Sampling(max_tokens=500), voices.window)
    assert len(prompt.tokens) + prompt.sampling.max_tokens == 128
    answer = Answer(prompt, None)
    answer.take(End("length", len(prompt.tokens), prompt.sampling.max_tokens, 0))
    assert "window of 128 tokens is full" in answer.remark(500)
    assert "cut at --max-tokens" in answer.remark(prompt.sampling.max_tokens)
    assert "cut at --max-tokens 2" in talk("say 1", sampling=Sampling(2, 0.0))[2]


def test_no_text_is_told(talk, monkeypatch):
    monkeypatch.setattr(Answer, "take", lambda self, event: setattr(self, "end", event)
                        if isinstance(event, End) else None)  # fmt: skip
    chat, _, notes = talk("say 1")
    assert "no text came; the question is not kept" in notes
    assert chat.turns == []


def interrupted(monkeypatch, after):
    """Ctrl-C once, after so many events."""
    genuine, left = Exchange.step, [after]

    def step(self):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        genuine(self)

    monkeypatch.setattr(Exchange, "step", step)


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(talk, alone, voices, monkeypatch):
    interrupted(monkeypatch, 3)
    long = Sampling(max_tokens=10_000, temperature=1.0, seed=3)
    chat, _, notes = talk("say 1", "/new", "say 2", sampling=long)
    assert "(stopped)" in notes
    assert len(chat.turns) == 2
    assert voices.engine.load_now == (0, 0)
    chat.sampling = SAMPLING
    chat._take("/new")
    chat.ask("say 1")
    assert said(chat)[1] == alone(ONE, "say 1")


def test_ctrl_c_ends_a_file_of_questions(talk, monkeypatch):
    interrupted(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        talk("say 1", "say 2", interactive=False)


def test_ctrl_c_at_the_prompt_goes_on(talk):
    chat, _, notes = talk(KeyboardInterrupt(), "say 1")
    assert "Ctrl-D or /quit" in notes
    assert len(chat.turns) == 2


def test_an_answer_that_fails_is_told_and_forgotten(talk, voices, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(voices.engine._batch, "_logits", lambda _: 1 / 0)
        chat, _, notes = talk("say 1")
    assert "no answer: ZeroDivisionError" in notes
    assert chat.turns == []
    assert chat.failed


def test_an_adapter_of_another_base_is_refused(talk, using, tmp_path):
    trained.runs(tmp_path / "other", {"three": ["train.max_steps=1"]})
    tiny.save(tmp_path / "other" / "model", seed=3)
    chat, _, notes = talk(f"/adapter {tmp_path}/other/outputs/runs/three", "say 1")
    assert "another base model" in notes
    assert chat.voice.name == "one"


def test_an_adapter_keeps_its_own_template(talk, voices, using, tmp_path):
    own = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}<unk>"
        "{% else %}Q:{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    folder = shutil.copytree(using / TWO / "adapter", tmp_path / "mine")
    (folder / "chat_template.jinja").write_text(own)
    chat, _, _ = talk(f"/adapter {folder}")
    assert chat.voice.stop == ("<unk>",)
    exchange = chat.ask("say 1")
    tokens = exchange.answers[0].prompt.tokens
    assert voices.base.tokenizer.decode(list(tokens)) == "Q:say 1\nA:"
    chat._take(f"/adapter {ONE}")
    tokens = chat.ask("say 1").answers[0].prompt.tokens
    assert "Q:" not in voices.base.tokenizer.decode(list(tokens))


def test_nothing_of_an_answer_moves_the_cursor():
    assert plain("a\x1b[2Jb\r\x07\n\tc\x9b1m") == "a[2Jb\n\tc1m"


def typed(monkeypatch, *lines):
    given = iter(lines)

    def read(_prompt):
        line = next(given, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    return Reader(io.StringIO(), interactive=True)


def test_texts_of_several_lines(monkeypatch, capsys):
    reader = typed(
        monkeypatch,
        " one ",
        "two \\",
        "more",
        '"""',
        "a",
        "",
        "b \\",
        '"""',
        '"""c"""',
        '"""d',
        'e"""',
    )
    assert [reader.read() for _ in range(6)] == [
        "one",
        "two \nmore",
        "a\n\nb \\",
        "c",
        "d\ne",
        None,
    ]
    assert capsys.readouterr().out == "\n"


def test_a_file_has_a_question_a_line():
    reader = Reader(io.StringIO('one \\\n"""\n\n two'))
    assert not reader.interactive
    assert [reader.read() for _ in range(5)] == ["one \\", '"""', "", "two", None]


def test_what_is_no_text_is_told():
    from mlx_ft.errors import UserError

    reader = Reader(io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "utf-8"))
    with pytest.raises(UserError, match="standard input"):
        reader.read()


def piped(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_questions_from_a_pipe(using, alone, monkeypatch, capsys):
    piped(monkeypatch, "say 1\n\nsay 2\n")
    assert cli.main(["chat", "--run", ONE, "--max-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    first = alone(ONE, "say 1")
    second = alone(ONE, "say 1", first, "say 2")
    assert [line.rstrip() for line in out.splitlines()] == [
        line.rstrip() for answer in (first, second)
        for line in f"> say {1 if answer is first else 2}\n{plain(answer)}\n".split("\n")
    ]  # fmt: skip
    assert "run outputs/runs/one" in err


def test_base_system_and_failures_from_a_pipe(using, alone, monkeypatch, capsys):
    piped(monkeypatch, "say 1\n/nothing\n")
    arguments = ["chat", "--run", ONE, "--base", "--max-tokens", "4"]
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert plain(alone(None, "say 1")) in out
    assert "/nothing: no such command" in err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--temperature=-1", "--top-p=0"], ["temperature: found", "top_p: found"]),
        (["--run", "nowhere"], ["'nowhere'"]),
    ],
)
def test_mistakes(argv, expected, using, capsys):
    assert cli.main(["chat", *argv]) == 2
    err = capsys.readouterr().err
    assert [words for words in expected if words not in err] == []


def test_a_base_alone_can_be_talked_to(using, alone, monkeypatch, capsys):
    piped(monkeypatch, "say 1\n/compare\n")
    assert cli.main(["chat", "--base", "--model", "./model", "--max-tokens", "4"]) == 1
    out, err = capsys.readouterr()
    assert plain(alone(None, "say 1")) in out
    assert "name an adapter first" in err


@pytest.mark.slow
def test_on_a_real_terminal(using):
    """Typed at a pseudo-terminal: Ctrl-C in an endless answer, a command, Ctrl-D."""
    shutil.copytree(using / "model", using / "long")
    config = json.loads((using / "long" / "config.json").read_text())
    config["max_position_embeddings"] = 1_000_000
    (using / "long" / "config.json").write_text(json.dumps(config))
    words = ["chat", "--base", "--model", "./long", "--max-tokens", "500000"]
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_ft", *words], stdin=child, stdout=child, stderr=child,
        start_new_session=True, preexec_fn=_own_terminal, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(child)
    try:
        _until(parent, b"lists the commands", b"> ")
        os.write(parent, b"say 1\n")
        _until(parent, b"say 1", b"\n", seconds=20)
        time.sleep(1)  # it goes on and on
        os.write(parent, b"\x03")
        _until(parent, b"(stopped)", b"> ")
        os.write(parent, b"/undo\n")
        _until(parent, b"(taken back: say 1)", b"> ")
        time.sleep(0.5)  # CPython: a signal between the prompt and the wait for keys waits for one
        os.write(parent, b"\x03")
        _until(parent, b"Ctrl-D or /quit", b"> ")
        os.write(parent, b"\x04")
        _until(parent, b"\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(60)
        os.close(parent)


def _own_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal


def _until(parent, *wanted, seconds=60):
    shown, deadline, left = b"", time.monotonic() + seconds, list(wanted)
    while left:
        if time.monotonic() > deadline:
            raise AssertionError(f"{left} did not come: {shown!r}")
        if select.select([parent], [], [], 0.2)[0]:
            shown += os.read(parent, 4096)
        while left and left[0] in shown:
            shown = shown[shown.index(left[0]) + len(left[0]) :]
            left.pop(0)
    return shown


def test_the_package_offers_it(using):
    assert mlx_ft.compare is api.compare
