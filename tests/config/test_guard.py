"""What YAML files of the user may say of Hydra, and what would run code."""

import sys

import pytest

from mlx_ft.config.compose import CommandLine, check, compose, open_hydra
from mlx_ft.errors import ConfigError

CREATED = "\"${oc.create:'{_target_: canary.fire}'}\""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported or called."""
    folder = tmp_path / "site"
    (folder / "canary").mkdir(parents=True)
    mark = f"import pathlib\nmark = pathlib.Path({str(tmp_path / 'mark')!r})\nmark.touch()\n"
    code = f"{mark}def fire(*_, **__): pathlib.Path({str(tmp_path / 'fired')!r}).touch()\n"
    (folder / "canary/__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    yield [tmp_path / "mark", tmp_path / "fired"]
    sys.modules.pop("canary", None)


def composed(tmp_path, text, *overrides, multirun=False, **files):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "primary.yaml").write_text(text)
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(content)
    command = CommandLine(overrides, "primary", (folder,), multirun)
    check(command)
    return compose(open_hydra(command), command)


def faults(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        composed(*args, **kwargs)
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize(
    "text",
    [
        "hydra: {searchpath: ['pkg://canary']}",
        "hydra: {searchpath: [\"${oc.decode:'pkg://canary'}\"]}",
        "hydra: \"${oc.create:'{searchpath: [pkg://canary]}'}\"",
        "hydra: {job_logging: {root: {handlers: [x]}, handlers: {x: {(): canary.fire}}}}",
        "hydra: {hydra_logging: {handlers: {x: {class: canary.fire}}}}",
        f"hydra: {{launcher: {CREATED}}}",
        f"hydra: {{launcher: {{x: {CREATED}}}}}",
        f"hydra: {{sweeper: {{x: {CREATED}}}}}",
        "hydra: {callbacks: {x: {_target_: canary.fire}}}",
        "hydra: {launcher: {x: {_target_: canary.fire}}}",
        "hydra: {launcher: {_target_: canary.fire}}",
        "hydra: {launcher: {_args_: [1]}}",
        "hydra: {overrides: {task: ['+hydra.callbacks.x={_target_: canary.fire}']}}",
        "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}",
        "hydra: {job: {env_copy: [HOME]}}",
        "hydra: {mode: MULTIRUN}",
        "tracking: {tags: {x: {_target_: canary.fire}}}",
        "# @package _global_\nx: [{a: {_target_: canary.fire}}]",
    ],
)
@pytest.mark.parametrize("multirun", [False, True])
def test_what_would_run_code_or_change_hydra_is_refused(tmp_path, canary, text, multirun):
    assert faults(tmp_path, f"defaults: [main, _self_]\n{text}", multirun=multirun)
    assert not any(path.exists() for path in canary)


def test_a_launcher_of_the_users_file_is_refused(tmp_path, canary):
    text = "defaults: [main, override hydra/launcher: mine, _self_]"
    basic = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    node = f"_target_: {basic}\nx: {CREATED}"
    found = faults(tmp_path, text, multirun=True, hydra__launcher__mine=node)
    assert "hydra.launcher.x._target_: would run code" in found
    assert not any(path.exists() for path in canary)


@pytest.mark.parametrize("folder", ["${oc.env:MLX_FT_NONE}", "${oc.env:MLX_FT_EMPTY}"])
@pytest.mark.parametrize(("key", "multirun"), [("run", False), ("sweep", True)])
def test_a_folder_that_is_none_is_refused(tmp_path, monkeypatch, folder, key, multirun):
    monkeypatch.setenv("MLX_FT_EMPTY", " ")
    text = f"defaults: [main, _self_]\nhydra: {{{key}: {{dir: '{folder}'}}}}"
    assert faults(tmp_path, text, multirun=multirun).startswith(f"hydra.{key}.dir: ")


def test_a_key_without_a_value_is_a_difference_too(tmp_path):
    assert "hydra.sweeper.x" in faults(
        tmp_path, "defaults: [main, _self_]\nhydra: {sweeper: {x: }}"
    )


@pytest.mark.parametrize(
    "text",
    ["{run: {dir: r}, sweep: {dir: s, subdir: t}}", "{verbose: true}", "{job: {name: x}}", "{}"],
)
def test_where_hydra_writes_and_what_it_says_may_be_set(tmp_path, text):
    assert composed(tmp_path, f"defaults: [main, _self_]\nhydra: {text}")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "unfold to more than 100,000 values"),
        ("lora: &a {rank: 4, x: *a}", "inside of what it refers to"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("hydra: [1]", "expected a mapping"),
        ("hydra: null", "expected a mapping"),
    ],
)
def test_a_file_that_would_hang_or_break_hydra_is_refused_before(tmp_path, text, expected):
    found = faults(tmp_path, text)
    assert expected in found
    assert "primary.yaml: " in found


def test_bombs_in_a_groups_file_are_found_too(tmp_path):
    assert "lora/mine.yaml: its aliases" in faults(
        tmp_path, "defaults: [main, _self_]", lora__mine=BOMB
    )


def test_ordinary_aliases_are_fine(tmp_path):
    text = "defaults: [main, _self_]\nlora: {alpha: &a 8, rank: *a}"
    assert composed(tmp_path, text).lora.rank == 8
