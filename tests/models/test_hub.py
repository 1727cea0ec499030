"""The hub without a network: a fake of its API, and the real library offline."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from mlx_ft.errors import ModelError
from mlx_ft.models import hub

from . import tiny

SHA = "c0ffee" + "0" * 34
NAME = "org/tiny"


class FakeHub:
    """One repository. failures: raised by the next requests, in order."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.extra: dict[str, int] = {"modeling.py": 9, "pytorch_model.bin": 10**15, "README.md": 5}
        self.failures: list[Exception] = []
        self.requests: list[str] = []
        self.patterns: list[str] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        real = huggingface_hub.snapshot_download

        def snapshot_download(name: str, *, local_files_only: bool = False, **options: Any) -> str:
            if local_files_only:
                return real(name, local_files_only=True, **options)
            self.request("snapshot")
            self.patterns = options["allow_patterns"]
            for path in self.source.iterdir():
                self.put(name, path)
            return str(hub.cache_folder(name) / "snapshots" / SHA)

        def hf_hub_download(name: str, file: str, **_: Any) -> str:
            self.request(file)
            return str(self.put(name, self.source / file))

        patch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=self.model_info))
        patch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        patch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)

    def request(self, what: str) -> None:
        self.requests.append(what)
        if self.failures:
            raise self.failures.pop(0)

    def put(self, name: str, path: Path) -> Path:
        folder = hub.cache_folder(name)
        target = folder / "snapshots" / SHA / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(SHA)
        shutil.copy(path, target)
        return target

    def model_info(self, name: str, **options: Any) -> Any:
        self.request("info")
        assert options["files_metadata"]
        sizes = {path.name: path.stat().st_size for path in self.source.iterdir()} | self.extra
        return SimpleNamespace(
            sha=SHA,
            siblings=[
                SimpleNamespace(rfilename=file, size=size, lfs=None, blob_id=file.replace(".", "_"))
                for file, size in sizes.items()
            ],
        )


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    tiny.save(tmp_path / "source")
    fake = FakeHub(tmp_path / "source")
    fake.install(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return fake


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx.Request("GET", "http://127.0.0.1:9/api")
    return kind("refused", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("given", "kind"),
    [("org/name", "hub"), ("here", "folder"), ("./here", "folder"), ("a.gguf", "gguf")],
)
def test_what_a_path_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "a.gguf").write_text("")
    assert hub.classify(given)[0] == kind


def test_an_existing_folder_wins_over_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.classify("org/name") == ("folder", Path("org/name"))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("./nope", "not a folder that exists"),
        ("~/nope", "not a folder that exists"),
        ("/no/where", "not a folder that exists"),
        ("gpt2", "not a folder that exists"),
        ("a/b/c", "not a folder that exists"),
        ("", "not a folder that exists"),
        ("https://example.org/a/b", "an address"),
        ("nope.gguf", "the GGUF file nope.gguf is not there"),
        (__file__, "give its folder instead: model.path="),
    ],
)
def test_what_names_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=what):
        hub.classify(given)


def test_download_then_cache(fake: FakeHub) -> None:
    snapshot = hub.fetch(NAME)
    assert snapshot.revision == SHA
    assert (snapshot.path / "model.safetensors").is_file()
    assert fake.requests == ["info", "config.json", "snapshot"]
    assert not any(pattern.endswith((".py", ".bin", ".gguf")) for pattern in fake.patterns)
    assert hub.fetch(NAME) == snapshot
    assert len(fake.requests) == 3  # the second time nobody was asked


def test_an_incomplete_download_is_continued(fake: FakeHub) -> None:
    snapshot = hub.fetch(NAME)
    (snapshot.path / "model.safetensors").unlink()
    assert hub.cached(NAME) is None
    assert hub.fetch(NAME) == snapshot
    assert (snapshot.path / "model.safetensors").is_file()


def test_a_busy_hub_is_asked_again(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    fake.failures = [http_error(errors.HfHubHTTPError, 503), httpx.ReadTimeout("slow")]
    hub.fetch(NAME)
    assert fake.requests == ["info", "info", "info", "config.json", "snapshot"]
    assert "attempt 2 failed, the next one in 2 s continues where it stopped" in caplog.text


def test_a_hub_that_stays_busy_ends_with_the_ways_out(fake: FakeHub) -> None:
    fake.failures = [http_error(errors.HfHubHTTPError, 503)] * 9
    with pytest.raises(ModelError, match="go online"):
        hub.fetch(NAME)
    assert len(fake.requests) == 4


@pytest.mark.parametrize(
    ("error", "texts"),
    [
        (
            http_error(errors.GatedRepoError, 403),
            ["is gated", "http://127.0.0.1:9/org/tiny", "HF_TOKEN"],
        ),
        (http_error(errors.HfHubHTTPError, 403), ["is gated", "HF_TOKEN"]),
        (http_error(errors.GatedRepoError, 401), ["is gated", "HF_TOKEN"]),
        (http_error(errors.RepositoryNotFoundError, 401), ["not on the hub, or is private"]),
        (http_error(errors.RevisionNotFoundError, 404), ["has no revision 'v9'"]),
        (httpx.ConnectError("Name or service not known"), ["cannot be reached (Name or service"]),
        (errors.OfflineModeIsEnabled("offline mode is enabled"), ["HF_HUB_OFFLINE must not be"]),
        (OSError("No space left on device"), ["cannot be written: No space left"]),
        (http_error(errors.HfHubHTTPError, 400), ["the hub answered refused"]),
    ],
)
def test_refusals_are_not_tried_again(fake: FakeHub, error: Exception, texts: list[str]) -> None:
    fake.failures = [error]
    with pytest.raises(ModelError) as caught:
        hub.fetch(NAME, "v9")
    for text in texts:
        assert text in str(caught.value)
    assert fake.requests == ["info"]


def test_gated_files_of_a_public_listing(fake: FakeHub) -> None:
    error = errors.LocalEntryNotFoundError("not here")
    error.__cause__ = http_error(errors.GatedRepoError, 403)
    request = fake.request
    fake.request = lambda what: request(what) if what == "info" else raise_(error)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="is gated"):
        hub.fetch(NAME)


def raise_(error: Exception) -> None:
    raise error


def test_free_disk_is_checked_before_the_weights(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.extra = {"model-2.safetensors": 50 * 2**30}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20 * 2**30))
    with pytest.raises(ModelError, match=r"needs 50\.00 GiB more .* 20\.00 GiB are free"):
        hub.fetch(NAME)
    assert "snapshot" not in fake.requests
    blobs = hub.cache_folder(NAME) / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "model-2_safetensors.incomplete").open("wb") as file:
        file.truncate(40 * 2**30)  # sparse: begun before
    hub.fetch(NAME)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "a.gguf"), "only GGUF"),
        (lambda folder: (folder / "model.safetensors").unlink(), "only pickled weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"model_type": "x9", "auto_map": {"AutoModel": "m.M"}}'
            ),
            "would run code",
        ),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "x9"}'), "'x9'"),
    ],
    ids=["gguf", "pickled", "no config", "code", "unknown type"],
)
def test_what_cannot_be_used_is_refused_before_the_weights(
    fake: FakeHub, change: Callable[[Path], Any], text: str
) -> None:
    change(fake.source)
    with pytest.raises(ModelError, match=text):
        hub.fetch(NAME)
    assert "snapshot" not in fake.requests


@pytest.mark.parametrize("offline_mode", [True, False], ids=["HF_HUB_OFFLINE", "refused"])
def test_offline_for_real_names_the_ways_out_quickly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, offline_mode: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline_mode)
    (hub.cache_folder("org/other") / "snapshots").mkdir(parents=True)
    start = time.perf_counter()
    with caplog.at_level(logging.INFO), pytest.raises(ModelError) as caught:
        hub.fetch(NAME)
    assert time.perf_counter() - start < 3
    assert len(caught.value.faults) == 3
    assert "or give a local folder" in str(caught.value)
    assert "or use one that is here: embedded, org/other" in str(caught.value)
