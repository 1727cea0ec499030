"""The pass over all rows: read, parse, encode, compare; written to one folder."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import duplicates, formats, hub, report, split
from mlx_ft.data.chat import EncodedRow, EncodeOptions, Tokenizer, encode_rows, remark_notes
from mlx_ft.data.encoded import SPLITS, Encoded, Parse, Row, Writer
from mlx_ft.data.read import Quarantine, ReadStats, read
from mlx_ft.data.rows import BadRow, Conversation, CutOff, Fault, Record, RowError
from mlx_ft.data.sources import Source, Sources
from mlx_ft.data.tally import FaultLog, Tally, allowed, refusal, too_long
from mlx_ft.errors import DataError

logger = logging.getLogger("mlx_ft.data")

CHUNK = 500  # rows: enough for the tokenizer's own threads, few enough to stay in the caches
SAY_EVERY = 10.0  # seconds
UNJUDGEABLE = "does not end in an assistant turn, which data.metric would judge"
LABELS = 1000  # told apart
LONGEST_LABEL = 60  # characters
OTHER_LABELS = "(others)"
UNLIMITED = 2**31 - 1  # tokens: rows that are only generated from may be of any length


@dataclass(frozen=True)
class Chunk:
    """Rows understood so far: beside each conversation its fingerprint."""

    conversations: list[Conversation]
    bad: list[tuple[BadRow, Sequence[Fault]]]
    rows: int


class Job:
    """Everything that decides the encoded rows, and the work itself."""

    def __init__(
        self,
        found: Sources,
        parse: Parse,
        tokenizer: Tokenizer,
        config: DataConfig,
        max_seq_length: int,
        seed: int,
    ) -> None:
        self.sources = found
        self.parse = parse
        self.tokenizer = tokenizer
        self.config = config
        self.max_seq_length = max_seq_length
        self.seed = seed

    def write(self, folder: Path, digest: str) -> None:
        """Fill `folder` with the encoded rows, the report and the quarantine file."""
        _Pass(self, folder).run(digest)


def look(found: Sources, config: DataConfig) -> None:
    """Read and parse every row, without a tokenizer. Raises DataError with all faults."""
    parse = Parse.of(config)
    faults, count = FaultLog(), 0
    for source in found.all:
        for row in rows_of(source, ReadStats()):
            count += 1
            try:
                if isinstance(row, BadRow):
                    faults.add_bad(row)
                else:
                    parse.row(row)
            except RowError as error:
                faults.add(row.where, error.found)
    if faults.rows > allowed(config.max_errors, count):
        raise refusal(faults.rows, count, config.max_errors, faults.shown())


def rows_of(source: Source, stats: ReadStats) -> Iterator[Record | BadRow]:
    """The rows of a file or of a hub dataset's split."""
    return (hub.read_hub if hub.is_hub(source.path) else read)(source.path, stats)


class _Pass:
    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.tallies = [Tally() for _ in job.sources.all]
        self.faults = FaultLog()
        self.signatures = duplicates.Signatures()
        self.labels: dict[str | None, int] = {None: 0}
        self.notes: list[str] = []
        self.remarks: Counter[str] = Counter()
        self.unsplit: str | None = None
        self.cut_off = {"rows": 0, "longest": 0}  # longest: its tokens
        self.about = report.Collected(tuple(job.tokenizer.all_special_tokens))
        self._said = time.monotonic()

    def run(self, digest: str) -> None:
        with (
            Writer(self.folder) as self.writer,
            Quarantine(self.folder / "quarantine.jsonl") as self.quarantine,
            ThreadPoolExecutor(1) as pool,
        ):
            for index, source in enumerate(self.job.sources.all):
                self._source(index, source, pool)
            signatures = self.signatures.all()
            rows = self.writer.rows()
            self._split(rows)
            self.writer.close(rows)
        encoded = Encoded.open(self.folder)
        groups = duplicates.group(signatures, encoded.rows["fingerprint"])
        content = report.make(
            self.job.sources, self.tallies, self.faults, encoded, groups, self.about,
            list(self.labels), self.job.config, self.job.max_seq_length,
            [*self.notes, *remark_notes(self.remarks, self.job.tokenizer)], digest,
        )  # fmt: skip
        content["unsplit"] = self.unsplit
        content["cut_off"] = self.cut_off
        content["recommendations"] += too_long(self.cut_off, self.faults.rows)
        (self.folder / "report.json").write_text(json.dumps(content, indent=1), "utf-8")

    def _source(self, index: int, source: Source, pool: ThreadPoolExecutor) -> None:
        """One file. The tokenizer releases the GIL: it works while the next rows are parsed."""
        options = EncodeOptions(
            self.job.max_seq_length if source.split != "test" else UNLIMITED,
            self.job.config.train_on,
            self.job.config.overlong if source.split != "test" else "truncate_right",
        )
        pending: tuple[Chunk, Future[list[EncodedRow | RowError]]] | None = None
        stats = ReadStats()
        for chunk in self._chunks(source, stats):
            wanted = [row for row in chunk.conversations if not _set_aside(row)]
            future = pool.submit(encode_rows, wanted, self.job.tokenizer, options)
            if pending is not None:
                self._finish(index, *pending)
            pending = chunk, future
        if pending is not None:
            self._finish(index, *pending)
        self.tallies[index].blank_lines = stats.blank_lines
        self.notes += stats.notes

    def _chunks(self, source: Source, stats: ReadStats) -> Iterator[Chunk]:
        rows = rows_of(source, stats)
        while some := list(itertools.islice(rows, CHUNK)):
            conversations: list[Conversation] = []
            bad: list[tuple[BadRow, Sequence[Fault]]] = []
            for row in some:
                if isinstance(row, BadRow):
                    bad.append((row, [Fault(row.code, row.sentence)]))
                    continue
                try:
                    conversations.append(self.job.parse.row(row))
                except RowError as error:
                    bad.append((_bad(row, error), error.found))
            yield Chunk(conversations, bad, len(some))

    def _finish(
        self, index: int, chunk: Chunk, encoded: Future[list[EncodedRow | RowError]]
    ) -> None:
        """Account for a chunk: every row of it is kept, truncated or rejected."""
        tally = self.tallies[index]
        tally.rows += chunk.rows
        for bad, found in chunk.bad:
            self._reject(tally, bad, found)
        results = iter(encoded.result())
        kept = []
        for conversation in chunk.conversations:
            result = None if _set_aside(conversation) else next(results)
            if result is not None and self._unjudgeable(index, conversation):
                result = RowError(Fault("unjudgeable", UNJUDGEABLE))
            if isinstance(result, CutOff):
                self.cut_off["rows"] += 1
                self.cut_off["longest"] = max(self.cut_off["longest"], result.tokens)
            if isinstance(result, RowError):
                self._reject(tally, _bad(conversation.record, result), result.found)
                continue
            if result is not None and result.status == "rejected":
                tally.rejected += 1
                tally.dropped += 1
                continue
            self._keep(index, tally, conversation, result)
            kept.append(conversation)
        self.signatures.add(kept)
        self.about.add(kept)
        self._say()

    def _keep(self, index: int, tally: Tally, row: Conversation, result: EncodedRow | None) -> None:
        self.remarks.update(result.remarks if result else ())
        truncated = result is not None and result.status == "truncated"
        tally.truncated += truncated
        tally.kept += not truncated
        tally.set_aside += result is None
        tally.formats[row.format] += 1
        tally.note_unused(self.job.parse.unused_keys(row.record))
        label = self._label(row.label)
        self.writer.row(
            Row(
                index,
                row.record.line,
                0,
                int(formats.fingerprint(row)[:16], 16),
                label,
                len(row.messages) or 1,
                bool(row.messages) and row.messages[-1].role == "assistant",
                result.cut_tokens if result else 0,
                result is None,
            ),
            row.record.fields,
        )
        for example in result.examples if result else ():
            self.writer.example(example.tokens, example.targets, example.endless)

    def _label(self, name: str | None) -> int:
        """The number of a label; beyond `LABELS` of them, they are no classes but texts."""
        name = name and name[:LONGEST_LABEL]
        name = name if name in self.labels or len(self.labels) < LABELS else OTHER_LABELS
        return self.labels.setdefault(name, len(self.labels))

    def _unjudgeable(self, index: int, row: Conversation) -> bool:
        """Whether a row that the task metric is to judge holds no answer."""
        judged = "test" if self.job.sources.test else "valid"
        if self.job.config.metric == "none" or self.job.sources.all[index].split != judged:
            return False
        return not row.messages or row.messages[-1].role != "assistant"

    def _reject(self, tally: Tally, bad: BadRow, found: Sequence[Fault]) -> None:
        tally.rejected += 1
        self.faults.add(bad.where, found)
        self.quarantine.add(bad)

    def _split(self, rows: np.ndarray) -> None:
        """Set the split of each row: its file's; without validation files, a part of training."""
        own = [SPLITS.index(source.split) for source in self.job.sources.all]
        rows["split"] = np.array(own, np.int8)[rows["source"]]
        training = np.flatnonzero((rows["split"] == 0) & ~rows["set_aside"])
        if self.job.sources.valid or not len(training):
            return
        some = rows[training]
        fraction, seed = self.job.config.valid_fraction, self.job.seed
        try:
            aside = split.split(some["fingerprint"], some["label"], fraction, seed)
        except DataError as error:  # told after the faulty rows, which may be why
            self.unsplit = error.message
            return
        rows["split"][training[aside]] = SPLITS.index("valid")
        self._note_unjudged(some[aside])

    def _note_unjudged(self, valid: np.ndarray) -> None:
        """Say which rows of a split of the training file the metric leaves out."""
        unjudged = int((~valid["judgeable"]).sum())
        if unjudged and self.job.config.metric != "none" and not self.job.sources.test:
            self.notes.append(
                f"{unjudged} of {len(valid)} validation rows do not end in an answer: "
                f"data.metric={self.job.config.metric} leaves them out."
            )

    def _say(self) -> None:
        if time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            done = sum(tally.rows for tally in self.tallies)
            logger.info("data: %s rows checked and encoded", f"{done:,}")


def _set_aside(row: Conversation) -> bool:
    """Rows to learn from only by preference training; supervised training would copy them."""
    return row.label == "undesirable"


def _bad(record: Record, error: RowError) -> BadRow:
    raw = json.dumps(record.fields, ensure_ascii=False, default=str)
    return BadRow(record.path, record.line, error.found[0].code, "; ".join(error.faults), raw)
