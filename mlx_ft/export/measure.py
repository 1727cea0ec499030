"""What an export loses: logits and loss of what was written, against what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ft import evaluation
from mlx_ft.data import batch as batching
from mlx_ft.data.arrays import pad_id
from mlx_ft.data.chat import Example
from mlx_ft.data.prepare import prepare
from mlx_ft.data.rows import Record
from mlx_ft.data.sample import sample
from mlx_ft.errors import UserError
from mlx_ft.export.source import Source
from mlx_ft.layout import Row

ROWS, BATCH = 32, 8  # enough to tell a loss to some thousandths of a nat
LOGIT_ROWS, LOGIT_TOKENS = 4, 128  # logits of a vocabulary are large
# For adapters whose own rows are not here.
TEXTS = (
    "Water boils at a lower temperature on a mountain, because the air presses less on it.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Question: Which river flows through Cairo?\nAnswer: The Nile flows through Cairo.",
    "She counted the coins twice, wrote the sum into the book, and closed the shop for the day.",
)


@dataclass(frozen=True)
class Rows:
    """What is measured on. about: in words."""

    examples: tuple[Row, ...]
    filling: int
    about: str


@dataclass(frozen=True)
class Judged:
    """loss: nats per target token. logits: (T, V) of each of the first rows."""

    loss: float
    logits: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Lost:
    """logits: the largest difference, relative to the largest logit of its row. loss: the rise."""

    logits: float
    loss: float


def rows_of(source: Source, tokenizer: Any) -> Rows:
    """Validation rows of the run; where these cannot be had, texts of ours, which is said."""
    filling = pad_id(tokenizer)
    reason = "the adapter has no run"
    if source.run is not None:
        try:
            found = _validation(source, tokenizer)
            if found:
                targets = sum(int(row.targets[1:].sum()) for row in found)
                about = f"{len(found)} validation rows of the run ({targets:,} target tokens)"
                return Rows(found, filling, about)
            reason = "the run has no validation rows"
        except (UserError, OSError) as error:
            first = str(error).splitlines()[0]
            reason = f"the run's rows cannot be read ({first})"
    made = tuple(_example(tokenizer.encode(text)) for text in TEXTS)
    return Rows(made, filling, f"{len(TEXTS)} short texts that come with mlx-ft: {reason}")


def _validation(source: Source, tokenizer: Any) -> tuple[Row, ...]:
    config = source.config
    dataset = prepare(
        replace(config.data, template=tokenizer.chat_template),
        tokenizer,
        config.memory_profile.max_seq_length,
        config.seed,
        source.cache_dir,
    )
    chosen = sample(dataset.valid, ROWS)
    return tuple(chosen[index] for index in range(len(chosen)))


def _example(tokens: Sequence[int]) -> Example:
    array = np.array(tokens, np.int32)
    targets = np.arange(len(array)) > 0
    return Example(array, targets, 0, 0, None, Record({}, Path("texts"), 1))


def judge(model: nn.Module, rows: Rows) -> Judged:
    """How the model does on the rows."""
    model.eval()
    batches = batching.sequential(rows.examples, BATCH, rows.filling)
    loss = evaluation.validation_loss(model, batches).loss
    logits = tuple(_logits(model, row) for row in rows.examples[:LOGIT_ROWS])
    return Judged(loss, logits)


def _logits(model: nn.Module, row: Row) -> np.ndarray:
    tokens = mx.array(row.tokens[None, :LOGIT_TOKENS])
    return np.array(model(tokens)[0].astype(mx.float32))


def lost(before: Judged, after: Judged) -> Lost:
    """What `after` has lost of `before`; NaN where it has numbers that are none."""
    differences = [
        np.abs(new - old).max() / np.abs(old).max()
        for old, new in zip(before.logits, after.logits, strict=True)
    ]
    return Lost(float(np.max(differences)), after.loss - before.loss)
