"""The files in conf/: each composes, is complete, and says in one line what it is."""

import pytest
import yaml

from mlx_ft.config import conf_dir
from mlx_ft.config.compose import CommandLine, check, compose, open_hydra, resolve
from mlx_ft.config.keys import keys, sections

FILES = sorted(conf_dir().rglob("*.yaml"))
CHOICES = [
    (path.parent.name, path.stem)
    for path in FILES
    if path.parent != conf_dir() and path.parent.name != "help"
]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_gives_a_valid_configuration(group, choice):
    needs_path = choice in ("custom", "default", "chat", "instruction", "code")
    overrides = (f"{group}={choice}", *(["data.path=rows.jsonl"] if needs_path else []))
    command = CommandLine(overrides)
    check(command)
    config = resolve(compose(open_hydra(command), command))
    if group not in ("experiment", "train", "checkpoint", "eval", "paths", "sweep"):
        owner = getattr(config, group)
        if hasattr(owner, "name"):
            assert owner.name == choice


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_begins_with_what_it_is(path):
    lines = path.read_text().splitlines()
    assert lines[1 if lines[0] == "# @package _global_" else 0].startswith("# ")


@pytest.mark.parametrize("group", [group for group in sections() if group != "experiment"])
def test_every_group_names_every_key_of_its_section(group):
    files = [path for path in FILES if path.parent.name == group and group != "data"]
    files += [conf_dir() / "data" / "default.yaml"] if group == "data" else []
    expected = {name.partition(".")[2] for name in keys() if name.startswith(f"{group}.")}
    for path in files:
        given = yaml.safe_load(path.read_text())
        for base in given.pop("defaults", []):
            given |= yaml.safe_load(path.with_name(f"{base}.yaml").read_text())
        assert set(given) == expected - ({"quantize"} if group == "model" else set())


def test_there_is_a_folder_for_every_section():
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert folders == {*sections(), "experiment", "hydra"}


def test_the_24_gb_recipe_keeps_its_budget():
    command = CommandLine(("experiment=mistral_7b_m4",))
    config = resolve(compose(open_hydra(command), command))
    assert config.model.path == "mistralai/Mistral-7B-Instruct-v0.3"
    assert config.model.quantize["bits"] == 4
    assert config.memory_profile.memory_limit_gb <= 16
    assert (config.lora.rank, config.train.epochs, config.train.max_steps) == (16, 3.0, None)
