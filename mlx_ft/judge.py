"""How good the model is while a run goes on: validated and questioned, shown and recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from mlx_ft import evaluation, judgement
from mlx_ft.accept import Accepted
from mlx_ft.console import Display
from mlx_ft.data import batch as batching
from mlx_ft.data.batch import Batch
from mlx_ft.data.sample import sample
from mlx_ft.errors import TrainingError
from mlx_ft.evaluation import Answer, Validation
from mlx_ft.interrupt import StopSignal
from mlx_ft.judgement import Base
from mlx_ft.record import Record


class Judge:
    """Judges the run's model as it is at the moment.

    before, answers_before: of the base; answers_after: of the adapter that was kept. pad_id:
    fills the rows of a batch. A signal ends a judgement where it is: it changes nothing.
    """

    def __init__(self, accepted: Accepted, record: Record, stop: StopSignal, pad_id: int) -> None:
        self.accepted = accepted
        self.config = accepted.config.eval
        self.record = record
        self.stop = stop
        rows = sample(accepted.dataset.valid, self.config.max_rows)
        self.valid = list(batching.sequential(rows, self.config.batch_size, pad_id=pad_id))
        self.before: Validation | None = None
        self.answers_before: list[Answer] = []
        self.answers_after: list[Answer] = []

    def base(self, display: Display, *, again: bool = False, restart: bool = False) -> None:
        """Judge the base model.

        again: an earlier process of the run may have done it. restart: that one came to no
        checkpoint, so that nothing but this judgement is left of it. Raises TrainingError for a
        base that nothing can be learned from.
        """
        earlier = judgement.load(self.record.folder, self.subject) if again else None
        if restart:
            self.record.keep_rows(earlier.rows if earlier else 0)
        if earlier is not None:
            self._take_over(earlier)
            return
        if self.config.before:
            self._judge_base(display)
            base = Base(self.before, self.answers_before, len(self.record.rows))
            judgement.save(self.record.folder, base, self.subject)

    def _judge_base(self, display: Display) -> None:
        """Judge it now, or take over what another run of this process has found."""
        shared, subject = self.accepted.shared, {**self.subject, **self._computed}
        known = None if shared is None else shared.base(subject)
        if known is None:
            self.before = self.validate(display, 0)
            _check_base(self.before)
            self.answers_before = self.answers(display, 0)
            if shared is not None:
                shared.note_base(subject, Base(self.before, self.answers_before, 0))
            return
        self._take_over(known)
        if self.before is not None:
            self.record.validation(0, self.before)
        if self.answers_before:
            share = evaluation.accuracy(self.answers_before)
            self.record.accuracy(0, share, len(self.answers_before))

    @property
    def _computed(self) -> dict[str, Any]:
        """What a judgement depends on between runs of one process, beside its subject.

        The dataset's folder in the cache is named by files, template, keys, lengths and seed.
        """
        config = self.accepted.config
        return {
            "dataset": str(self.accepted.dataset.encoded.folder),
            "database": config.data.database,
            "packing": config.data.packing,
            "init_from": None if self.accepted.start is None else self.accepted.start.digest,
            "frozen_cache": config.train.frozen_cache,
            "num_layers": config.lora.num_layers,
            "generation_batch_size": config.eval.generation_batch_size,
        }

    @property
    def subject(self) -> dict[str, Any]:
        """What the judgement depends on, beside the model."""
        config, data = self.accepted.config.eval, self.accepted.config.data
        names = ("batch_size", "max_rows", "task_rows", "max_tokens")
        return {
            "data": self.accepted.dataset.digest,
            "metric": data.metric,
            **{name: getattr(config, name) for name in names},
        }

    def recall(self) -> None:
        """Take over how an earlier process judged the base, as far as it is known and fits."""
        if (earlier := judgement.load(self.record.folder, self.subject)) is not None:
            self._take_over(earlier)

    def _take_over(self, earlier: Base) -> None:
        self.before, self.answers_before = earlier.validation, list(earlier.answers)

    def validate(self, display: Display, step: int) -> Validation | None:
        """Validation loss; None without validation rows."""
        if not self.valid:
            return None
        display.phase("validating", len(self.valid))

        def shown(batches: Sequence[Batch]) -> Iterator[Batch]:
            for batch in batches:
                yield batch
                display.advance()

        with self.stop.at_once():
            result = evaluation.validation_loss(
                self.accepted.loaded.model, shown(self.valid), self.accepted.forward
            )
        self.record.validation(step, result)
        return result

    def answers(self, display: Display, step: int) -> list[Answer]:
        """Judged answers to the test rows; none without a metric."""
        metric, rows = self.accepted.metric, self.accepted.dataset.test
        rows = sample(rows, self.config.task_rows)
        if metric is None or not rows:
            return []
        display.phase("answering", len(rows))
        judged = []
        loaded = self.accepted.loaded
        with self.stop.at_once():
            for answer in evaluation.answers(
                loaded.model, loaded.tokenizer, rows, metric, self.config
            ):
                judged.append(answer)
                display.advance()
        self.record.accuracy(step, evaluation.accuracy(judged), len(judged))
        return judged

    def samples(self) -> list[tuple[Answer | None, Answer]]:
        """`eval.samples` questions with the answers before and after, spread over the rows."""
        befores: list[Answer | None] = list(self.answers_before) or [None] * len(self.answers_after)
        pairs = list(zip(befores, self.answers_after, strict=True))
        count = self.config.samples
        stride = max(1, len(pairs) // count) if count else 1  # neighbours are often of one kind
        return pairs[::stride][:count]


def _check_base(validation: Validation | None) -> None:
    if validation is not None and not math.isfinite(validation.loss):
        raise TrainingError(
            f"the base model's own validation loss is {validation.loss}: nothing can be learned "
            "from there. Set memory_profile.compute_dtype=float32, or check the model's weights"
        )
