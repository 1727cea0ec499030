"""How good a model is: validation loss, perplexity, and a task metric on generated answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import generation
from mlx_ft.config.schema import DataConfig, EvalConfig
from mlx_ft.data.arrays import packed, padded
from mlx_ft.data.batch import Batch
from mlx_ft.data.chat import prompt_tokens
from mlx_ft.data.rows import Conversation
from mlx_ft.datasets import open_database
from mlx_ft.losses import causal_lm_loss
from mlx_ft.metrics import Case, Metric, build_metric, judge_all
from mlx_ft.models.forward import Forward, forward_of


@dataclass(frozen=True)
class Validation:
    """loss: mean over target tokens, in nats."""

    loss: float
    target_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite rather than an error where it overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class Answer:
    """A generated answer and its judgement."""

    question: str
    reference: str
    prediction: str
    correct: bool
    kind: str | None = None


def build_judge(config: DataConfig) -> Metric | None:
    """The metric of `data.metric`, on its database if it needs one; None for `none`."""
    if config.metric == "none":
        return None
    name = config.database
    return build_metric(config.metric, None if name is None else lambda: open_database(name))


def validation_loss(
    model: nn.Module, batches: Iterable[Batch], forward: Forward | None = None
) -> Validation:
    """Token-weighted mean loss over `batches`, without dropout or label smoothing.

    forward: of the model, when it is there already. Without padding where the model allows it.
    """
    forward = forward or forward_of(model)
    model.eval()
    total, count = 0.0, 0.0
    for batch in batches:
        arrays = packed(batch, share=True) if forward.segments else padded(batch)
        cache = arrays.layout and forward.cache(batch.examples, arrays.layout)
        batch_total, batch_count = causal_lm_loss(forward, *arrays.tensors, cache=cache)
        mx.eval(batch_total, batch_count)
        total += float(batch_total)
        count += float(batch_count)
    return Validation(total / count, int(count))


def answers(
    model: nn.Module,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    metric: Metric,
    config: EvalConfig,
) -> Iterator[Answer]:
    """Yield the judged greedy answer to each conversation's last assistant turn."""
    given = cases(model, tokenizer, conversations, config)
    for conversation, (case, correct) in zip(conversations, judge_all(metric, given), strict=True):
        yield answer_of(conversation, case, correct=bool(correct))


def cases(
    model: nn.Module, tokenizer: Any, conversations: Sequence[Conversation], config: EvalConfig
) -> Iterator[Case]:
    """Yield what a metric is to judge: the greedy answer to each conversation's last turn."""
    prompts = [prompt_tokens(conversation, tokenizer) for conversation in conversations]
    predictions = generation.batch(
        model,
        tokenizer,
        prompts,
        max_tokens=config.max_tokens,
        batch_size=config.generation_batch_size,
    )
    for conversation, prediction in zip(conversations, predictions, strict=True):
        yield Case(prediction, conversation.messages[-1].content, conversation.record.fields)


def answer_of(conversation: Conversation, case: Case, *, correct: bool) -> Answer:
    """The judged answer to a conversation."""
    before = conversation.messages[:-1]
    question = before[-1].content if before else ""
    kind = case.fields.get("kind")
    known = kind if isinstance(kind, str) else None
    return Answer(question, case.reference, case.prediction, correct, known)


def accuracy(judged: Sequence[Answer]) -> float:
    """Share of correct answers."""
    return sum(answer.correct for answer in judged) / len(judged)
