"""The adapters that can be asked for: those in the store, and those that the command names."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ft import lora_files
from mlx_ft.data.template import is_jinja
from mlx_ft.errors import AdapterError, ModelError
from mlx_ft.models.folder import safetensors_header
from mlx_ft.runfolder import ORIGIN, read_json
from mlx_ft.saved import TEMPLATE
from mlx_ft.serve import names
from mlx_ft.serve.bases import BASE, Bases
from mlx_ft.serve.store import Missing, Store

FILES = (lora_files.WEIGHTS, lora_files.SETTINGS, TEMPLATE)
LARGEST = 4 << 30  # bytes of an adapter's weights
LARGEST_TEXT = 1 << 20
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Adapter:
    """One that can be loaded. base: its model's name, digest: of that model's weights, each None
    where nobody knows. stamp: tells it from an earlier one of its name. kept: in the store.
    """

    name: str
    folder: Path
    base: str | None
    digest: str | None
    stamp: str
    created: int
    size: int
    kept: bool
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> str | None:
        """The chat template that it was trained with, if it says so."""
        try:
            return (self.folder / TEMPLATE).read_text("utf-8") or None
        except OSError:
            return None

    @property
    def defaults(self) -> Mapping[str, Any]:
        """How its answers are drawn where a request does not say so."""
        found = self.about.get("defaults")
        return found if isinstance(found, dict) else {}


class Shelf:
    """All of them, by name."""

    def __init__(self, store: Store, bases: Bases) -> None:
        self._store, self._bases = store, bases
        self._given: dict[str, Adapter] = {}

    def __iter__(self) -> Iterator[Adapter]:
        yield from [*self._given.values()]
        for name in self._store.names("adapters"):
            try:
                yield self._kept(name)
            except (Missing, names.BadName, OSError):  # removed just now, or not of this server
                continue

    def find(self, name: str) -> Adapter:
        """Raises BadName, Missing."""
        if name in self._given:
            return self._given[name]
        names.checked(name, "adapter")
        return self._kept(name)

    def free_name(self, name: str) -> str:
        """`name`, if an adapter may have it. Raises BadName, AdapterError."""
        names.checked(name, "adapter")
        if name == BASE or self._bases.find(name) is not None:
            raise names.BadName(f"adapter: {name!r} is the name of a base model; choose another")
        if name in self._given:
            raise AdapterError(f"the adapter {name!r} was given on the command line; it stays")
        return name

    def give(self, name: str, folder: Path, base: str | None, digest: str | None) -> Adapter:
        """Have an adapter that lies elsewhere, as long as this server runs. Raises AdapterError."""
        self.free_name(name)
        check(folder)
        size = sum((folder / file).stat().st_size for file in FILES if (folder / file).is_file())
        stamp, now = secrets.token_hex(8), int(time.time())
        self._given[name] = Adapter(name, folder, base, digest, stamp, now, size, kept=False)
        return self._given[name]

    def take_back(self, name: str) -> None:
        """Forget one that was given. Raises Missing."""
        if self._given.pop(name, None) is None:
            raise Missing(f"there is no adapter {name!r} that was given by its folder")

    def put(self, name: str, folder: Path, about: Mapping[str, Any]) -> Adapter:
        """Copy an adapter into the store, in place of an earlier one of its name.

        about: "base" and "digest" at least. Raises BadName, AdapterError, OSError.
        """
        self.free_name(name)
        check(folder)
        files = {file: (folder / file).read_bytes() for file in FILES if (folder / file).is_file()}
        told = {**about, "stamp": secrets.token_hex(8)}
        self._store.put("adapters", name, files, told, replace=True)
        return self._kept(name)

    def say(self, adapter: Adapter, about: Mapping[str, Any]) -> Adapter:
        """Note more about one in the store. Raises Missing, OSError."""
        self._store.add_about("adapters", adapter.name, about)
        return self._kept(adapter.name)

    def remove(self, name: str) -> None:
        """Delete one from the store. Raises Missing, AdapterError."""
        if name in self._given:
            raise AdapterError(
                f"the adapter {name!r} lies in {self._given[name].folder.name}, outside of this "
                "server's folder: it is not deleted"
            )
        names.checked(name, "adapter")
        self._store.remove("adapters", name)

    def _kept(self, name: str) -> Adapter:
        folder = self._store.place("adapters", name)
        about = self._store.about("adapters", name)
        created = about.get("created")
        return Adapter(
            name, folder, about.get("base"), about.get("digest"), str(about.get("stamp")),
            created if isinstance(created, int) else 0, self._store.size("adapters", name),
            kept=True, about=about,
        )  # fmt: skip


def origin(run: Path) -> str | None:
    """What tells the weights that a run was made with from others."""
    found = read_json(run / ORIGIN).get("fingerprint")
    model = found.get("model") if isinstance(found, dict) else None
    digest = model.get("weights") if isinstance(model, dict) else None
    return digest if isinstance(digest, str) else None


def check(folder: Path) -> None:
    """Look at an adapter's files without loading them. Raises AdapterError with every fault.

    Their shapes are held against the model when it is loaded.
    """
    faults = [f"{name} is a link" for name in FILES if (folder / name).is_symlink()]
    for name, most in ((lora_files.WEIGHTS, LARGEST), (lora_files.SETTINGS, LARGEST_TEXT),
                       (TEMPLATE, LARGEST_TEXT)):  # fmt: skip
        path = folder / name
        if path.is_file() and path.stat().st_size > most:
            faults.append(f"{name} has {path.stat().st_size:,} bytes; expected at most {most:,}")
    if faults:
        raise AdapterError(f"{folder.name} cannot be used as an adapter:", faults)
    if (folder / TEMPLATE).is_file() and not _is_template(folder / TEMPLATE):
        faults.append(f"{TEMPLATE} is no template")
    adapter, _ = lora_files.read_settings(folder)
    if not (1 <= adapter.rank <= 4096 and abs(adapter.scale) <= 10**6):
        faults.append(f"rank {adapter.rank}, scale {adapter.scale:g}: no adapter has these")
    try:
        header = safetensors_header(folder / lora_files.WEIGHTS)
    except ModelError as error:
        raise AdapterError(f"{folder.name} cannot be used as an adapter:", [str(error)]) from error
    for name, tensor in header.items():
        if not name.endswith((".lora_a", ".lora_b")):
            faults.append(f"{name[:100]}: no part of a LoRA adapter")
        elif tensor.get("dtype") not in FLOATS:
            faults.append(f"{name[:100]}: found {tensor.get('dtype')}; expected a float type")
    if faults:
        raise AdapterError(f"{folder.name} cannot be used as an adapter:", faults[:10])


def _is_template(path: Path) -> bool:
    """Whether it is Jinja itself, and not a name or a path, which would be looked up elsewhere."""
    text = path.read_text("utf-8", "replace")
    return is_jinja(text) or not text  # empty: the tokenizer writes its chats in Python
