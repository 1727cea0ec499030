import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mlx_ft.config import conf_dir, yaml_text
from mlx_ft.config.compose import (
    CommandLine,
    accept,
    check,
    compose,
    config_from_dict,
    group_choices,
    open_hydra,
    public_dict,
    resolve,
)
from mlx_ft.config.groups import Groups
from mlx_ft.config.schema import Config
from mlx_ft.errors import ConfigError


def composed(*overrides, folder=None, name="main", multirun=False):
    command = CommandLine(overrides, name, (folder,) if folder else (), multirun)
    check(command)
    return compose(open_hydra(command), command)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def faults_of(*overrides, **where):
    with pytest.raises(ConfigError) as error:
        resolve(composed(*overrides, **where))
    assert error.value.exit_code == 2
    assert re.fullmatch(r"\d+ faults? in the [a-z]+:", error.value.message)
    return error.value.faults


def test_the_default_job():
    config = resolve(composed())
    assert config.model.path == "embedded"
    assert config.data.metric == "sql_execution"
    assert config.model.quantize == "auto"


def test_arguments_and_groups_take_effect_and_are_named():
    cfg = composed("lora=rslora", "lora.alpha=8", "memory_profile=m4_24gb", "experiment=quick")
    config = resolve(cfg)
    assert (config.lora.rank, config.lora.alpha, config.lora.scaling) == (64, 8.0, "rslora")
    assert config.model.quantize == {"bits": 4, "group_size": 64, "mode": "affine"}
    assert config.train.max_steps == 8
    choices = group_choices(cfg)
    assert choices["lora"] == "rslora"
    assert choices["experiment"] == "quick"
    assert not any("hydra" in group for group in choices)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.quantize=null", None),
        ("model.quantize.bits=8", {"bits": 8, "group_size": 64, "mode": "affine"}),
        ("model.quantize={bits: 8, group_size: 32}",
         {"bits": 8, "group_size": 32, "mode": "affine"}),
    ],
)  # fmt: skip
def test_a_quantization_of_ones_own_wins_over_the_profile(override, expected):
    assert resolve(composed("memory_profile=m4_24gb", override)).model.quantize == expected


def test_every_fault_of_a_users_file_at_once(tmp_path):
    write(
        tmp_path / "mine.yaml",
        """
        defaults: [main, override data: custom, _self_]
        lora: {rnak: 8, rank: 0, dropout: x}
        train: 5
        paths: {cache_dir: '${oc.env:NOT_THERE_AT_ALL}'}
        memory-profile: {name: x}
        lr: 1
        optimizer: {learning_rate: .nan, warmup_steps: 100}
        """,
    )
    faults = "\n".join(faults_of(folder=tmp_path, name="mine"))
    for text in (
        "lora.rnak: there is no such key. Did you mean lora.rank?",
        "lora.rank: found 0",
        "lora.dropout: found 'x'",
        "data.path: has no value yet. Give it as data.path=VALUE",
        "train: found 5; expected a section",
        "paths.cache_dir: \"Environment variable 'NOT_THERE_AT_ALL' not found\"",
        "memory-profile: there is no such key. Did you mean memory_profile?",
        "lr: there is no such key. Did you mean optimizer.learning_rate?",
        "optimizer.learning_rate: found nan",
    ):
        assert text in faults
    assert len(faults.splitlines()) == 9


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1",
        "just text",
        "lora: {rank: 8, rank: 9}",
        "defaults: 5",
        "defaults: [nope]",
        "defaults: [main, {override model: nope}]",
        "defaults: [main]\nseed: ${nope}",
        "defaults: [main]\nseed: ${no_resolver:x}",
        "defaults: [main]\nlora: null",
        "hydra: 5",
        "1: 2",
        "\x00",
    ],
)
def test_a_malformed_file_is_a_config_error(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    assert faults_of(folder=tmp_path, name="mine")


@pytest.mark.parametrize(
    "text",
    [
        "hydra: {callbacks: {x: {_target_: os.mkdir, path: made}}}",
        "tracking: {tags: {_target_: os.mkdir}}",
        "data: {_target_: os.mkdir}",
        "extra: [{_target_: os.mkdir}]",
    ],
)
@pytest.mark.parametrize("multirun", [False, True])
def test_a_target_in_a_file_is_refused(tmp_path, text, multirun):
    (tmp_path / "mine.yaml").write_text(f"defaults: [main, _self_]\n{text}\n")
    assert "would run code" in faults_of(folder=tmp_path, name="mine", multirun=multirun)[0]


@pytest.mark.parametrize(
    "text", ["defaults: [main, _self_]\nseed: 7", "seed: 7", "{seed: 7, hydra: {run: {dir: x}}}"]
)
def test_hydra_writes_nothing_whatever_the_primary_config(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    cfg = composed(folder=tmp_path, name="mine")
    assert resolve(cfg).seed == 7
    assert cfg.hydra.output_subdir is None
    assert cfg.hydra.job.chdir is False
    assert cfg.hydra.job_logging.root is None
    assert cfg.hydra.hydra_logging.root is None
    assert "MlxFtSweeper" in cfg.hydra.sweeper._target_


def test_the_users_files_come_before_ours(tmp_path):
    write(tmp_path / "model" / "phi_2.yaml", "path: x/y")
    config = resolve(composed("model=phi_2", "model.dequantize=true", folder=tmp_path))
    assert (config.model.path, config.model.dequantize) == ("x/y", True)


def test_unknown_config_name_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="there is: main"):
        composed(folder=tmp_path, name="mine")
    with pytest.raises(ConfigError, match="There is no folder"):
        composed(folder=tmp_path / "nope")


@pytest.mark.parametrize("default", ["plain", "~/a b", "it's, odd", "x:y", "null", "1", '"q"'])
def test_an_environment_default_survives_the_round_trip(default, tmp_path, monkeypatch):
    monkeypatch.delenv("MLX_FT_NOT_SET", raising=False)
    quoted = "'" + default.replace("'", "\\'") + "'"
    write(tmp_path / "mine.yaml", yaml.safe_dump(
        {"defaults": ["main", "_self_"], "data": {"path": f"${{oc.env:MLX_FT_NOT_SET,{quoted}}}"}}
    ))  # fmt: skip
    cfg = composed(folder=tmp_path, name="mine")
    assert resolve(cfg).data.path == default
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(public_dict(cfg)))
    assert resolve(composed(folder=tmp_path, name="config")).data.path == default


def test_nested_environment_lookups_keep_the_secret(monkeypatch):
    monkeypatch.setenv("MLX_FT_SECRET", "'https://hunter2'")
    cfg = OmegaConf.create({"tracking": {"uri": "${oc.decode:${oc.env:MLX_FT_SECRET}}"}})
    assert resolve(cfg).tracking.uri == "https://hunter2"
    assert "hunter2" not in str(public_dict(cfg))


@pytest.mark.parametrize(
    ("literal", "name"),
    [("\\${seed}", "${seed}"), ("\\\\\\${seed}", "\\${seed}"), ("a\\b\\${", "a\\b${")],
)
def test_a_text_that_looks_like_an_interpolation_runs_again_as_it_is(literal, name):
    cfg = OmegaConf.create({"tracking": {"run_name": literal, "tags": {"a": literal}}})
    first = public_dict(cfg)
    again = OmegaConf.create(first)
    for config in (resolve(cfg), resolve(again)):
        assert (config.tracking.run_name, config.tracking.tags) == (name, {"a": name})
    assert public_dict(again) == first


words = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rank=st.integers(1, 512),
    rate=st.floats(1e-8, 1.0),
    name=words.filter(lambda text: text.strip() and "${" not in text),
    modules=st.sampled_from(["attention", ["q_proj"], ["q_proj", "v_proj"]]),
)
@example(8, 1e-5, "0e0", "attention")  # a float to OmegaConf, and a text to PyYAML
@example(8, 1e-5, "-1_0E+3", "attention")
@example(8, 1e-5, "1_0.5e3", "attention")
@pytest.mark.slow
def test_the_public_form_runs_again_as_it_is(tmp_path, rank, rate, name, modules):
    cfg = OmegaConf.create(asdict(Config()))
    cfg.lora.rank, cfg.lora.target_modules = rank, modules
    cfg.optimizer.learning_rate, cfg.tracking.run_name = rate, name
    (tmp_path / "config.yaml").write_text(yaml_text.dump(public_dict(cfg)), "utf-8")
    again = composed(folder=tmp_path, name="config")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text("utf-8"))
    assert config_from_dict(saved) == resolve(cfg)
    assert asdict(resolve(again)) == asdict(resolve(cfg))
    assert public_dict(again) == public_dict(cfg)


def test_a_runs_config_takes_values_and_groups(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(public_dict(composed("lora.rank=5"))))
    config = resolve(
        composed("optimizer=lion", "seed=7", "tracking.tags.a=b", folder=tmp_path, name="config")
    )
    assert (config.lora.rank, config.optimizer.name, config.seed) == (5, "lion", 7)
    assert config.tracking.tags == {"a": "b"}


@pytest.mark.parametrize(
    "text",
    [
        "defaults: [main, _self_]\nseed: 7",
        "defaults: [base, _self_]\nseed: 7",
        "{defaults: [_self_, {optimizer: adam}], seed: 7}",
        "seed: 7",
    ],
)
def test_a_group_can_be_chosen_whatever_the_primary_config_lists(tmp_path, text):
    write(tmp_path / "mine.yaml", text)
    write(tmp_path / "base.yaml", "defaults: [main]")
    config = resolve(composed("optimizer=lion", "lora=rslora", folder=tmp_path, name="mine"))
    assert (config.optimizer.name, config.lora.scaling, config.seed) == ("lion", "rslora", 7)


def test_configs_that_build_on_each_other_end(tmp_path):
    write(tmp_path / "a.yaml", "defaults: [b, main]")
    write(tmp_path / "b.yaml", "defaults: [a]")
    assert "model" in Groups((tmp_path, conf_dir())).listed("a")


def test_folders_may_come_from_a_file(tmp_path):
    write(
        tmp_path / "mine.yaml", "defaults: [main, _self_]\nhydra: {run: {dir: r}, sweep: {dir: s}}"
    )
    command = CommandLine(("seed=7",), "mine", (tmp_path,))
    accepted = accept(command)
    assert (accepted.run_dir, accepted.config.seed) == (Path("r"), 7)
    assert compose(open_hydra(command), command).hydra.sweep.dir == "s"
    assert accept(CommandLine()).run_dir is None


STEPS = resolve(composed()).train.max_steps


def accept_faults(*overrides, **where):
    with pytest.raises(ConfigError) as error:
        accept(CommandLine(overrides, **where))
    return error.value.faults


@pytest.mark.parametrize("override", ["train.epochs=3", "++train.epochs=3", "train={epochs: 3}"])
def test_epochs_that_the_steps_of_a_file_would_override_are_refused(override):
    assert accept_faults(override) == (
        f"train.epochs=3 has no effect while train.max_steps is {STEPS} (from "
        "data=geography_sql). Add train.max_steps=null",
    )
    assert "8 (from experiment=quick)" in accept_faults("experiment=quick", override)[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.epochs=3", "train.max_steps=null"),
        ("train.epochs=3", "train.max_steps=7"),
        ("train={epochs: 3, max_steps: null}",),
        ("train.epochs=3", "data=custom", "data.path=x"),
        ("experiment=mistral_7b_m4",),
    ],
)
def test_epochs_that_count_are_accepted(overrides):
    assert accept(CommandLine(overrides))


def test_steps_of_a_users_own_file_are_named(tmp_path):
    write(tmp_path / "config.yaml", yaml.safe_dump(public_dict(composed())))
    [fault] = accept_faults("train.epochs=3", config_name="config", config_dirs=(tmp_path,))
    assert f"is {STEPS} (from config.yaml)" in fault


@pytest.mark.parametrize(
    "command",
    [CommandLine(config_dirs=(Path("x" * 5000),)), CommandLine(config_name="x" * 5000)],
)
def test_names_that_no_file_can_have_are_not_there(command):
    with pytest.raises(ConfigError, match=r"There is no folder|1 fault"):
        check(command)
