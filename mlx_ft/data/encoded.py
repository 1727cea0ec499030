"""Encoded rows on disk: memory-mapped, so that their number is bounded by the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, overload

import numpy as np

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import formats
from mlx_ft.data.rows import Conversation, Record

SPLITS = ("train", "valid", "test")
COUNTED = 10_000  # examples looked at together, so that memory does not grow with their number


class Tokens(NamedTuple):
    """One example. tokens: (T,) int32; targets: (T,) bool, the tokens to be predicted."""

    tokens: np.ndarray
    targets: np.ndarray


class Row(NamedTuple):
    """What is known of a row beside its text; the columns of `rows.npy`, a row each.

    source: index of the file; copies of a row say the same, so they share a fingerprint.
    """

    source: int
    line: int
    split: int
    fingerprint: int
    label: int
    turns: int
    judgeable: bool
    truncated: int
    set_aside: bool


ROW_TYPE = np.dtype(
    [
        ("source", np.int32),
        ("line", np.int64),
        ("split", np.int8),
        ("fingerprint", np.uint64),
        ("label", np.int32),
        ("turns", np.int32),
        ("judgeable", np.bool_),
        ("truncated", np.int32),
        ("set_aside", np.bool_),
    ]
)
EXAMPLE_TYPE = np.dtype(
    [
        ("row", np.int64),
        ("start", np.int64),
        ("length", np.int32),
        ("targets", np.int32),
        ("spans", np.int32),
        ("endless", np.int32),
    ]
)


class _Table:
    """Rows of a table, kept as arrays: a tuple in Python takes ten times the memory."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._parts: list[np.ndarray] = []
        self._last: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts)) + len(self._last)

    def append(self, row: tuple[Any, ...]) -> None:
        self._last.append(row)
        if len(self._last) == 4096:
            self._parts = [self.array()] if len(self._parts) == 64 else [*self._parts, self._new()]
            self._last = []

    def array(self) -> np.ndarray:
        return np.concatenate([*self._parts, self._new()])

    def _new(self) -> np.ndarray:
        return np.array(self._last, dtype=self._dtype)


class Writer(AbstractContextManager["Writer"]):
    """Writes encoded rows into a folder, in order; the folder is complete after `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = _Table(ROW_TYPE)
        self._examples = _Table(EXAMPLE_TYPE)
        self._offsets, self._length = [0], 0
        self._files = ExitStack()
        self._text, self._tokens, self._targets = (
            self._files.enter_context((folder / name).open("wb"))
            for name in ("rows.jsonl", "tokens.i32", "targets.u8")
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()  # all of them, also where a full disk keeps one from closing

    def row(self, row: Row, fields: Mapping[str, Any]) -> None:
        """Add a row; its examples follow."""
        line = json.dumps(fields, ensure_ascii=False, default=str).encode()
        self._text.write(line + b"\n")
        self._offsets.append(self._offsets[-1] + len(line) + 1)
        self._rows.append(row)

    def example(self, tokens: np.ndarray, targets: np.ndarray, endless: int) -> None:
        """Add an example of the row added last."""
        self._tokens.write(tokens.astype(np.int32, copy=False).tobytes())
        self._targets.write(targets.astype(np.bool_, copy=False).tobytes())
        self._examples.append((len(self._rows) - 1, self._length, len(tokens), 0, 0, endless))
        self._length += len(tokens)

    def rows(self) -> np.ndarray:
        """The rows so far (ROW_TYPE)."""
        return self._rows.array()

    def close(self, rows: np.ndarray) -> None:
        """Write the tables. rows: those of `rows()`, with their splits."""
        self._targets.flush()
        examples = self._examples.array()
        _count_targets(examples, _mapped(self.folder / "targets.u8", np.dtype(np.bool_)))
        np.save(self.folder / "rows.npy", rows)
        np.save(self.folder / "examples.npy", examples)
        np.save(self.folder / "offsets.npy", np.array(self._offsets, dtype=np.int64))


def _count_targets(examples: np.ndarray, targets: np.ndarray) -> None:
    """Fill in `targets` and `spans` (stretches of targets) of each example."""
    for i in range(0, len(examples), COUNTED):
        some = examples[i : i + COUNTED]
        first, last = int(some["start"][0]), int(some["start"][-1] + some["length"][-1])
        block, starts = targets[first:last], some["start"] - first
        begins = block.copy()
        begins[1:] &= ~block[:-1]
        begins[starts] = block[starts]
        some["targets"] = np.add.reduceat(block, starts, dtype=np.int32)
        some["spans"] = np.add.reduceat(begins, starts, dtype=np.int32)


@dataclass(frozen=True)
class Encoded:
    """A folder that `Writer` wrote. rows, examples: its tables (ROW_TYPE, EXAMPLE_TYPE)."""

    folder: Path
    rows: np.ndarray
    examples: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Encoded:
        """Map the files of a folder. Raises OSError or ValueError where they are damaged."""
        rows, examples, offsets = (
            np.load(folder / f"{name}.npy") for name in ("rows", "examples", "offsets")
        )
        return cls(
            folder,
            rows,
            examples,
            offsets,
            _mapped(folder / "tokens.i32", np.dtype(np.int32)),
            _mapped(folder / "targets.u8", np.dtype(np.bool_)),
        )

    def of(self, split: str) -> Examples:
        """The examples of a split that training or validation uses."""
        return Examples(self, np.flatnonzero(self.splits() == SPLITS.index(split)))

    def splits(self) -> np.ndarray:
        """(examples,) the split of each example."""
        return np.asarray(self.rows["split"][self.examples["row"]])

    def max_token(self) -> int:
        """The largest token id; -1 when there are no tokens."""
        return int(self.tokens.max()) if len(self.tokens) else -1


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing can be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


class Examples(Sequence[Tokens]):
    """Some of the encoded examples. lengths: (N,) tokens of each; sources: (N,) its file."""

    def __init__(self, encoded: Encoded, chosen: np.ndarray) -> None:
        self._encoded = encoded
        self._chosen = chosen
        self._table = encoded.examples[chosen]
        self.lengths: np.ndarray = self._table["length"]
        self.target_counts: np.ndarray = self._table["targets"]
        self.sources: np.ndarray = encoded.rows["source"][self._table["row"]]

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Examples: ...
    def __getitem__(self, index: int | slice | np.ndarray) -> Tokens | Examples:
        if isinstance(index, (slice, np.ndarray)):
            return Examples(self._encoded, self._chosen[index])
        start, length = int(self._table["start"][index]), int(self._table["length"][index])
        part = slice(start, start + length)
        return Tokens(self._encoded.tokens[part], self._encoded.targets[part])

    @property
    def table(self) -> np.ndarray:
        """What is known of these examples (EXAMPLE_TYPE)."""
        return np.asarray(self._table)

    @property
    def rows(self) -> np.ndarray:
        """(N,) what is known of the row of each example (ROW_TYPE)."""
        return np.asarray(self._encoded.rows[self._table["row"]])


class Conversations(Sequence[Conversation]):
    """Some of the rows, read from disk when asked for."""

    def __init__(
        self, encoded: Encoded, chosen: np.ndarray, paths: Sequence[Path], parse: Parse
    ) -> None:
        self._encoded = encoded
        self._chosen = chosen
        self._paths = paths
        self._parse = parse

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Conversations: ...
    def __getitem__(self, index: int | slice | np.ndarray) -> Conversation | Conversations:
        if isinstance(index, (slice, np.ndarray)):
            return Conversations(self._encoded, self._chosen[index], self._paths, self._parse)
        with (self._encoded.folder / "rows.jsonl").open("rb") as file:
            return self._read(file, int(self._chosen[index]))

    def __iter__(self) -> Iterator[Conversation]:
        with (self._encoded.folder / "rows.jsonl").open("rb") as file:
            for row in self._chosen:
                yield self._read(file, int(row))

    def _read(self, file: IO[bytes], row: int) -> Conversation:
        file.seek(int(self._encoded.offsets[row]))
        fields = json.loads(file.readline())
        about = self._encoded.rows[row]
        return self._parse.row(Record(fields, self._paths[about["source"]], int(about["line"])))


@dataclass(frozen=True)
class Parse:
    """How records become conversations in this dataset."""

    format: str
    options: formats.FormatOptions

    @classmethod
    def of(cls, config: DataConfig) -> Parse:
        """Raises DataError for a role that there is not."""
        return cls(
            config.format,
            formats.FormatOptions(
                config.conversations_key, config.from_key, config.value_key, config.roles
            ),
        )

    def row(self, record: Record) -> Conversation:
        """Raises RowError."""
        return formats.parse(record, self.format, self.options)

    def unused_keys(self, record: Record) -> list[str]:
        """The keys of a row that nothing looks at."""
        return formats.unused_keys(record.fields, self.format, self.options)
