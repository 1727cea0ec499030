"""A model judged on rows: its loss, and its answers by one metric or several."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_ft import evaluation
from mlx_ft.config.schema import Config, EvalConfig
from mlx_ft.data import batch as batching
from mlx_ft.data.arrays import pad_id
from mlx_ft.data.encoded import Conversations, Examples
from mlx_ft.data.other import Judged, other_rows, own_rows
from mlx_ft.data.prepare import prepare
from mlx_ft.data.rows import Conversation
from mlx_ft.data.sample import sample
from mlx_ft.datasets import open_database
from mlx_ft.errors import ConfigError, DataError, MlxFtError
from mlx_ft.evaluation import Answer, Validation
from mlx_ft.metrics import Case, Scorer, build_metric, judge_all
from mlx_ft.own_metric import OwnMetric
from mlx_ft.verdicts import COLUMNS, Evaluation, Score, Unjudged, rows_of

logger = logging.getLogger(__name__)

SHOWN = 5  # rows that a metric cannot judge

MetricName = str | Callable[[str, str, Mapping[str, Any]], bool | float]


@dataclass(frozen=True)
class Task:
    """What a model is judged by. config: of the run whose rows it has, without machine's `auto`.

    data: other rows; None: the run's own. limit: rows used at most. max_tokens: of an answer;
    None: the run's, or what the longest expected answer needs.
    """

    config: Config
    metrics: tuple[Scorer, ...]
    data: str | None = None
    limit: int | None = None
    max_tokens: int | None = None

    def judge(self, model: nn.Module, tokenizer: Any) -> Evaluation:
        """The figures of a model. Raises DataError for rows that cannot be read or judged,
        Unjudged for an answer that cannot.
        """
        rows, limits = self._rows(tokenizer), self._limits()
        metrics, answers, scores = self.metrics, list[Answer](), dict[str, Score]()
        test = sample(rows.test, limits[1])
        if metrics and len(test):
            _check(metrics, test)
        valid = sample(rows.valid, limits[0])
        result = self._loss(model, tokenizer, valid)
        if metrics and len(test):
            found = list(evaluation.cases(model, tokenizer, test, self._eval(test, tokenizer)))
            scores = _scores(metrics, test, found)
            right = scores[metrics[0].name].values
            answers = _answers(test, found, [value == 1 for value in right])
        self._say(rows, len(test))
        return Evaluation(
            result.loss if result else None,
            result.perplexity if result else None,
            scores[metrics[0].name].mean if scores else None,
            answers,
            scores,
            rows.name,
            rows.digest,
            result.target_tokens if result else None,
            _digest(valid),
        )

    def _rows(self, tokenizer: Any) -> Judged:
        config = self.config
        data = replace(config.data, template=tokenizer.chat_template)
        length = config.memory_profile.max_seq_length
        cache_dir = Path(config.paths.cache_dir).expanduser()
        if self.data is not None:
            return other_rows(self.data, data, tokenizer, length, config.seed, cache_dir)
        if not config.data.path:
            raise DataError(
                "An adapter without its run has no rows of its own to be judged on. Name some: "
                "--data FILE"
            )
        dataset = prepare(data, tokenizer, length, config.seed, cache_dir)
        return own_rows(dataset, str(config.data.path))

    def _limits(self) -> tuple[int | None, int | None]:
        """How many rows at most for the loss, and for answers: of other rows all."""
        if self.limit is not None or self.data is not None:
            return self.limit, self.limit
        return self.config.eval.max_rows, self.config.eval.task_rows

    def _loss(self, model: nn.Module, tokenizer: Any, valid: Examples) -> Validation | None:
        if not len(valid):
            return None
        size = self.config.eval.batch_size
        batches = batching.sequential(valid, size, pad_id(tokenizer))
        return evaluation.validation_loss(model, batches)

    def _eval(self, test: Conversations, tokenizer: Any) -> EvalConfig:
        """How to answer: with room for the longest expected answer and a quarter more."""
        config = self.config.eval
        known = config.max_tokens if isinstance(config.max_tokens, int) else 0
        if self.max_tokens is not None or (known and self.data is None):
            return replace(config, max_tokens=self.max_tokens or known)
        texts = (row.messages[-1].content for row in test)
        longest = max(len(tokenizer.encode(text, add_special_tokens=True)) for text in texts)
        return replace(config, max_tokens=max(known, longest + longest // 4 + 1))

    def _say(self, rows: Judged, judged: int) -> None:
        if not self.metrics:
            return
        if rows.unanswered:
            logger.warning("rows without an answer, which no metric judges: %d", rows.unanswered)
        if not judged:
            logger.warning("%s has no rows that a metric could judge", rows.name)


def _digest(examples: Examples) -> str:
    """Of their tokens and targets."""
    digest = hashlib.sha256()
    for each in examples:
        digest.update(len(each.tokens).to_bytes(8, "little"))
        digest.update(each.tokens.tobytes() + each.targets.tobytes())
    return digest.hexdigest()


def task(
    config: Config,
    *,
    data: str | None = None,
    metrics: Sequence[MetricName] | None = None,
    database: str | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
) -> Task:
    """What to judge a run's model by. metrics: names, and functions of one's own; None: the run's.

    database: for `sql_execution`; None: the run's. Raises ConfigError with all faults.
    """
    wanted = metrics
    if wanted is None:
        wanted = [] if config.data.metric == "none" else [config.data.metric]
    place = database or config.data.database
    found, faults = list[Scorer](), list[str]()
    for given in wanted:
        try:
            found.append(_metric(given, place))
        except (ConfigError, DataError) as error:
            faults.append(str(error))
    names = [metric.name for metric in found]
    faults += [f"the metric {name} is named twice" for name in dict.fromkeys(names)
               if names.count(name) > 1]  # fmt: skip
    faults += [f"a metric cannot be called {name}" for name in names if name in COLUMNS]
    faults += [f"{name}: found {value}; expected at least 1"
               for name, value in (("rows", limit), ("max_tokens", max_tokens))
               if value is not None and value < 1]  # fmt: skip
    if faults:
        raise ConfigError("Nothing can be judged:", faults)
    return Task(config, tuple(found), data, limit, max_tokens)


def _metric(given: MetricName, database: str | None) -> Scorer:
    if isinstance(given, OwnMetric):
        return given
    if not isinstance(given, str):
        return OwnMetric(given)
    return build_metric(given, None if database is None else lambda: open_database(database))


def _check(metrics: Sequence[Scorer], rows: Conversations) -> None:
    """Whether every row can be judged, before anything is generated. Raises DataError."""
    for metric in metrics:
        look = functools.partial(_fault, metric)
        if metric.workers == 1:
            found = list(map(look, rows))
        else:
            with ThreadPoolExecutor(metric.workers) as pool:
                found = list(pool.map(look, rows))
        faults = [fault for fault in found if fault]
        if faults:
            more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
            raise DataError(
                f"The metric {metric.name} cannot judge {len(faults)} of {len(rows)} rows. Mend "
                "them, or choose another --metric",
                [*faults[:SHOWN], *more],
            )


def _fault(metric: Scorer, row: Conversation) -> str | None:
    reference = row.messages[-1].content
    try:
        metric(reference, reference, row.record.fields)
    except ValueError as error:
        return f"{row.record.where}: {error}"
    return None


def _answers(rows: Conversations, cases: Sequence[Case], correct: Sequence[bool]) -> list[Answer]:
    return [
        evaluation.answer_of(row, case, correct=right)
        for row, case, right in zip(rows, cases, correct, strict=True)
    ]


def _scores(
    metrics: Sequence[Scorer], rows: Conversations, cases: Sequence[Case]
) -> dict[str, Score]:
    """Of each metric. Raises Unjudged with the answers, which took minutes, where one fails."""
    try:
        return {
            metric.name: Score.of([float(value) for _, value in judge_all(metric, cases)])
            for metric in metrics
        }
    except (MlxFtError, ValueError, OverflowError) as error:  # a mean may overflow, too
        answers = _answers(rows, cases, [False] * len(cases))
        raise Unjudged(str(error), rows_of(Evaluation(None, None, None, answers))) from error
