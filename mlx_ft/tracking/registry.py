"""Adapters by their names in MLflow's registry: `models:/NAME/VERSION`, `models:/NAME@ALIAS`."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from mlx_ft.config.schema import Config
from mlx_ft.errors import AdapterError
from mlx_ft.tracking.store import ADAPTER, FOLDER_TAG, import_client
from mlx_ft.tracking.uri import database_file, tracking_uri, without_password

SCHEME = "models:/"
FILES = ("config.yaml", "summary.json")  # of a run, beside its adapter
SCRATCH, DAY = "copy-", 86_400  # seconds
FORM = re.compile(r"models:/+([^/@]+)(?:/(\w+)|@([\w-]+))")


class Registry:
    """MLflow's registered models, to be read."""

    def __init__(self, uri: str) -> None:
        client = import_client(with_database=database_file(uri) is not None)
        self._client = client(tracking_uri=uri, registry_uri=uri)

    def run_of(
        self, name: str, version: str | None, alias: str | None
    ) -> tuple[str, int, str | None]:
        """The run behind a version (`latest`: the highest), when it ended (ms since 1970, 0: not
        yet), and the folder that it was written to.

        Raises what MLflow raises, also LookupError for a model without versions.
        """
        if alias is not None:
            found = self._client.get_model_version_by_alias(name, alias)
        elif version == "latest":
            versions = self._client.search_model_versions(f"name = '{name}'")
            if not versions:
                raise LookupError(f"there is no registered model {name}")
            found = max(versions, key=lambda one: int(one.version))
        else:
            found = self._client.get_model_version(name, version)
        run = self._client.get_run(found.run_id)
        return str(found.run_id), int(run.info.end_time or 0), run.data.tags.get(FOLDER_TAG)

    def files(self, run_id: str) -> set[str]:
        """The names at the top of a run's artifacts."""
        return {str(file.path) for file in self._client.list_artifacts(run_id)}

    def download(self, run_id: str, name: str, folder: Path) -> None:
        """Copy a file or a folder of a run's artifacts."""
        self._client.download_artifacts(run_id, name, str(folder))


def find(reference: str, config: Config) -> Path:
    """The run folder behind a name: the one that is here, or a copy of what MLflow keeps of it.

    config: says which MLflow and where copies go. Raises AdapterError.
    """
    match = FORM.fullmatch(reference)
    if match is None:
        raise AdapterError(
            f"{reference}: expected models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS"
        )
    uri = tracking_uri(config)
    database = database_file(uri)
    if database is not None and not database.exists():
        raise AdapterError(f"{reference}: there is no MLflow database {database}")
    try:
        registry = Registry(uri)
        run_id, ended, folder = registry.run_of(match[1], match[2], match[3])
        if folder is not None and _is_of(Path(folder), run_id):
            return Path(folder)
        place = Path(config.paths.cache_dir).expanduser() / "runs"
        return _copied(registry, run_id, place, f"{run_id}-{ended}")  # one that went on is another
    except AdapterError:
        raise
    except Exception as error:  # whatever MLflow, its server or the network says
        lines = str(error).splitlines() or [type(error).__name__]
        where = without_password(uri)
        raise AdapterError(f"{reference}: not found in MLflow at {where}: {lines[0]}") from error


def _is_of(folder: Path, run_id: str) -> bool:
    """Whether this is the folder of that run still."""
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and summary.get("run_id") == run_id


def _copied(registry: Registry, run_id: str, place: Path, name: str) -> Path:
    """A copy appears whole or not at all; one of an earlier end of the run goes."""
    target = place / name
    if (target / ADAPTER).is_dir():
        return target
    place.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(place)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=place))
    try:
        there = registry.files(run_id)
        missing = [name for name in (ADAPTER, FILES[0]) if name not in there]
        if missing:
            raise AdapterError(f"MLflow's run {run_id} has no {' and no '.join(missing)}")
        for name in (ADAPTER, *FILES):
            if name in there:
                registry.download(run_id, name, scratch)
        try:
            scratch.rename(target)
        except OSError:  # another process has made it meanwhile
            if not (target / ADAPTER).is_dir():
                raise
        for earlier in place.glob(f"{run_id}-*"):
            if earlier != target:
                shutil.rmtree(earlier, ignore_errors=True)
        return target
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_left_behind(place: Path) -> None:
    """What a process that was killed had begun to copy."""
    for scratch in place.glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - scratch.stat().st_mtime > DAY:
                shutil.rmtree(scratch, ignore_errors=True)
