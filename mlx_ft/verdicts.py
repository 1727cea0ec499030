"""What judging a model gave, and what two models differ in. Importing this is cheap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_ft.errors import DataError, MlxFtError
from mlx_ft.intervals import Gap, Interval, bootstrap, gap, is_share, wilson

if TYPE_CHECKING:
    from mlx_ft.evaluation import Answer

SHARED = ("question", "expected", "kind")  # of a row, whoever answers it
COLUMNS = (*SHARED, "answer")  # beside those of the metrics


@dataclass(frozen=True)
class Score:
    """What a metric says of all answers, in their order, with the 95% interval of the mean.

    A share (every value is 0 or 1) has Wilson's interval, anything else the bootstrap's.
    """

    mean: float
    interval: Interval
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """values: at least one."""
        given = [float(value) for value in values]
        interval = wilson(round(sum(given)), len(given)) if is_share(given) else bootstrap(given)
        return cls(math.fsum(given) / len(given), interval, given)

    @property
    def share(self) -> bool:
        """Whether it counts right answers."""
        return is_share(self.values)


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model. loss: nats per target token, None without validation rows.

    accuracy: the mean of the first metric, by which an answer is correct when its value is 1; None
    without a metric. scores: of each metric by its name. rows: what was judged on; digest: of its
    files. target_tokens: those that the loss is the mean of; targets: a digest of all tokens and of
    which of them are targets, as tokenizer and chat template made them.
    """

    loss: float | None
    perplexity: float | None
    accuracy: float | None
    answers: list[Answer]
    scores: dict[str, Score] = field(default_factory=dict)
    rows: str = ""
    digest: str = ""
    target_tokens: int | None = None
    targets: str = ""


class Unjudged(MlxFtError):
    """A metric failed on an answer. rows: all answers there are, as of `rows_of`."""

    def __init__(self, message: str, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        super().__init__(message)

    def beside(self, names: tuple[str, str], second: Evaluation) -> Unjudged:
        """The same of the first of two models, with the answers of the second, which are judged."""
        one, other = _apart(names)
        rows = [
            {key: row[key] for key in SHARED}
            | {f"answer: {one}": row["answer"]}
            | {f"{key}: {other}": judged[key] for key in judged if key not in SHARED}
            for row, judged in zip(self.rows, rows_of(second), strict=True)
        ]
        return Unjudged(self.message, rows)


@dataclass(frozen=True)
class Comparison:
    """Two models judged on the same rows. names: of the first, and of the second.

    gaps: for each metric, what the second has more. same_targets: whether the losses are of the
    same tokens; a difference of losses says nothing otherwise.
    """

    names: tuple[str, str]
    first: Evaluation
    second: Evaluation
    gaps: dict[str, Gap]
    same_targets: bool = True

    @classmethod
    def of(cls, names: tuple[str, str], first: Evaluation, second: Evaluation) -> Comparison:
        """Pair them row by row. Raises DataError when they were judged on different rows."""
        asked, other = (
            [(one.question, one.reference) for one in each.answers] for each in (first, second)
        )
        if asked != other:
            raise DataError("The two models were not judged on the same rows.")
        gaps = {
            name: gap(score.values, second.scores[name].values)
            for name, score in first.scores.items()
        }
        return cls(_apart(names), first, second, gaps, first.targets == second.targets)

    def differing(self, metric: str) -> tuple[list[int], list[int]]:
        """The rows for which the metric gives the first one more, and the second one more."""
        one, other = (each.scores[metric].values for each in (self.first, self.second))
        rows = range(len(one))
        return (
            [row for row in rows if one[row] > other[row]],
            [row for row in rows if one[row] < other[row]],
        )


def _apart(names: tuple[str, str]) -> tuple[str, str]:
    one, other = names
    return (f"{one} (1)", f"{other} (2)") if one == other else names


def rows_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row for each answer: question, expected, kind, answer and every metric's value."""
    return [
        {
            "question": answer.question,
            "expected": answer.reference,
            "kind": answer.kind,
            "answer": answer.prediction,
            **{name: score.values[row] for name, score in evaluation.scores.items()},
        }
        for row, answer in enumerate(evaluation.answers)
    ]


def compared_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The same, with both models' answers and values beside one another."""
    first, second = rows_of(comparison.first), rows_of(comparison.second)
    names = comparison.names
    return [
        {key: one[key] for key in SHARED}
        | {
            f"{key}: {name}": row[key]
            for key in one
            if key not in SHARED
            for name, row in zip(names, (one, other), strict=True)
        }
        for one, other in zip(first, second, strict=True)
    ]


def as_json(value: Any) -> Any:
    """A figure of this module as JSON has it: what is not finite becomes null."""
    return _finite(asdict(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
