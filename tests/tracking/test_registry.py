"""The best adapter of a sweep by its name in MLflow's registry."""

import json
import logging
import shutil

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from mlx_ft.errors import AdapterError
from mlx_ft.main import main
from mlx_ft.saved import find_run
from mlx_ft.tracking.parent import _alias, registered_name
from mlx_ft.tracking.store import MlflowStore
from tests.jobs import job, write_rows
from tests.models import tiny


def sweep(*more: str) -> int:
    given = ["optimizer.learning_rate=1e-3,1e-2", "sweep.name=rates", "tracking=mlflow",
             "train.max_steps=2", "eval.before=false"]  # fmt: skip
    keys = [text.partition("=")[0] for text in more]
    given = [text for text in given if text.partition("=")[0] not in keys]
    single = [text for text in job(*given, *more) if not text.startswith("hydra.run.dir")]
    return main(["-m", *single])


@pytest.fixture
def swept(place, monkeypatch):
    monkeypatch.setenv("MLX_FT_CACHE", str(place / "cache"))
    assert sweep() == 0
    return place


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory):
    """Not to be changed."""
    place = tmp_path_factory.mktemp("swept")
    tiny.save(place / "model")
    write_rows(place / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MLX_FT_CACHE", str(place / "cache"))
        assert sweep() == 0
    return place


@pytest.mark.slow
def test_the_best_adapter_of_a_sweep_is_found_by_its_name(swept, capsys):
    capsys.readouterr()
    rows = (swept / "outputs/sweeps/rates/trials.md").read_text()
    for reference in ("models:/model/1", "models:/model/latest", "models:/model@rates"):
        found = find_run(reference)
        assert f"`{found.folder}`" in rows.splitlines()[0]  # the one that is here
    # Its folder is gone: MLflow's copy is taken.
    before = (found.adapter / "adapters.safetensors").read_bytes()
    run_id = json.loads((found.folder / "summary.json").read_text())["run_id"]
    shutil.rmtree(found.folder)
    copy = find_run("models:/model@rates")
    assert copy.folder.parent == swept / "cache/runs"
    assert copy.folder.name.startswith(f"{run_id}-")
    assert (copy.adapter / "adapters.safetensors").read_bytes() == before
    assert copy.config.optimizer.learning_rate == found.config.optimizer.learning_rate
    assert find_run("models:/model/1").folder == copy.folder
    assert sorted(path.name for path in copy.folder.parent.iterdir()) == [copy.folder.name]


@pytest.mark.slow
def test_a_sweep_that_goes_on_registers_its_best_once(swept):
    assert sweep() == 0
    first = find_run("models:/model/latest").folder
    with pytest.raises(AdapterError, match="models:/model/2: not found in MLflow"):
        find_run("models:/model/2")
    # A larger sweep of the same name has a better one, or the same.
    assert sweep("optimizer.learning_rate=1e-3,1e-2,3e-2") == 0
    assert find_run("models:/model@rates").folder.parent == first.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("models:/model", "expected models:/NAME/VERSION"),
        ("models:/a/b/c", "expected models:/NAME/VERSION"),
        ("models:/nothing/1", "not found in MLflow"),
        ("models:/nothing/latest", "there is no registered model nothing"),
        ("models:/model@other", "not found in MLflow"),
    ],
)
def test_names_that_are_not_there(swept_once, monkeypatch, reference, fault):
    monkeypatch.chdir(swept_once)
    with pytest.raises(AdapterError, match=fault):
        find_run(reference)


def test_without_a_database(place):
    with pytest.raises(AdapterError, match="there is no MLflow database"):
        find_run("models:/model/1")


def test_names_that_mlflow_takes():
    assert (
        registered_name("mistralai/Mistral-7B-Instruct-v0.3")
        == "mistralai--Mistral-7B-Instruct-v0.3"
    )
    assert _alias("rank-learning_rate-3f9a2c1b") == "rank-learning_rate-3f9a2c1b"
    assert _alias("v1") == "sweep-v1"
    assert _alias("a b/ü") == "a-b-"


def test_a_run_that_mlflow_has_lost_is_not_waited_for(caplog):
    class Client:
        def get_run(self, run_id):
            raise MlflowException("no run", error_code=RESOURCE_DOES_NOT_EXIST)

    store = object.__new__(MlflowStore)
    store._client = Client()
    with caplog.at_level("WARNING", "mlx_ft.tracking"):
        logging.getLogger("mlx_ft").propagate = True
        store.register("name", "gone", "sweep", {})
    assert "MLflow has no run gone any more" in caplog.text
