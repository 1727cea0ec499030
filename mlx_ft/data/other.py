"""The rows of other files than a run's own, all of them to be judged."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import sources
from mlx_ft.data.chat import Tokenizer
from mlx_ft.data.encoded import Conversations, Examples, Parse
from mlx_ft.data.prepare import Dataset, prepare
from mlx_ft.data.tally import refused
from mlx_ft.errors import DataError

logger = logging.getLogger("mlx_ft.data")


@dataclass(frozen=True)
class Judged:
    """Rows to be judged. valid: by their loss. test: by their answers. digest: of the files.

    unanswered: rows that do not end in an answer, of which no metric can say anything.
    """

    valid: Examples
    test: Conversations
    name: str
    digest: str
    unanswered: int


def own_rows(dataset: Dataset, name: str) -> Judged:
    """The validation and test rows of a run's own dataset."""
    rows = dataset.encoded.rows
    judged = 2 if (rows["split"] == 2).any() else 1  # as `prepare` has it: test, or else validation
    there = (rows["split"] == judged) & ~rows["set_aside"]
    unanswered = int(there.sum()) - len(dataset.test)
    return Judged(dataset.valid, dataset.test, name, dataset.digest, unanswered)


def other_rows(
    path: str,
    config: DataConfig,
    tokenizer: Tokenizer,
    max_seq_length: int,
    seed: int,
    cache_dir: Path,
) -> Judged:
    """The rows that `path` names: a file, a pattern, a folder, `builtin:NAME` or `hub:ORG/NAME`.

    Of a place with several splits these are the test rows, or else the validation rows. config:
    says how rows are read and rendered. Raises DataError for files that are not there, and with
    all faults of faulty rows.
    """
    config = replace(
        config, path=path, valid_path=None, test_path=None, valid_fraction=0.0, metric="none"
    )
    found = _chosen(path, config)
    dataset = prepare(
        config, tokenizer, max_seq_length, seed, cache_dir, accept_faults=True, found=found
    )
    if error := refused(dataset.report, 0):
        counts = dataset.report["rows"]
        faulty = counts["rejected"] - counts["dropped"]
        message = f"--data {path}: {faulty} of {counts['rows']} rows are faulty. Mend them"
        raise DataError(message, error.faults) if faulty else error
    rows = dataset.encoded.rows
    judged = np.flatnonzero(rows["judgeable"] & ~rows["set_aside"])
    files = [source.path for source in found.all]
    test = Conversations(dataset.encoded, judged, files, Parse.of(config))
    unanswered = int((~rows["set_aside"]).sum()) - len(judged)
    return Judged(dataset.train, test, path, dataset.digest, unanswered)


def _chosen(path: str, config: DataConfig) -> sources.Sources:
    """The files of the split that is to be judged, as if they were to be trained on."""
    try:
        found = sources.find(config)
    except DataError as error:
        faults = [fault.replace("data.path:", "--data:", 1) for fault in error.faults]
        raise DataError(error.message, faults) from error
    chosen = found.test or found.valid or found.train
    if chosen is not found.train:
        logger.info("%s: judged on its %s rows", path, chosen[0].split)
    as_training = tuple(replace(source, split="train", weight=1.0) for source in chosen)
    return sources.Sources(as_training)
