"""`mlx-ft estimate`: no network, no download; recipes under their limits; mistakes are exit 2."""

import json
import logging
import re
import socket
from dataclasses import replace

import pytest

from mlx_ft import cli, lora, memory_plan
from mlx_ft.config import conf_dir
from mlx_ft.config.schema import Config, LoraConfig, MemoryProfileConfig, ModelConfig
from mlx_ft.models import architecture
from mlx_ft.models.catalog import recipes
from mlx_ft.models.load import total_parameters
from mlx_ft.runtime import GIB
from tests.models import tiny

PARAMETERS = {  # as their model cards and papers give them, in millions
    "codellama_7b": 6738.5,
    "mistral_7b_v02": 7241.7,
    "mistral_7b_v03": 7248.0,
    "phi_2": 2779.7,
    "smollm2_135m": 134.5,
    "tinyllama": 1100.0,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test here may ask the network, nor find a model that was downloaded."""

    def refuse(*_args, **_more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path / "cache"))


def estimated(capsys, *arguments):
    assert cli.main(["estimate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("recipe", sorted(recipes(conf_dir())))
def test_every_shipped_model_is_estimated_without_being_here(recipe, capsys):
    found = estimated(capsys, f"model={recipe}", "memory_profile=m4_24gb", "--rows=100")
    assert found["parameters"] / 1e6 == pytest.approx(PARAMETERS[recipe], abs=0.06)
    assert found["budget"]["fits"]
    assert (found["disk"]["download"] > 0) == (recipe != "smollm2_135m")


@pytest.mark.parametrize(
    ("arguments", "limit", "hours"),
    [
        (["experiment=mistral_7b_m4"], 16, (4, 6)),
        (["experiment=codellama_7b", "memory_profile=m1_max_32gb"], 30, (0, 4)),
    ],
)
def test_the_reference_jobs_keep_their_limits(arguments, limit, hours, capsys):
    found = estimated(capsys, *arguments)
    assert found["memory"]["total"] <= limit * GIB
    assert found["budget"]["fits"]
    assert hours[0] <= found["time"]["seconds"] / 3600 <= hours[1]
    assert "unmeasured on Metal" in found["time"]["about"]
    assert found["work"]["rows"] * found["work"]["epochs"] == 3000


def test_the_table_says_what_it_means(capsys):
    assert cli.main(["estimate", "experiment=mistral_7b_m4"]) == 0
    text = capsys.readouterr().out
    for part in (
        "7,248.0 M parameters", "4.50 bits each", "all together", "fits into 16.00 GB",
        "adapter file 83.9 MB", "unmeasured on Metal", "assumed: --rows, --tokens",
    ):  # fmt: skip
        assert part in text


def test_knobs_are_sorted_and_save_what_they_say(capsys):
    job = ["experiment=mistral_7b_m4", "memory_profile.grad_checkpoint=false"]
    found = estimated(capsys, *job)
    knobs = {knob["setting"]: knob["saves"] for knob in found["knobs"]}
    assert list(knobs.values()) == sorted(knobs.values(), reverse=True)
    for setting in ("memory_profile.grad_checkpoint=true", "memory_profile.max_seq_length=512",
                    "lora.num_layers=8"):  # fmt: skip
        changed = [word for word in job if word.split("=")[0] != setting.split("=")[0]]
        after = estimated(capsys, *changed, setting)["memory"]["total"]
        saved = found["memory"]["total"] - after
        assert saved == pytest.approx(knobs[setting], rel=0.02), setting


def test_what_does_not_fit_is_said(capsys):
    argv = ["experiment=mistral_7b_m4", "memory_profile.max_seq_length=32768"]
    assert cli.main(["estimate", *argv]) == 0
    said = capsys.readouterr().out
    assert "does NOT fit: memory_profile=m4_24gb (memory_limit_gb=16): not even one row of" in said
    assert "Found 16.00 GB; expected" in said
    assert "fits into" not in said


def test_an_unknown_model_is_the_users_mistake_and_says_what_is_needed(capsys):
    assert cli.main(["estimate", "model.path=some/unknown-model"]) == 2
    error = capsys.readouterr().err
    for part in ("some/unknown-model", "--config FILE", "mlx-ft models download"):
        assert part in error
    assert "Traceback" not in error


def test_its_config_file_is_enough(tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny.LLAMA))
    found = estimated(capsys, "model.path=some/unknown-model", "--config", str(file))
    assert found["parameters"] == total_parameters(tiny.build())


def test_a_folder_and_its_rows_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model")
    rows = [{"prompt": f"say {n}", "completion": str(n)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = estimated(
        capsys, "model.path=./model", "data=custom", "data.path=rows.jsonl",
        "data.valid_fraction=0.25", "train.epochs=2", "memory_profile=cpu",
    )  # fmt: skip
    assert found["work"]["rows"] == 30
    assert found["work"]["longest"] >= found["work"]["length"]
    assert found["longest_row"] < found["memory"]["total"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["lora.rnk=8", "train.epochs=none"], ["2 faults", "lora.rank", "train.epochs"]),
        (["--config", "nowhere.json"], ["nowhere.json"]),
        (["lora.target_modules=[nothing]"], ["lora.target_modules", "'nothing'"]),
    ],
)
def test_mistakes_are_told_at_once_without_a_traceback(arguments, parts, capsys):
    assert cli.main(["estimate", *arguments]) == 2
    error = capsys.readouterr().err
    assert [part for part in parts if part not in error] == []
    assert "Traceback" not in error


@pytest.mark.parametrize("quantize", [None, {"bits": 4, "group_size": 32, "mode": "affine"}])
def test_an_empty_model_weighs_what_a_loaded_one_does(quantize, tmp_path):
    from mlx_ft.models.load import load, locate

    wanted = ModelConfig(path=str(tmp_path / "model"), quantize=quantize, dequantize=False)
    tiny.save(tmp_path / "model")
    located = locate(wanted, tmp_path)
    loaded = load(located, wanted, compute_dtype="bfloat16", dequantize=False)
    made = architecture.empty(located.config, wanted, compute_dtype="bfloat16")
    assert architecture.weight_bytes(made) == architecture.weight_bytes(loaded.model)
    for model in (made, loaded.model):
        lora.attach(model, LoraConfig(rank=4))
    assert lora.count(made) == lora.count(loaded.model)


def asked(rows="auto", steps="auto"):
    return Config(
        memory_profile=MemoryProfileConfig(micro_batch_size=rows, grad_accumulation_steps=steps)
    )


JOB = memory_plan.Estimate(
    memory_plan.Dimensions(4, 1024, 4096, 16, 32000), 10**8, 32, 10**6, 4, 8, 2, 4, False
)


@pytest.mark.parametrize(("free_rows", "expected"), [(8, (8, 2)), (7, (4, 4)), (0, (1, 16))])
def test_an_automatic_micro_batch_is_the_largest_that_fits(free_rows, expected, caplog):
    config = asked(8, 2)
    size = JOB.held() + memory_plan.beside(config) + JOB.step(free_rows, 256, 256 * free_rows)
    with caplog.at_level(logging.INFO):
        found = memory_plan.fitted(config, asked(), JOB, 256, size).memory_profile
    assert (found.micro_batch_size, found.grad_accumulation_steps) == expected
    assert ("keeps the batch" in caplog.text) == (expected != (8, 2))


def limit(size):
    return memory_plan.Budget(size, "memory_profile.memory_limit_gb=1")


def test_where_no_row_fits_one_message_says_what_to_do(caplog):
    config = asked(8, 2)
    config.memory_profile.memory_limit_gb = 1.0
    needed = JOB.most(1, 256, 256) + memory_plan.beside(config)
    assert memory_plan.shortage(config, JOB, 256, limit(needed)) is None
    said = memory_plan.shortage(config, JOB, 256, limit(needed - 1))
    assert said.startswith("memory_profile.memory_limit_gb=1: not even one row of 256 tokens fits")
    least = float(re.search(r"Set memory_profile.memory_limit_gb=([\d.]+) or more", said)[1])
    assert needed / GIB <= least <= needed / GIB + 0.01
    config.memory_profile.memory_limit_gb = None
    machine = memory_plan.Budget(0, "the machine's memory")
    assert "memory_limit_gb" not in memory_plan.shortage(config, JOB, 256, machine)
    with caplog.at_level(logging.INFO):
        memory_plan.fitted(config, asked(), JOB, 256, 0)
    assert "micro_batch_size=1 instead of 8" in caplog.text
    assert "fit" not in caplog.text  # no row does


def test_offloaded_layers_are_read_in_the_first_epoch(capsys):
    job = ["experiment=mistral_7b_m4", "--rows=100", "--tokens=200"]
    plain, found = estimated(capsys, *job), estimated(capsys, *job, "train.offload_frozen=true")
    below = plain["memory"]["weights"] - found["memory"]["weights"]
    assert (plain["time"]["reads"], found["work"]["first"]) == (0, 100)  # a row at once, 3 epochs
    assert found["time"]["reads"] == 100 * below
    more = found["time"]["seconds"] - plain["time"]["seconds"]
    assert more == pytest.approx(100 * below / memory_plan.READING)
    few = estimated(capsys, *job, "train.offload_frozen=true", "train.max_steps=2")
    assert few["time"]["reads"] == 16 * below
    assert cli.main(["estimate", *job, "train.offload_frozen=true"]) == 0
    assert "read in the first epoch (train.offload_frozen)" in capsys.readouterr().out


def test_numbers_that_were_given_stay():
    config = asked(8, 2)
    assert memory_plan.fitted(config, asked(rows=8), JOB, 256, 0) == config
    found = memory_plan.fitted(config, asked(steps=2), JOB, 256, 0).memory_profile
    assert (found.micro_batch_size, found.grad_accumulation_steps) == (1, 2)


def test_operations_follow_from_the_weights():
    job = memory_plan.Job(asked(1, 1), replace(JOB, adapted=2), 10**6)
    size = JOB.dimensions
    per_token = 2 * (4 + 2) * 10**6 + 8 * 2 * 1024 * 100 + 4 * 1024 * size.vocabulary + 6 * 10**6
    assert job.operations(10, 100, 1.0) == 10 * per_token


def test_nothing_is_converted_for_an_estimate(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path / "nothing"))
    found = estimated(capsys)
    assert found["work"]["about"].endswith("(assumed: --rows, --tokens)")
    assert not (tmp_path / "nothing" / "models").exists()


def test_the_longest_row_decides_and_the_plan_is_that_of_the_fitted_batch(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model")
    rows = [{"prompt": f"say {n}", "completion": str(n)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    job = [
        "model.path=./model", "data=custom", "data.path=rows.jsonl", "data.valid_fraction=0.2",
        "train.epochs=1", "memory_profile.grad_accumulation_steps=1",
        "memory_profile.max_seq_length=4096",
    ]  # fmt: skip
    found = estimated(capsys, *job)
    assert (found["profile"]["micro_batch_size"], found["work"]["steps"]) == (8, 4)
    room = found["longest_row"] / GIB
    assert found["memory"]["total"] > 2 * found["longest_row"]
    assert estimated(capsys, *job, f"memory_profile.memory_limit_gb={room}")["budget"]["fits"]
    monkeypatch.setattr(memory_plan, "fitted", lambda config, *_: replace(
        config, memory_profile=replace(config.memory_profile, micro_batch_size=2)
    ))  # fmt: skip
    assert estimated(capsys, *job)["work"]["steps"] == 16


@pytest.mark.parametrize(
    "quantization",
    [{"group_size": 0, "bits": 4}, {"group_size": 64, "bits": 4, "mode": "mxfp4"}, {"bits": 4},
     {"quant_method": "gptq", "bits": 4, "group_size": -1}, {"quant_method": "fp8"}],
)  # fmt: skip
def test_a_quantization_that_cannot_be_counted_is_refused(quantization, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**tiny.LLAMA, "quantization_config": quantization}))
    assert cli.main(["estimate", "model.path=some/model", "--config", str(file)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_mac_is_not_assumed_of_another_gpu(monkeypatch):
    config = Config(memory_profile=MemoryProfileConfig(name="m1_max_32gb", compute_dtype="float32"))
    assert "M1 Max" in memory_plan.speed(config, "metal").about
    assert "M1 Max" not in memory_plan.speed(config, "cuda").about
