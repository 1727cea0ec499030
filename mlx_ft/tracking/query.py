"""Runs that MLflow finds by a query, as values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.errors import MlxFtError, UserError
from mlx_ft.tracking.store import FOLDER_TAG, REASON_TAG, import_client, is_refusal
from mlx_ft.tracking.uri import database_file, tracking_uri, without_password
from mlx_ft.tracking.writer import in_words

# What `summary.json` calls a figure -> what MLflow has it as.
FINAL = {"val_loss_after": "final/val_loss", "perplexity_after": "final/perplexity",
         "accuracy_after": "final/accuracy", "best_step": "final/best_step"}  # fmt: skip
CURVES = ("val/loss", "train/loss")
KIND_TAG = "mlx_ft.kind"


@dataclass(frozen=True)
class TrackedRun:
    """One run as MLflow knows it.

    params: as text. figures: by the names of `summary.json`. curves: metric -> (step, value), only
    of a run without a folder here. folder: where it was written, on the machine that it ran on.
    """

    run_id: str
    status: str
    reason: str | None
    folder: Path | None
    params: Mapping[str, str]
    figures: Mapping[str, float]
    curves: Mapping[str, list[tuple[int, float]]]


def find_runs(config: Config, query: str) -> tuple[list[TrackedRun], int]:
    """The runs of the experiment that the query finds, the newest first, and how many sweeps'
    own runs it finds besides.

    query: in MLflow's syntax; `metrics.val_loss_after` and the like are understood. Nothing is
    made that is not there. Raises UserError for a query that MLflow refuses or when there is no
    such database or experiment, MlxFtError when it cannot be asked.
    """
    uri = tracking_uri(config)
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise UserError(
            f"There are no runs yet: {database} does not exist. Name another folder with "
            "paths.tracking_dir=FOLDER"
        )
    connect = import_client(with_database=database is not None)
    try:
        client = connect(tracking_uri=uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(config.tracking.experiment_name)
        if experiment is None:
            raise UserError(
                f"MLflow has no experiment {config.tracking.experiment_name!r}. Name it with "
                "tracking.experiment_name=NAME"
            )
        found = _search(client, str(experiment.experiment_id), in_mlflows_words(query))
        runs = [run for run in found if run.data.tags.get(KIND_TAG) != "sweep"]
        return [_tracked(client, run) for run in runs], len(found) - len(runs)
    except MlxFtError:
        raise
    except Exception as error:
        if is_refusal(error):
            raise UserError(f"--query {query!r}: {in_words(error)}") from error
        where = without_password(uri)
        raise MlxFtError(f"MLflow at {where} cannot be asked: {in_words(error)}") from error


def in_mlflows_words(query: str) -> str:
    """The query with the names of `summary.json` replaced by those of MLflow's metrics."""
    names = "|".join(FINAL)
    pattern = rf"\b(metrics?)\.([`\"]?)({names})\2(?![\w/])"
    return re.sub(pattern, lambda found: f"{found[1]}.`{FINAL[found[3]]}`", query)


def _search(client: Any, experiment_id: str, query: str) -> list[Any]:
    found, token = list[Any](), None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, page_token=token)
        found += page
        if not (token := page.token):
            return found


def _tracked(client: Any, run: Any) -> TrackedRun:
    tags, metrics = run.data.tags, run.data.metrics
    folder = Path(tags[FOLDER_TAG]) if FOLDER_TAG in tags else None
    missing = [key for key in CURVES if key in metrics and not (folder and folder.is_dir())]
    times = (run.info.start_time, run.info.end_time)
    figures = {name: metrics[key] for name, key in FINAL.items() if key in metrics}
    figures |= {"wall_seconds": (times[1] - times[0]) / 1000} if all(times) else {}
    if "memory/mlx_peak_gb" in metrics:
        figures["peak_memory_gb"] = metrics["memory/mlx_peak_gb"]
    return TrackedRun(
        str(run.info.run_id),
        str(run.info.status),
        tags.get(REASON_TAG),
        folder,
        dict(run.data.params),
        {name: value for name, value in figures.items() if math.isfinite(value)},
        {key: _curve(client, run.info.run_id, key) for key in missing},
    )


def _curve(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    """By step; of two values at one step the later one."""
    points = sorted(client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
    values = {int(point.step): float(point.value) for point in points}
    return sorted((step, value) for step, value in values.items() if math.isfinite(value))
