"""mlx-ft from Python: `train`, `evaluate` and `generate`, for notebooks and scripts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft.errors import ConfigError

if TYPE_CHECKING:
    from mlx_ft.data.rows import Message
    from mlx_ft.evaluation import Answer
    from mlx_ft.saved import SavedRun
    from mlx_ft.session import RunResult

logger = logging.getLogger(__name__)


def train(
    *overrides: str,
    run_dir: str | Path | None = None,
    config_dir: str | Path | None = None,
    config_name: str = "main",
) -> RunResult:
    """Train one adapter; the same as `python train.py OVERRIDES`.

    overrides: as on the command line, e.g. `"lora.rank=32"`, `"experiment=quick"`. run_dir: a
    new folder for the run; None makes one under `paths.output_dir`. Raises MlxFtError kinds;
    a user's mistake is found before anything is written.
    """
    from mlx_ft.config.compose import CommandLine, accept
    from mlx_ft.run import run

    folders = () if config_dir is None else (Path(config_dir),)
    accepted = accept(CommandLine(tuple(overrides), config_name, folders))
    return run(
        accepted.config,
        public=accepted.public,
        run_dir=accepted.run_dir if run_dir is None else Path(run_dir),
        overrides=overrides,
        choices=accepted.choices,
    )


@dataclass(frozen=True)
class Evaluation:
    """Figures of a saved adapter. loss: nats per target token; accuracy: None without a metric."""

    loss: float | None
    perplexity: float | None
    accuracy: float | None
    answers: list[Answer]


@dataclass(frozen=True)
class Tuned:
    """A run's model. adapted: with the run's adapter on it, rather than the base alone."""

    model: Any
    tokenizer: Any
    run: SavedRun
    adapted: bool = True


def load(run: str | Path | SavedRun | Tuned | None = None, *, adapter: bool = True) -> Tuned:
    """The base model of a run with its adapter on.

    run: a run folder or a run's id; None is the newest run under `outputs/`. adapter=False
    leaves the base as it is. Something loaded already is returned as it is, so that other
    functions take it too; ConfigError when it is not what `adapter` asks for. Raises
    AdapterError, ModelError.
    """
    if isinstance(run, Tuned):
        return _as_wanted(run, adapter)
    from mlx_ft import runtime
    from mlx_ft.saved import SavedRun, find_run

    found = run if isinstance(run, SavedRun) else find_run(run)
    logger.info("run %s", found.title)
    cache_dir = Path(found.config.paths.cache_dir).expanduser()
    runtime.prepare(found.config.threads, cache_dir)
    from mlx_ft import lora, memory
    from mlx_ft.data import template
    from mlx_ft.models import load as models

    device = runtime.select_device(found.config.device)
    config = memory.resolve(found.config, device)
    loaded = models.load(
        models.locate(config.model, cache_dir),
        config.model,
        compute_dtype=config.memory_profile.compute_dtype,
        dequantize=bool(config.model.dequantize),
    )
    template.install(loaded.tokenizer, found.template)
    if adapter:
        lora.load(loaded.model, found.adapter)
    loaded.model.eval()
    return Tuned(loaded.model, loaded.tokenizer, found, adapted=adapter)


def _as_wanted(tuned: Tuned, adapter: bool) -> Tuned:
    if tuned.adapted == adapter:
        return tuned
    wanted, given = ("the adapter", "without") if adapter else ("the base alone", "with")
    raise ConfigError(
        f"{wanted} was asked for (base={not adapter}), but the model given was loaded {given} its "
        f"adapter. Load it with mlx_ft.load(run, adapter={adapter}), or pass base={adapter}"
    )


def evaluate(run: str | Path | SavedRun | Tuned | None = None, *, base: bool = False) -> Evaluation:
    """The run's validation loss and task accuracy again, from the saved adapter alone.

    run: as for `load`. base=True judges the base model without the adapter; ConfigError when
    `run` is loaded already and the other one.
    """
    tuned = load(run, adapter=not base)
    from mlx_ft import evaluation
    from mlx_ft.data import batch as batching
    from mlx_ft.data.arrays import pad_id
    from mlx_ft.data.prepare import prepare
    from mlx_ft.data.sample import sample

    config = tuned.run.config
    metric = evaluation.build_judge(config.data)
    dataset = prepare(
        replace(config.data, template=tuned.tokenizer.chat_template),
        tuned.tokenizer,
        config.memory_profile.max_seq_length,
        config.seed,
        Path(config.paths.cache_dir),
    )
    valid = sample(dataset.valid, config.eval.max_rows)
    result = None
    if valid:
        batches = batching.sequential(valid, config.eval.batch_size, pad_id(tuned.tokenizer))
        result = evaluation.validation_loss(tuned.model, batches)
    rows = sample(dataset.test, config.eval.task_rows) if metric else ()
    judged = (
        list(evaluation.answers(tuned.model, tuned.tokenizer, rows, metric, config.eval))
        if metric and rows
        else []
    )
    return Evaluation(
        result.loss if result else None,
        result.perplexity if result else None,
        evaluation.accuracy(judged) if judged else None,
        judged,
    )


def generate(
    prompt: str | Sequence[Mapping[str, str]],
    run: str | Path | SavedRun | Tuned | None = None,
    *,
    base: bool = False,
    system: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """Pieces of the answer of a run's model, as they are decoded.

    prompt: a question, or chat messages with "role" and "content". system: the system message
    to a question; None takes the one that the run was trained with, if all rows share it.
    max_tokens: at least 1. temperature: at least 0, which is greedy. top_p: above 0, at most 1.
    seed: 0 to 2**64 - 1. run, base: as for `evaluate`. Raises ConfigError, AdapterError,
    ModelError, all before anything is generated.
    """
    from mlx_ft.engine.request import Sampling

    sampling = Sampling(max_tokens, temperature, top_p, seed=seed)
    if faults := sampling.faults() + _prompt_faults(prompt):
        raise ConfigError("No answer can be generated:", faults)
    tuned = load(run, adapter=not base)
    from mlx_ft.data.chat import generation_prompt
    from mlx_ft.generation import stream

    return stream(
        tuned.model,
        tuned.tokenizer,
        generation_prompt(_messages(prompt, system, tuned.run), tuned.tokenizer),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )


def _prompt_faults(prompt: str | Sequence[Mapping[str, str]]) -> list[str]:
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        return ["prompt: found nothing to answer; give a question"]
    if isinstance(prompt, str):
        return []
    return [
        f'prompt[{index}]: found {turn!r}; expected {{"role": TEXT, "content": TEXT}}'
        for index, turn in enumerate(prompt)
        if not isinstance(turn, Mapping)
        or not all(isinstance(turn.get(key), str) for key in ("role", "content"))
    ]


def _messages(
    prompt: str | Sequence[Mapping[str, str]], system: str | None, run: SavedRun
) -> list[Message]:
    from mlx_ft.data.rows import Message

    if not isinstance(prompt, str):
        return [Message(turn["role"], turn["content"]) for turn in prompt]
    system = system if system is not None else run.summary.get("system_prompt")
    messages = [Message("system", system)] if system else []
    return [*messages, Message("user", prompt)]
