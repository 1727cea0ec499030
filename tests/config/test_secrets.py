"""Values of environment variables and passwords stay out of messages and saved files."""

import pytest

from mlx_ft.config.compose import config_from_dict, public_dict, resolve
from tests.config.test_compose import composed, faults_of


def test_environment_values_are_used_but_never_in_the_public_form(monkeypatch):
    monkeypatch.setenv("MLX_FT_SECRET", "hunter2")
    monkeypatch.setenv("MLX_FT_RANK", "8")
    monkeypatch.delenv("MLX_FT_CACHE", raising=False)
    cfg = composed(
        "tracking.uri='http://me:${oc.env:MLX_FT_SECRET}@host'",
        "tracking.run_name=${tracking.uri}",
        "+tracking.tags.key=${oc.env:MLX_FT_SECRET}",
        "lora.rank=${oc.env:MLX_FT_RANK}",
    )
    config, public = resolve(cfg), public_dict(cfg)
    assert config.tracking.uri == config.tracking.run_name == "http://me:hunter2@host"
    assert config.lora.rank == 8
    assert "hunter2" not in str(public)
    assert public["tracking"]["uri"] == "http://me:${oc.env:MLX_FT_SECRET}@host"
    assert public["tracking"]["run_name"] == "http://me:${oc.env:MLX_FT_SECRET}@host"
    assert public["tracking"]["tags"] == {"key": "${oc.env:MLX_FT_SECRET}"}
    assert public["lora"]["rank"] == "${oc.env:MLX_FT_RANK}"
    assert resolve(cfg) == config  # oc.env works again


@pytest.mark.parametrize("asked", ["${hydra.verbose}", "${oc.select:hydra.verbose,x}"])
def test_a_value_that_is_hydras_own_is_no_way_around(monkeypatch, tmp_path, asked):
    monkeypatch.setenv("MLX_FT_SECRET", "hunter2")
    (tmp_path / "mine.yaml").write_text(
        "defaults: [main, _self_]\nhydra: {verbose: '${oc.env:MLX_FT_SECRET}'}\n"
        f"tracking: {{experiment_name: '{asked}'}}\n"
    )
    cfg = composed(folder=tmp_path, name="mine")
    assert resolve(cfg).tracking.experiment_name == "hunter2"
    assert "hunter2" not in str(public_dict(cfg))


def test_no_fault_shows_the_value_of_an_environment_variable(monkeypatch):
    monkeypatch.setenv("MLX_FT_SECRET", "s3cr3tvalue")
    monkeypatch.setenv("MLX_FT_PIN", "31415926")
    faults = faults_of(
        "lora.rank=${oc.env:MLX_FT_SECRET}",
        "lora.num_layers=${lora.rank}",
        "optimizer.beta1=${oc.env:MLX_FT_PIN}",
        "data.path=${oc.env:MLX_FT_SECRET}",
        "data.valid_path=${data.path}",
        "optimizer.warmup_steps=${oc.env:MLX_FT_PIN}",
    )
    assert len(faults) == 5
    assert not any("s3cr3t" in fault or "31415926" in fault for fault in faults)
    assert faults[0].startswith(
        "lora.rank: found a value from ${oc.env:MLX_FT_SECRET}; expected a whole number"
    )
    assert any("found ${oc.env:MLX_FT_PIN}; expected fewer" in fault for fault in faults)


def test_a_password_in_the_tracking_uri_is_refused_unless_the_environment_has_it(monkeypatch):
    monkeypatch.setenv("MLX_FT_SECRET", "hunter2")
    monkeypatch.setenv("MLX_FT_URI", "postgresql://me:hunter2@host/db")
    for uri in ("${oc.env:MLX_FT_URI}", "http://${oc.env:USER,me}:${oc.env:MLX_FT_SECRET}@host"):
        cfg = composed(f"tracking.uri='{uri}'")
        assert "hunter2" in resolve(cfg).tracking.uri
        assert public_dict(cfg)["tracking"]["uri"] == uri
    for uri in (
        "postgresql://me:pw@host",
        "http://me:${oc.env:NOPE_NOPE,pw}@host",
        '${oc.env:NOPE_NOPE,"postgresql://me:pw@host"}',
    ):
        [fault] = faults_of(f"tracking.uri='{uri}'")
        assert "'tracking.uri=${oc.env:MLFLOW_TRACKING_URI}', quoted" in fault
        assert "pw" not in fault


LITERAL = "\\${oc.env:MLX_FT_SECRET}"  # escaped: it is meant as it is


def test_what_only_looks_like_a_lookup_is_none(monkeypatch):
    """It runs again as it is, and no environment is looked at."""
    monkeypatch.setenv("MLX_FT_SECRET", "hunter2")
    cfg = composed(f"tracking.run_name='{LITERAL}'", f"+tracking.tags.a='x {LITERAL}'")
    tracking = resolve(cfg).tracking
    assert (tracking.run_name, tracking.tags) == (LITERAL[1:], {"a": f"x {LITERAL[1:]}"})
    public = public_dict(cfg)["tracking"]
    assert (public["run_name"], public["tags"]) == (LITERAL, {"a": f"x {LITERAL}"})
    assert config_from_dict({"tracking": public}).tracking == tracking


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.uri", "http://me:\\${oc.env:Abcd1234}@host"),
        ("tracking.webhook", "https://x.org/\\${oc.env:Abcd1234Efgh5678Ijkl}"),
    ],
)
def test_a_secret_in_the_form_of_a_lookup_is_found(key, value):
    [fault] = faults_of(f"{key}='{value}'")
    assert "environment variable" in fault


@pytest.mark.parametrize(
    "address",
    [
        "https://hooks.slack.com/services/T00/B00/XXXXSECRET",
        "https://discord.com/api/webhooks/1/abc",
        "https://x.webhook.office.com/webhookb2/a@b",
    ],
)
def test_addresses_of_chat_services_are_secret_as_a_whole(address):
    [fault] = faults_of(f"tracking.webhook='{address}'")
    assert "'tracking.webhook=${oc.env:MLX_FT_WEBHOOK,null}'" in fault  # as a shell takes it
    assert address not in fault
