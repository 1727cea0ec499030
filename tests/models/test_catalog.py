"""What `mlx-ft models` shows and removes."""

from pathlib import Path

import pytest

from mlx_ft.errors import ModelError
from mlx_ft.models import catalog, gguf, hub

from . import tiny

NAME = "org/tiny"
CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def downloaded() -> Path:
    """A model in the hub's cache; returns its folder there."""
    folder = hub.cache_folder(NAME)
    snapshot = folder / "snapshots" / "abc"
    tiny.save(snapshot)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "1").write_bytes((snapshot / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(folder / "blobs" / "1")
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_recipes_are_listed_though_not_here(cache: Path) -> None:
    entries = {entry.recipe: entry for entry in catalog.list_models(cache, CONF)}
    assert entries["smollm2_135m"].trainable
    assert entries["smollm2_135m"].licence == "apache-2.0"
    assert entries["smollm2_135m"].parameters == 134_515_008
    assert entries["tinyllama"].path is None
    assert entries["tinyllama"].trainable is None


def test_a_download_is_described(cache: Path, downloaded: Path) -> None:
    [entry] = [e for e in catalog.list_models(cache, CONF) if e.name == NAME]
    assert entry == catalog.show(NAME, cache, CONF)
    assert (entry.source, entry.licence, entry.quantization) == ("hub", "apache-2.0", None)
    assert entry.trainable
    model = tiny.build()
    from mlx_ft.models.load import total_parameters

    assert entry.parameters == total_parameters(model)
    assert entry.weight_bytes() == {
        "4 bit": int(entry.parameters * 4.5 / 8),
        "16 bit": entry.parameters * 2,
        "float32": entry.parameters * 4,
    }
    blob = (downloaded / "blobs" / "1").stat().st_size
    assert blob < entry.size_bytes < blob + 30_000  # not counted twice through the link


def test_one_that_cannot_be_trained_says_why(cache: Path, downloaded: Path) -> None:
    (downloaded / "snapshots" / "abc" / "config.json").write_text('{"model_type": "x9"}')
    entry = catalog.show(NAME, cache, CONF)
    assert entry.trainable is False
    assert "mlx-lm has no model_type 'x9'" in entry.faults[0]


def test_gguf_and_its_conversion(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.gguf"
    tiny.write_gguf(path)
    entry = catalog.show(str(path), cache, CONF)
    assert (entry.source, entry.quantization, entry.licence) == ("gguf", "F32", "mit")
    catalog.download(str(path), cache, CONF, progress=False)
    [folder] = catalog.conversions(cache)
    converted = catalog.show(folder.name, cache, CONF)
    assert (converted.source, converted.licence) == ("converted", "mit")
    assert converted.parameters == entry.parameters
    size = catalog.disk_usage(folder)
    assert catalog.remove(str(path), cache, CONF) == size > 0
    assert path.exists()
    assert catalog.conversions(cache) == []


def test_a_gguf_that_is_not_read_says_why(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.gguf").write_text("no")
    entry = catalog.show(str(tmp_path / "a.gguf"), cache, CONF)
    assert entry.trainable is False
    assert "is not a GGUF file" in entry.faults[0]


def test_removing_a_download_frees_what_it_took(cache: Path, downloaded: Path) -> None:
    other = hub.cache_folder("org/tiny2")
    other.mkdir(parents=True)
    size = catalog.disk_usage(downloaded)
    assert catalog.remove(NAME, cache, CONF) == size
    assert not downloaded.exists()
    assert other.exists()


def test_removing_a_conversion_by_its_name(tmp_path: Path, cache: Path) -> None:
    tiny.write_gguf(tmp_path / "a.gguf")
    folder = gguf.convert(tmp_path / "a.gguf", cache)
    assert catalog.remove(folder.name, cache, CONF) > 0
    assert not folder.exists()


def test_only_caches_are_touched(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tmp_path / "mine")
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(ModelError, match="is a folder of yours"):
        catalog.remove(str(tmp_path / "mine"), cache, CONF)
    monkeypatch.chdir(tmp_path)
    for name in ("link", "..", "../mine", "org/none", ".", "*", "embedded", "tinyllama"):
        with pytest.raises(ModelError):
            catalog.remove(name, cache, CONF)
    assert (tmp_path / "mine" / "config.json").exists()


def test_download_of_a_folder_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match="nothing to download"):
        catalog.download(str(tmp_path), cache, CONF)


def test_download_asks_the_hub_even_when_it_is_here(
    cache: Path, downloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "download", lambda name, told: asked.append(name))
    assert catalog.download(NAME, cache, CONF).name == NAME
    assert asked == [NAME]


def test_packed_weights_are_counted_unpacked(tmp_path: Path, located: object) -> None:
    assert catalog.parameters_on_disk(located.path, located.config) == 134_515_008  # type: ignore[attr-defined]
    assert catalog.parameters_on_disk(tmp_path, {}) is None
