"""A local folder, a GGUF file or a hub repository: which one it is, and bringing it here."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_ft.errors import ModelError
from mlx_ft.models.folder import (
    INDEX,
    WEIGHTS,
    check_folder,
    config_faults,
    missing_weights,
    read_config,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Never code (*.py), never pickles (*.bin), never GGUF: those three are not read from a network.
PATTERNS = (WEIGHTS, "*.json", "tokenizer.model", "*.tiktoken", "*.jinja", "*.txt")
ABOUT = ("README.md", "LICENSE*")  # fetched too, not missed in a copy that others downloaded
TIMEOUT_SECONDS = 5.0
WAITS_SECONDS = (1.0, 2.0, 4.0)  # between attempts; a download continues where it stopped
SPARE_BYTES = 200 * 1024**2
GIB = 1024**3
HUB_NAME = r"(?!.{97})[\w.-]+/[\w.-]+"  # at most 96 characters


@dataclass(frozen=True)
class Snapshot:
    """A complete copy of a hub repository at one commit (`revision`)."""

    path: Path
    revision: str


def classify(given: str) -> tuple[str, Path]:
    """("hub" | "gguf" | "folder", path): what a `model.path` names.

    An existing folder or file is local, as is everything that begins with `/`, `./`, `../` or `~`
    or ends with `.gguf`; `org/name` is the hub's. Raises ModelError for anything else.
    """
    if re.match(r"[a-z]+://", given):
        raise _unclear(given, "an address; models are named, e.g. org/name, not linked")
    try:
        (path := Path(given).expanduser()).exists()
    except (OSError, RuntimeError) as error:  # too long, not permitted, no such user
        raise _unclear(given, f"which cannot be looked up ({error})") from error
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model.path: the GGUF file {path} is not there")
        return "gguf", path
    if given.strip() and path.is_dir():
        return "folder", path
    if path.is_file():
        raise _unclear(given, f"a file; give its folder instead: model.path={path.parent}")
    if not given.startswith(("/", "./", "../", "~")) and re.fullmatch(HUB_NAME, given):
        return "hub", path
    raise _unclear(given, "not a folder that exists")


def _unclear(given: str, what: str) -> ModelError:
    return ModelError(
        f"model.path: found {given!r}, {what}. Expected one of:",
        [
            "embedded (the small model that comes with mlx-ft)",
            "a local folder with config.json and *.safetensors, or a .gguf file",
            "a hub repository as org/name; model=NAME chooses a recipe of conf/model",
        ],
    )


def fetch(name: str, revision: str | None = None) -> Snapshot:
    """The complete local copy of a repository, downloaded unless it is in the hub's cache.

    A complete copy is taken as it is, without asking the hub for a newer one. Raises ModelError:
    offline, not found, gated, no space, or nothing in it that may be loaded.
    """
    snapshot = cached(name, revision)
    return snapshot if snapshot else download(name, revision)


def cached(name: str, revision: str | None = None) -> Snapshot | None:
    """The copy in the hub's cache; None when there is none or its download was not finished."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=list(PATTERNS), local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        if isinstance(error, IncompleteSnapshotError):
            logger.warning("an earlier download of %s was not finished; continuing it", name)
        return None
    except ValueError as error:  # not a valid name
        raise _unclear(name, str(error)) from error
    try:
        check_folder(path := Path(found))
    except ModelError as error:
        logger.warning("the copy of %s here is not usable: %s", name, "; ".join(error.faults))
        return None
    return Snapshot(path, path.name)


def download(
    name: str, revision: str | None = None, told: Callable[[int], None] | None = None
) -> Snapshot:
    """Bring a repository's newest commit (or `revision`) here, with a progress bar.

    What was downloaded before, even half a file, is not downloaded again. Everything that can be
    refused is refused before the weights are fetched. told: gets the bytes of all files.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = asking(
        name,
        revision,
        lambda: HfApi().model_info(
            name, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        ),
    )
    sizes = _wanted_sizes(info)
    if told is not None:
        told(sum(sizes.values()))
    _check_listing(name, info)
    config = asking(
        name,
        revision,
        lambda: hf_hub_download(
            name, "config.json", revision=info.sha, etag_timeout=TIMEOUT_SECONDS
        ),
    )
    _check_config(name, Path(config).parent)
    _check_space(name, sizes)
    logger.info("downloading %s: %.2f GiB in %d files", name, sum(sizes.values()) / GIB, len(sizes))
    path = asking(
        name,
        revision,
        lambda: snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*PATTERNS, *ABOUT],
            etag_timeout=TIMEOUT_SECONDS,
        ),
    )
    check_folder(Path(path))
    return Snapshot(Path(path), Path(path).name)


def _wanted_sizes(info: ModelInfo) -> dict[str, int]:
    """Bytes by blob (its name in the hub's cache) of every file that PATTERNS let through."""
    return {
        (file.lfs.sha256 if file.lfs else file.blob_id) or file.rfilename: file.size or 0
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in PATTERNS)
    }


def _check_listing(name: str, info: ModelInfo) -> None:
    names = [file.rfilename for file in info.siblings or []]
    faults = []
    if INDEX not in names and not any(fnmatch(file, WEIGHTS) for file in names):
        faults.append(missing_weights(names))
    if "config.json" not in names:
        faults.append("config.json is missing")
    if faults:
        raise ModelError(f"{name} on the hub cannot be used as a model:", faults)


def _check_config(name: str, folder: Path) -> None:
    config, faults = read_config(folder)
    faults += config_faults(config) if config is not None else []
    if faults:
        raise ModelError(f"{name} on the hub cannot be used as a model:", faults)


def _check_space(name: str, sizes: dict[str, int]) -> None:
    """Raise ModelError when what is still missing does not fit on the disk."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    needed = sum(sizes.values())
    for blob in (cache_folder(name) / "blobs").glob("*"):
        if blob.name.split(".")[0] in sizes:  # whole, or begun: *.incomplete
            needed -= blob.stat().st_size
    free = shutil.disk_usage(place).free
    if needed + SPARE_BYTES > free:
        raise ModelError(
            f"{name} needs {needed / GIB:.2f} GiB more in {cache}, where {free / GIB:.2f} GiB are "
            "free. Make room (`mlx-ft models list` shows what is there) or set HF_HOME to "
            "another disk"
        )


def asking(name: str, revision: str | None, request: Callable[[], T]) -> T:
    """The request's answer; a busy hub or a broken transfer is tried again, nothing else is."""
    for attempt, wait in enumerate((*WAITS_SECONDS, None), start=1):
        try:
            return request()
        except Exception as error:
            fault = _explained(name, revision, error)
            if fault is not None:
                raise fault from error
            if wait is None:
                raise offline(name, f"{type(error).__name__}: {error}") from error
            logger.warning(
                "%s: %s; attempt %d failed, the next one in %.0f s continues where it stopped",
                name, _first_line(error), attempt, wait,
            )  # fmt: skip
            time.sleep(wait)
    raise AssertionError("unreachable")


def _explained(name: str, revision: str | None, error: Exception) -> ModelError | None:
    """The error for the user, or None when the request is worth another attempt."""
    import httpx
    from huggingface_hub import constants, errors

    if isinstance(error, ModelError):
        return error
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _explained(name, revision, error.__cause__)  # what kept it from being fetched
    page = f"{constants.ENDPOINT}/{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{name} has no revision {revision!r}; see {page}/tree/main")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return ModelError(
            f"{name} is gated: its licence has to be accepted first.",
            [
                f"accept it, signed in, on {page}",
                "make a read token in the account's settings",
                "set it as HF_TOKEN=..., or run `hf auth login`, and start again",
            ],
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return ModelError(
            f"{name} is not on the hub, or is private. Check the name; for a private repository "
            "set HF_TOKEN or run `hf auth login`"
        )
    if isinstance(error, errors.HFValidationError):
        return _unclear(name, str(error))
    if isinstance(error, (httpx.ConnectError, httpx.ProxyError, httpx.ConnectTimeout)):
        return offline(name, _first_line(error))
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return offline(name, _first_line(error))
    transient = isinstance(error, httpx.TransportError) or (status or 0) >= 500 or status == 429
    if transient:
        return None
    if isinstance(error, OSError) and status is None:
        return ModelError(f"{name}: the download cannot be written: {error}")
    return ModelError(f"{name}: the hub answered {_first_line(error)}")


def offline(name: str, reason: str) -> ModelError:
    """The ways out of a model that is not here and cannot be downloaded."""
    here = ", ".join(["embedded", *(copy for copy in cached_names() if copy != name)])
    return ModelError(
        f"{name} is neither a folder here nor completely downloaded, and the hub cannot be "
        f"reached ({reason}).",
        [
            "go online (HF_HUB_OFFLINE must not be set) and run this again",
            "or give a local folder with the model: model.path=FOLDER",
            f"or use one that is here: {here}",
        ],
    )


def cached_names() -> list[str]:
    """Names of the models of which the hub's cache holds something."""
    from huggingface_hub import constants

    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*"))
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def cache_folder(name: str) -> Path:
    """Where the hub's cache keeps (or would keep) a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
