"""The documentation: its Python examples run, its links and commands exist."""

import re
from pathlib import Path

import pytest

from mlx_ft import cli
from tests.jobs import job, write_rows
from tests.models import tiny

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_the_python_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path.parent / "cache"))
    tiny.save(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl")
    shown = '"experiment=quick", "train.max_steps=2", "eval.task_rows=4"'
    code = "\n".join(blocks(ROOT / "docs" / "api.md", "python"))
    assert shown in code  # the embedded model in the page, a tiny one here
    names: dict = {}
    exec(code.replace(shown, ", ".join(map(repr, job()))), names)  # our own documentation
    assert names["result"].status == "FINISHED"
    assert names["figures"].loss == pytest.approx(names["result"].summary["val_loss_after"])
    assert names["base"].loss == pytest.approx(names["result"].summary["val_loss_before"])
    assert isinstance(names["answer"], str)
    assert "lora.rank?" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_in_commands_is_real(page):
    from mlx_ft.config.compose import CommandLine, check

    commands = [
        line.split("#")[0].strip()
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if re.match(r"(mlx-ft train|python train.py)\b", line)
    ]
    for command in commands:
        words = command.split()[2:]
        if any(word.startswith(("--config", "-sc")) for word in words):
            continue
        overrides = tuple(word for word in words if "=" in word)
        check(CommandLine(overrides, multirun="-m" in words))


def test_commands_in_the_readme_exist():
    text = "".join(blocks(ROOT / "README.md", "sh"))
    named = set(re.findall(r"mlx-ft ([a-z]+)", text))
    parser = cli._parser()
    known = set(parser._subparsers._group_actions[0].choices)
    assert named
    assert named <= known
