"""A dataset: every row read, understood, encoded and accounted for, once; then from the cache."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_ft import store
from mlx_ft.config.schema import DataConfig
from mlx_ft.data import build, hub, sources
from mlx_ft.data.chat import Tokenizer
from mlx_ft.data.encoded import SPLITS, Conversations, Encoded, Examples, Parse
from mlx_ft.data.known import Known, code, know
from mlx_ft.data.tally import cut_short, refused
from mlx_ft.data.template import TemplateChoice
from mlx_ft.deferred import Deferred
from mlx_ft.errors import DataError

logger = logging.getLogger("mlx_ft.data")

VERSION = 4  # of what is written; another one makes other cache entries
UNUSED_DAYS = 30
TEMPORARY = "mlx-ft-data-"  # begins the names of folders that are not kept
REPORT, QUARANTINE = "report.json", "quarantine.jsonl"
ANSWERS = "answers.json"  # what the tokenizer says of the rows that are judged


@dataclass(frozen=True)
class Dataset:
    """Rows as tokens, and what is known of them.

    test: the rows that the task metric judges. weights: (train examples,) how often an epoch
    shows each. report: what `mlx-ft validate` writes; see docs/data.md.
    """

    train: Examples
    valid: Examples
    test: Conversations
    weights: np.ndarray
    report: dict[str, Any]
    known: Known
    encoded: Encoded

    @property
    def template(self) -> TemplateChoice:
        """The chat template that the rows were rendered with."""
        return self.known.template

    def longest_answer(self) -> int | None:
        """Tokens of the longest answer that the task metric judges; None: there is none."""
        content = json.loads((self.encoded.folder / ANSWERS).read_text("utf-8"))
        return None if content["longest"] is None else int(content["longest"])

    @property
    def digest(self) -> str:
        """SHA-256 over the files."""
        return str(self.report["digest"])

    @property
    def stats(self) -> dict[str, Any]:
        """What `report["splits"]` says of each split."""
        return dict(self.report["splits"])

    @property
    def quarantine(self) -> Path:
        """The file of the rejected rows; empty when there are none."""
        return self.encoded.folder / QUARANTINE

    @property
    def reasons(self) -> Path:
        """Why, line by line beside `quarantine`."""
        return self.encoded.folder / f"{Path(QUARANTINE).stem}.reasons.jsonl"

    def beyond(self, vocabulary: int) -> list[str]:
        """`path:line: token` of the first rows with a token that a vocabulary does not have."""
        if self.encoded.max_token() < vocabulary:
            return []
        found = np.flatnonzero(self.encoded.tokens >= vocabulary)[:100]
        examples = np.searchsorted(self.encoded.examples["start"], found, side="right") - 1
        places = []
        for position, example in zip(found.tolist(), examples.tolist(), strict=True):
            about = self.encoded.rows[self.encoded.examples["row"][example]]
            path = self.report["files"][about["source"]]["path"]
            places.append(f"{path}:{about['line']}: token {self.encoded.tokens[position]}")
        return list(dict.fromkeys(places))


@dataclass(frozen=True)
class _Wanted:
    """Everything that decides the encoded rows."""

    sources: sources.Sources
    parse: Parse
    config: DataConfig
    max_seq_length: int
    seed: int
    known: Known

    def conversations(self, encoded: Encoded) -> Conversations:
        """The rows that the task metric judges."""
        rows = encoded.rows
        test = "test" if (rows["split"] == SPLITS.index("test")).any() else "valid"
        judged = (rows["split"] == SPLITS.index(test)) & rows["judgeable"] & ~rows["set_aside"]
        paths = [source.path for source in self.sources.all]
        return Conversations(encoded, np.flatnonzero(judged), paths, self.parse)


def prepare(
    config: DataConfig,
    tokenizer: Tokenizer | Deferred[Tokenizer],
    max_seq_length: int,
    seed: int,
    cache_dir: Path,
    *,
    accept_faults: bool = False,
    found: sources.Sources | None = None,
) -> Dataset:
    """The dataset of a configuration; installs its chat template in the tokenizer.

    A deferred tokenizer is not read where the rows are in the cache. accept_faults: leave it to
    the caller to call `refused`. found: what `sources.find` gave, if it was called before. Raises
    DataError: for files that are not there or change while they are read, for what `refused` says,
    and where the encoded rows cannot be written anywhere.
    """
    cache_dir = cache_dir.expanduser()
    found = found or sources.find(config)
    known = know(tokenizer, config.template, cache_dir / "tokenizers" if config.cache else None)
    for note in (*found.notes, *([known.template.note] if known.template.note else [])):
        logger.warning(note)
    wanted = _Wanted(found, Parse.of(config), config, max_seq_length, seed, known)
    folder = _folder(wanted, tokenizer, cache_dir)
    report = json.loads((folder / REPORT).read_text("utf-8"))
    if not accept_faults:
        if error := refused(report, config.max_errors):
            raise error
        _warn(report, config)
    for note in report["notes"]:
        logger.warning(note)
    return _open(folder, report, wanted)


def _folder(wanted: _Wanted, tokenizer: Tokenizer | Deferred[Tokenizer], cache_dir: Path) -> Path:
    """The folder of the encoded rows: the cache's, or else a new one."""
    started = time.monotonic()
    config, found = wanted.config, wanted.sources.all
    about: dict[str, Any] = {
        "version": [VERSION, code()],
        "digest": sources.digest([source.path for source in found]),
        "files": [[source.split, source.weight] for source in found],
        "tokenizer": wanted.known.fingerprint,
        "data": {key: value for key, value in asdict(config).items() if key in ENCODING_KEYS},
        "max_seq_length": wanted.max_seq_length,
        "seed": wanted.seed,
        # Rows name their places, so the same rows elsewhere are another entry.
        "paths": [str(source.path) for source in found],
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    target = cache_dir / "data" / key
    if config.cache and _usable(target):
        logger.info("data: from the cache (%s)", target)
        return target
    read = tokenizer.get() if isinstance(tokenizer, Deferred) else tokenizer
    write = functools.partial(_write, wanted, read, about["digest"])
    folder = _published(target, write, about, cache_dir) if config.cache else None
    folder = folder or _temporary(write)
    logger.debug("data: encoded in %.1f s", time.monotonic() - started)
    return folder


def _usable(target: Path) -> bool:
    """Whether a cache entry is there and whole; one that is of no use goes."""
    if not target.is_dir():
        return False
    if damage := store.damage(target, hashes=True):
        logger.warning("data: the cache entry %s is damaged (%s); made again", target, damage[0])
        return False
    if cut_short(json.loads((target / REPORT).read_text("utf-8"))):  # may be read now
        shutil.rmtree(target, ignore_errors=True)
        return False
    with suppress(OSError):  # it may be another user's
        (target / store.MANIFEST).touch()  # used today
    return True


def _write(wanted: _Wanted, tokenizer: Tokenizer, digest: str, folder: Path) -> None:
    """Fill a folder. Raises DataError where the files are no longer those of the digest."""
    found, config = wanted.sources, wanted.config
    job = build.Job(found, wanted.parse, tokenizer, config, wanted.max_seq_length, wanted.seed)
    job.write(folder, digest)
    judged = [] if config.metric == "none" else wanted.conversations(Encoded.open(folder))
    answers = [row.messages[-1].content for row in judged if row.messages]
    longest = max(
        (len(tokenizer.encode(text, add_special_tokens=True)) for text in answers), default=None
    )
    (folder / ANSWERS).write_text(json.dumps({"longest": longest}))
    paths = [source.path for source in found.all]
    if not any(map(hub.is_hub, paths)) and sources.digest(paths) != digest:
        raise DataError(
            "The data changed while it was read. Wait until its files are complete, and run again."
        )


def _published(
    target: Path, write: Callable[[Path], None], about: dict[str, Any], cache_dir: Path
) -> Path | None:
    """The new cache entry; None where the cache cannot be written."""
    try:
        store.publish(target, write, about)
        _prune(target.parent)
    except OSError as error:
        logger.warning(
            "data: paths.cache_dir=%s cannot be written (%s); the encoded rows go to a temporary "
            "folder and are made again next time", cache_dir, error.strerror or error,
        )  # fmt: skip
        return None
    return target


# What decides how a row is encoded; the others (max_errors, metric, ...) are judged afterwards.
ENCODING_KEYS = (
    "format", "roles", "conversations_key", "from_key", "value_key", "train_on", "overlong",
    "valid_fraction", "metric",
)  # fmt: skip


def _temporary(write: Callable[[Path], None]) -> Path:
    """A new folder outside of the cache. Raises DataError where it cannot be written."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        write(folder)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise DataError(
                f"The encoded rows cannot be written to {tempfile.gettempdir()} "
                f"({error.strerror or error}). Free some space, or set paths.cache_dir or TMPDIR "
                "to another folder."
            ) from error
        raise
    return folder


def _prune(folder: Path) -> None:
    """Remove entries that nobody used for a month."""
    for entry in folder.iterdir():
        manifest = entry / store.MANIFEST
        try:
            old = time.time() - manifest.stat().st_mtime > UNUSED_DAYS * 86400
        except OSError:
            continue  # gone meanwhile, or another process's scratch folder
        if old:
            logger.info("data: removing the cache entry %s, unused for a month", entry)
            shutil.rmtree(entry, ignore_errors=True)


def _warn(report: dict[str, Any], config: DataConfig) -> None:
    counts = report["rows"]
    if faulty := counts["rejected"] - counts["dropped"]:
        logger.warning(
            "%d of %d rows are faulty and left out (data.max_errors=%s); see %s in the run folder",
            faulty, counts["rows"], config.max_errors, QUARANTINE,
        )  # fmt: skip


def _open(folder: Path, report: dict[str, Any], wanted: _Wanted) -> Dataset:
    encoded = Encoded.open(folder)
    if folder.name.startswith(TEMPORARY):  # nobody else knows of it
        weakref.finalize(encoded, shutil.rmtree, folder, ignore_errors=True)
    train = encoded.of("train")
    weights = np.array([source.weight for source in wanted.sources.all])
    return Dataset(
        train,
        encoded.of("valid"),
        wanted.conversations(encoded),
        weights[train.sources] if len(train) else np.zeros(0),
        report,
        wanted.known,
        encoded,
    )
