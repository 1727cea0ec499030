"""The documentation: its Python examples run, its links and commands exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from mlx_ft import cli, main
from mlx_ft.config.compose import CommandLine, accept, check
from mlx_ft.data.rows import FAULTS
from mlx_ft.errors import ConfigError
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


def checked(words: list[str]) -> None:
    """Check a command line's options and `key=value` arguments, running nothing."""
    args = main._parse(words)
    if args.config_dir is None:
        check(CommandLine(tuple(args.overrides), multirun=args.multirun))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_real(page, monkeypatch):
    """Options and configuration of `python train.py` and of every `mlx-ft` command."""
    monkeypatch.setattr(main, "main", checked)  # what `train` and `quick` call
    for line in "".join(blocks(page, "sh")).splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "python" and words[:1] == ["train.py"]:
            checked(words[1:])
        elif program == "mlx-ft" and words[0] in ("train", "quick"):
            cli.main(words)
        elif program == "mlx-ft":
            args = cli._parse(cli._parser(words), words)
            check(CommandLine(tuple(getattr(args, "overrides", ()))))


def test_a_wrong_command_is_found(monkeypatch, capsys):
    monkeypatch.setattr(main, "main", checked)
    with pytest.raises(ConfigError, match=r"lora\.rank\?"):
        cli.main(["train", "lora.rnak=1"])
    assert cli.main(["quick", "org/name", "rows.jsonl", "lora.rnak=1"]) == 2
    assert "lora.rank?" in capsys.readouterr().err


FILES = [
    (page, block)
    for page in PAGES
    for block in blocks(page, "yaml")
    if re.match(r"# \S+\.yaml\s", block)
]


@pytest.mark.parametrize(("page", "block"), FILES, ids=lambda value: getattr(value, "name", ""))
def test_configuration_files_are_accepted(page, block, tmp_path, monkeypatch):
    """Each begins with its place and the command that uses it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    place, program, script, *words = block.splitlines()[0].removeprefix("# ").split()
    assert (program, script) == ("python", "train.py")
    Path(place).parent.mkdir(parents=True)
    Path(place).write_text(block)
    args = main._parse(words)
    folders = (Path(args.config_dir),)
    accepted = accept(CommandLine(tuple(args.overrides), args.config_name or "main", folders))
    written = yaml.safe_load(block)
    written.pop("defaults", None)
    section = Path(place).parent.name
    for key, value in (written if section == folders[0].name else {section: written}).items():
        found = accepted.public[key]
        assert (found | value if isinstance(value, dict) else value) == found


def test_every_page_is_looked_at():
    assert {page.name for page, _ in FILES} >= {"configuration.md", "extending.md"}


def test_commands_in_the_readme_exist():
    text = "".join(blocks(ROOT / "README.md", "sh"))
    named = set(re.findall(r"mlx-ft ([a-z]+)", text))
    parser = cli._parser()
    known = set(parser._subparsers._group_actions[0].choices)
    assert named
    assert named <= known


def test_the_table_of_faults_is_that_of_the_code():
    text = (ROOT / "docs" / "data.md").read_text()
    assert (
        dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", text[text.index("| Fault |") :], re.M))
        == FAULTS
    )
