"""`mlx-ft sync`: which runs it takes, what it says, its exit codes; and `tracking.webhook`."""

import fcntl
import shutil
import sqlite3
from contextlib import closing

import pytest
import yaml

from mlx_ft import cli, cli_tracking
from mlx_ft.config import compose
from mlx_ft.config.schema import Config
from mlx_ft.errors import ConfigError
from mlx_ft.tracking import build_tracker
from mlx_ft.tracking.store import MlflowStore

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
TOKEN = "Abcd1234Efgh5678Ijkl"


def run(folder, *, steps=2, end=True, uri=None):
    """A run folder whose journal tells of a run that MLflow has not seen."""
    folder.mkdir(parents=True)
    tracking = {"backend": "mlflow", "uri": uri, "webhook": "${oc.env:NOT_SET_HERE}"}
    config = {"tracking": tracking, "paths": {"tracking_dir": "mlruns"}, "removed": {"key": 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    typed = Config()
    typed.tracking.uri = "sqlite:////dev/null/x.db"
    tracker = build_tracker(typed, None, folder / "tracking.jsonl")
    tracker.start(folder.name, {}, {})
    for step in range(steps):
        tracker.log_metrics({"loss": 0.5}, step)
    if end:
        tracker.end("FINISHED")
    tracker._ended = True
    return folder


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLX_FT_OUTPUTS", raising=False)
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database without runs: making one takes a second."""
    folder = tmp_path_factory.mktemp("empty")
    MlflowStore(f"sqlite:///{folder}/mlflow.db", folder.as_uri(), "mlx-ft")
    return folder / "mlflow.db"


@pytest.fixture
def mlruns(tmp_path, empty):
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty, tmp_path / "mlruns" / "mlflow.db")


def statuses(folder):
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        return database.execute("select name, status from runs order by name").fetchall()


def test_all_runs(outputs, mlruns, tmp_path, capsys):
    run(outputs / "runs" / "one")
    run(outputs / "sweeps" / "ranks" / "rank=8", end=False)
    alive = run(outputs / "runs" / "three", end=False)
    (outputs / "runs" / "untracked").mkdir()
    (outputs / "runs" / "untracked" / "config.yaml").write_text("")
    with (alive / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["sync"]) == 0
        captured = capsys.readouterr()
        assert cli.main(["sync", "outputs/runs/one", "outputs/runs/three"]) == 2
    lines = captured.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "outputs/runs/one", "outputs/runs/three", "outputs/sweeps/ranks/rank=8",
    ]  # fmt: skip
    assert "2 metric values and 2 other things written" in lines[0]
    assert "FINISHED" in lines[0]
    assert lines[1].endswith("is in use by a run, so it is left alone")
    assert "KILLED" in lines[2]
    assert statuses(tmp_path) == [("one", "FINISHED"), ("rank=8", "KILLED")]
    assert "nothing was missing" in capsys.readouterr().out
    (outputs / "runs" / "one" / "config.yaml").write_text("tracking: [")
    assert cli.main(["sync"]) == 1  # the others are done all the same
    captured = capsys.readouterr()
    assert "outputs/runs/one/config.yaml cannot be used" in captured.err
    assert len(captured.out.splitlines()) == 2


def test_one_that_does_not_answer_is_asked_once(outputs, capsys):
    place = outputs.parent / "file"
    place.write_text("")
    for name in ("one", "two"):
        run(outputs / "runs" / name, uri=f"sqlite:///{place}/x.db")
    assert cli.main(["sync"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert "does not take it (FileExistsError" in first
    assert "5 records stay for the next time" in first
    assert "as before" in second


def test_what_is_no_run_folder(outputs, capsys):
    assert cli.main(["sync"]) == 0
    assert capsys.readouterr().out == "No tracked runs in outputs.\n"
    run(outputs / "runs" / "one")
    (outputs / "empty").mkdir()
    assert cli.main(["sync", "outputs/empty", "outputs/runs/one", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert "outputs/empty is no run folder" in err
    assert "nowhere is no run folder" in err
    assert not (outputs.parent / "mlruns").exists()


def test_as_a_function(outputs, mlruns):
    result = cli_tracking.sync(run(outputs / "runs" / "one"))
    assert (result.outcome, result.status) == ("written", "FINISHED")


def resolved(webhook):
    command = compose.CommandLine((f"tracking.webhook={webhook}",))
    return compose.resolve(compose.compose(compose.open_hydra(command), command))


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8080/hook", "https://ntfy.sh/my-training-runs", "https://[::1]/a/b?c=1"],
)
def test_webhook_addresses(address):
    assert resolved(f"'{address}'").tracking.webhook == address


@pytest.mark.parametrize(
    "address", ["ftp://x/y", "file:///etc/passwd", "example.org", "http://:80"]
)
def test_what_is_no_webhook(address, monkeypatch):
    with pytest.raises(ConfigError, match=r"tracking.webhook: expected an address .*https://") as e:
        resolved(f"'{address}'")
    monkeypatch.setenv("HOOK", address)
    with pytest.raises(ConfigError) as error:
        resolved("${oc.env:HOOK}")
    assert address not in str(e.value) + str(error.value)


@pytest.mark.parametrize(
    "address",
    [f"https://hooks.slack.com/services/T0/B0/{TOKEN}", f"https://me:{TOKEN}@x.org/",
     f"https://x.org/?token={TOKEN}"],
)  # fmt: skip
def test_a_secret_address_is_not_saved(address, monkeypatch):
    with pytest.raises(ConfigError, match="environment variable") as error:
        resolved(f"'{address}'")
    assert TOKEN not in str(error.value)
    monkeypatch.setenv("HOOK", address)
    command = compose.CommandLine(("tracking.webhook='${oc.env:HOOK,null}'",))
    cfg = compose.compose(compose.open_hydra(command), command)
    assert compose.resolve(cfg).tracking.webhook == address
    public = compose.public_dict(cfg)
    assert public["tracking"]["webhook"] == "${oc.env:HOOK,null}"
    assert TOKEN not in str(public)
    monkeypatch.delenv("HOOK")
    assert compose.config_from_dict({"tracking": public["tracking"]}).tracking.webhook is None
