"""A journal's records -> the store: the run that they belong to, and each record in turn."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from mlx_ft.tracking.journal import Journal
from mlx_ft.tracking.records import (
    Dataset,
    End,
    File,
    Metrics,
    Record,
    Register,
    Start,
    Table,
    Tags,
)
from mlx_ft.tracking.store import JOURNAL_TAG, REASON_TAG, UNWRITTEN_TAG, MlflowStore, Point

logger = logging.getLogger("mlx_ft.tracking")

LONG_PARAMETERS = "long_parameters.json"
MAX_TAG = 8000  # characters; MLflow's limit


def find_or_create(store: MlflowStore, journal: Journal, *, surely_new: bool = False) -> str:
    """The id of the journal's run, which is created if the store has none, and noted.

    surely_new: nobody asked the store for it before, so that there is nothing to find.
    """
    start = journal.state.start
    found = [] if surely_new or start is None else store.runs_of(start.journal)
    if found:
        run_id = found[0]
        journal.acknowledge(run_id)
    else:
        run_id = _create(store, journal)
    discard_others(store, journal, run_id)
    return run_id


def _create(store: MlflowStore, journal: Journal) -> str:
    included = [number for number, record in journal.pending() if isinstance(record, Tags)]
    tags, start = journal.tags(), journal.state.start
    if start is None:  # the first line is damaged
        run_id = store.create_run(journal.folder.name, journal.state.began, tags)
    else:
        run_id = store.create_run(start.name, start.time, {**tags, JOURNAL_TAG: start.journal})
    journal.acknowledge(run_id, included)
    return run_id


def discard_others(store: MlflowStore, journal: Journal, run_id: str) -> None:
    """Delete runs that a server made for this journal and whose answer got lost on the way."""
    start = journal.state.start
    if start is None or not store.remote:
        return
    for other in store.runs_of(start.journal):
        if other != run_id:
            logger.info("MLflow made the run %s twice: %s is deleted.", run_id, other)
            store.discard(other)


def write_points(store: MlflowStore, run_id: str, records: Sequence[Metrics]) -> None:
    """Write the values of all these records."""
    store.metrics(
        run_id,
        [
            Point(key, value, record.time, record.step)
            for record in records
            for key, value in record.values.items()
        ],
    )


def write(store: MlflowStore, run_id: str, record: Record, journal: Journal) -> None:
    """Write one record that has no points."""
    match record:
        case Start():
            store.params(run_id, record.params)
            if record.apart:
                text = json.dumps(record.apart, indent=2, ensure_ascii=False)
                store.text(run_id, text, LONG_PARAMETERS)
        case Tags():
            newest = journal.tags()  # a later value may be written already
            for key in record.tags:
                store.tag(run_id, key, newest[key])
        case File():
            store.file(run_id, journal.folder / record.path, record.folder)
        case Table():
            store.table(run_id, record.columns, record.data, f"{record.name}.json")
        case Dataset():
            store.dataset(
                run_id, record.name, record.digest, record.source, record.profile, record.context
            )
        case Register():
            store.register(record.name, record.run_id, record.alias, record.tags)
        case End():
            _close(store, run_id, record, journal)


def _close(store: MlflowStore, run_id: str, end: End, journal: Journal) -> None:
    discard_others(store, journal, run_id)
    if end.reason is not None:
        store.tag(run_id, REASON_TAG, end.reason[:MAX_TAG])
    if unwritten := journal.pending_points():
        store.tag(run_id, UNWRITTEN_TAG, str(unwritten))
    store.close(run_id, end.status, end.time)
