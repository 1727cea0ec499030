"""The embedded model, converted and loaded once for all tests of this folder."""

from pathlib import Path

import pytest

from mlx_ft.config.schema import ModelConfig
from mlx_ft.models.load import Loaded, Located, load, locate


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache; whoever reaches for the network is refused at once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def located(cache_dir: Path) -> Located:
    return locate(ModelConfig(), cache_dir)


@pytest.fixture(scope="session")
def embedded(located: Located) -> Loaded:
    return load(located, ModelConfig(), compute_dtype="float32", dequantize=True)
