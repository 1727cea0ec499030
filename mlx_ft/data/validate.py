"""A whole dataset, checked: every fault of every row at once, before a model is loaded."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlx_ft.config.schema import DataConfig
from mlx_ft.data.chat import Example, Tokenizer, encode, missing_template, tokenize
from mlx_ft.data.formats import Conversation, fingerprint, parse, unused_keys
from mlx_ft.data.load import Findings, digest, read_jsonl, sources
from mlx_ft.errors import DataError

logger = logging.getLogger("mlx_ft.data")

SHOWN_FAULTS = 15

T = TypeVar("T")


@dataclass(frozen=True)
class CheckedData:
    """Rows that are what they should be as far as can be told without a tokenizer.

    notes: sentences, what a person should know. digest: SHA-256 over the files. stats: for each
    of train, valid and test: rows, turns, duplicates.
    """

    train: tuple[Conversation, ...]
    valid: tuple[Conversation, ...]
    test: tuple[Conversation, ...]
    notes: tuple[str, ...]
    digest: str
    stats: dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """Checked data as tokens. stats: for train and valid also tokens, lengths and cuts."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Conversation, ...]
    notes: tuple[str, ...]
    digest: str
    stats: dict[str, Any]


def prepare(config: DataConfig, tokenizer: Tokenizer, max_seq_length: int, seed: int) -> Dataset:
    """The dataset of a configuration, checked and encoded. Raises DataError with all faults."""
    return encode_all(check(config, seed), tokenizer, max_seq_length)


def check(config: DataConfig, seed: int) -> CheckedData:
    """Files, JSON, formats and the split: all that needs no tokenizer.

    Raises DataError with the faults of every row of every file.
    """
    files = sources(config)
    findings = Findings()
    findings.notes += [
        f"{path} is not used; data.valid_path and data.test_path name files."
        for path in files.unused
    ]
    train, valid, test = (
        _read(path, config.format, findings) if path else None
        for path in (files.train, files.valid, files.test)
    )
    _raise(findings)
    assert train is not None  # its file is always named
    stats: dict[str, Any] = {}
    if valid is None:
        train, valid = split(train, config.valid_fraction, seed)
        stats["valid_from_train"] = len(valid)
    if test is None:
        test = valid
    if config.metric != "none":
        _each(_judgeable, test, findings)
        _raise(findings)
    stats["train"], stats["valid"], stats["test"] = map(_row_stats, (train, valid, test))
    findings.notes += _overlap_notes(train, valid, test) + _label_notes(train)
    _say(findings.notes)
    return CheckedData(
        tuple(train),
        tuple(valid),
        tuple(test),
        tuple(findings.notes),
        _digest(path for path in (files.train, files.valid, files.test) if path),
        stats,
    )


def encode_all(checked: CheckedData, tokenizer: Tokenizer, max_seq_length: int) -> Dataset:
    """Tokens and targets of every row. Raises DataError with the faults of all rows."""
    findings = Findings()
    train, valid = (
        _each(lambda row: encode(row, tokenizer, max_seq_length), rows, findings)
        for rows in (checked.train, checked.valid)
    )
    if checked.test != checked.valid:  # judged by generation: any length, but no faults
        _each(lambda row: tokenize(row, tokenizer), checked.test, findings)
    _raise(findings)
    if missing_template(tokenizer) and any(row.messages for row in checked.train):
        findings.notes.append(
            "The model has no chat template: prompts are given as plain lines and an answer ends "
            "with the end-of-sequence token, with no mark of who speaks."
        )
    stats = dict(checked.stats)
    for name, examples in (("train", train), ("valid", valid)):
        stats[name] = {**stats[name], **token_stats(examples)}
        findings.notes += _token_notes(name, examples, max_seq_length)
    findings.notes += _control_notes(checked.train, tokenizer)
    _say(findings.notes)
    notes = checked.notes + tuple(findings.notes)
    return Dataset(tuple(train), tuple(valid), checked.test, notes, checked.digest, stats)


def split(
    rows: Sequence[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Training and validation rows: about `fraction` of the rows, of each label, set aside.

    Rows that say the same stay on one side. Which rows go depends on the seed and on what they
    say, not on their order. Raises DataError when a side would be empty.
    """
    if fraction == 0:
        return list(rows), []
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(fingerprint(row), []).append(i)
    if len(groups) < 2:
        raise DataError(
            f"{len(rows)} row(s), {len(groups)} of them distinct, cannot be split into training "
            "and validation rows; add rows, give data.valid_path, or set data.valid_fraction=0."
        )
    # Systematic sampling: with the groups in order of label, then by a seeded hash, a group is
    # set aside whenever the share so far falls behind. So every label gives its share.
    order = sorted(groups, key=lambda key: (rows[groups[key][0]].label or "", _hash(seed, key)))
    aside: list[str] = []
    seen = taken = 0
    for key in order:
        size = len(groups[key])
        seen += size
        if taken + size / 2 <= fraction * seen:
            aside.append(key)
            taken += size
    if not aside:
        aside = [min(order, key=lambda key: len(groups[key]))]
    elif len(aside) == len(order):
        aside.pop()
    chosen = {i for key in aside for i in groups[key]}
    kept = [row for i, row in enumerate(rows) if i not in chosen]
    return kept, [rows[i] for i in sorted(chosen)]


def token_stats(examples: Sequence[Example]) -> dict[str, Any]:
    """Tokens, targets, lengths in tokens and cuts of some examples."""
    lengths = np.array([len(example.tokens) for example in examples] or [0])
    return {
        "tokens": int(lengths.sum()),
        "target_tokens": sum(int(example.targets.sum()) for example in examples),
        "length_min": int(lengths.min()),
        "length_mean": float(lengths.mean()),
        "length_p95": float(np.percentile(lengths, 95)),
        "length_max": int(lengths.max()),
        "truncated_rows": sum(example.truncated > 0 for example in examples),
        "truncated_tokens": sum(example.truncated for example in examples),
        "endless_turns": sum(example.endless for example in examples),
    }


def _read(path: Path, format: str, findings: Findings) -> list[Conversation]:
    rows = []
    unused: Counter[str] = Counter()
    for record in read_jsonl(path, findings):
        try:
            rows.append(parse(record, format))
        except DataError as error:
            for fault in error.faults:
                findings.fault(record.where, fault)
        else:
            unused.update(unused_keys(record.fields, format))
    if unused:
        keys = ", ".join(f"{key} ({count})" for key, count in unused.items())
        logger.info("%s: keys that training does not look at, with their rows: %s.", path, keys)
    return rows


def _each(
    work: Callable[[Conversation], T], rows: Iterable[Conversation], findings: Findings
) -> list[T]:
    """`work` done on every row; the rows that it refuses become faults."""
    done = []
    for row in rows:
        try:
            done.append(work(row))
        except DataError as error:
            findings.fault(row.record.where, error.message)
    return done


def _judgeable(row: Conversation) -> None:
    if not row.messages or row.messages[-1].role != "assistant":
        raise DataError("does not end in an assistant turn, which data.metric would judge")


def _raise(findings: Findings) -> None:
    faults = findings.faults
    if not faults:
        return
    shown = faults[:SHOWN_FAULTS]
    if more := len(faults) - len(shown):
        shown.append(f"... and {more} more")
    raise DataError(f"The data has {len(faults)} fault(s). Mend them and start again.", shown)


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        logger.warning(note)


def _row_stats(rows: Sequence[Conversation]) -> dict[str, Any]:
    return {
        "rows": len(rows),
        "turns": sum(len(row.messages) or 1 for row in rows),
        "duplicates": len(rows) - len({fingerprint(row) for row in rows}),
    }


def _overlap_notes(
    train: Sequence[Conversation], valid: Sequence[Conversation], test: Sequence[Conversation]
) -> list[str]:
    prints = {fingerprint(row) for row in train}
    notes = []
    if repeated := len(train) - len(prints):
        notes.append(f"{repeated} of {len(train)} training rows repeat another one.")
    for name, rows in (("validation", valid), ("test", () if test is valid else test)):
        if leaked := sum(fingerprint(row) in prints for row in rows):
            notes.append(
                f"{leaked} of {len(rows)} {name} rows are also training rows: "
                "figures on them flatter the model."
            )
    return notes


def _label_notes(train: Sequence[Conversation]) -> list[str]:
    labels = Counter(row.label for row in train if row.label is not None)
    if not labels:
        return []
    counts = ", ".join(f"{label} {count}" for label, count in sorted(labels.items()))
    return [f"Rows carry labels ({counts}): the split keeps their shares; all are trained on."]


def _token_notes(name: str, examples: Sequence[Example], max_seq_length: int) -> list[str]:
    stats = token_stats(examples)
    notes = []
    if stats["truncated_rows"]:
        notes.append(
            f"{stats['truncated_rows']} of {len(examples)} {name} rows are longer than "
            f"memory_profile.max_seq_length={max_seq_length}: {stats['truncated_tokens']} tokens "
            "cut off at their ends."
        )
    if stats["endless_turns"]:
        notes.append(
            f"{stats['endless_turns']} {name} answers end without a control token, so the model "
            "does not learn where to stop."
        )
    return notes


def _control_notes(rows: Sequence[Conversation], tokenizer: Tokenizer) -> list[str]:
    """Rows whose own text holds what the tokenizer reads as a control token."""
    controls = tuple(tokenizer.all_special_tokens)
    found = [row for row in rows if any(token in said for said in _said(row) for token in controls)]
    if not found:
        return []
    return [
        f"{len(found)} training rows hold text that the tokenizer reads as a control token "
        f"(one of {', '.join(controls[:5])}), first {found[0].record.where}."
    ]


def _said(row: Conversation) -> list[str]:
    return [row.text] if row.text is not None else [message.content for message in row.messages]


def _digest(paths: Iterable[Path]) -> str:
    return _hash(*(digest(path) for path in paths))


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
