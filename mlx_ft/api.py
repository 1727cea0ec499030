"""mlx-ft from Python: `train`, `evaluate`, `compare`, `generate`, for notebooks and scripts."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft.errors import ConfigError
from mlx_ft.verdicts import Comparison, Evaluation, Unjudged

if TYPE_CHECKING:
    from mlx_ft.assessment import MetricName, Task
    from mlx_ft.data.rows import Message
    from mlx_ft.generation import Cut
    from mlx_ft.models.load import Located
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
class Tuned:
    """A run's model. adapted: with the run's adapter on it, rather than the base alone.

    located: the base, on this machine.
    """

    model: Any
    tokenizer: Any
    run: SavedRun
    adapted: bool = True
    located: Located | None = None


def load(
    run: str | Path | SavedRun | Tuned | None = None,
    *,
    adapter: bool = True,
    model: str | None = None,
) -> Tuned:
    """The base model of a run with its adapter on.

    run: a run folder, a run's id, `models:/NAME/VERSION`, or an adapter's folder; None is the
    newest run under `outputs/`. adapter=False leaves the base as it is. model: the base, by recipe
    or as `model.path` takes it; None: the one that run or adapter name. Something loaded already is
    returned as it is, so that other functions take it too; ConfigError when it is not what
    `adapter` asks for, or a base is named besides. Raises AdapterError, ModelError.
    """
    if model is not None and not isinstance(run, (str, Path, type(None))):
        raise ConfigError(f"model={model!r} is for a run that is yet to be found; this one has one")
    if isinstance(run, Tuned):
        return _as_wanted(run, adapter)
    from mlx_ft import runtime
    from mlx_ft.saved import SavedRun, find_run

    found = run if isinstance(run, SavedRun) else find_run(run, model=model)
    logger.info("%s %s", "run" if not found.is_alone else "using", found.title)
    cache_dir = Path(found.config.paths.cache_dir).expanduser()
    runtime.prepare(found.config.threads, cache_dir)
    from mlx_ft import lora, memory
    from mlx_ft.data import template
    from mlx_ft.models import load as models

    device = runtime.select_device(found.config.device)
    config = memory.resolve(found.config, device)
    located = models.locate(config.model, cache_dir)
    if adapter:
        _check_base(found, located)
    loaded = models.load(
        located,
        config.model,
        compute_dtype=config.memory_profile.compute_dtype,
        dequantize=bool(config.model.dequantize),
    )
    template.install(loaded.tokenizer, found.template)
    if adapter:
        lora.load(loaded.model, found.adapter)
    loaded.model.eval()
    found = replace(found, config=config)
    return Tuned(loaded.model, loaded.tokenizer, found, adapted=adapter, located=located)


def _check_base(run: SavedRun, located: Located) -> None:
    from mlx_ft import adapter_folder
    from mlx_ft.models.load import weights_digest

    if adapter_folder.is_adapter(run.adapter):  # else loading it says what is missing
        weights = weights_digest(located)
        adapter_folder.check_base(run.adapter, weights, insisted=run.base_given)


def _as_wanted(tuned: Tuned, adapter: bool) -> Tuned:
    if tuned.adapted == adapter:
        return tuned
    wanted, given = ("the adapter", "without") if adapter else ("the base alone", "with")
    raise ConfigError(
        f"{wanted} was asked for (base={not adapter}), but the model given was loaded {given} its "
        f"adapter. Load it with mlx_ft.load(run, adapter={adapter}), or pass base={adapter}"
    )


def evaluate(
    run: str | Path | SavedRun | Tuned | None = None,
    *,
    base: bool = False,
    model: str | None = None,
    data: str | None = None,
    metrics: Sequence[MetricName] | None = None,
    database: str | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
) -> Evaluation:
    """The run's validation loss and the scores of its answers, from the saved adapter alone.

    run, model: as for `load`. base=True judges the base model without the adapter; ConfigError
    when `run` is loaded already and the other one. data: rows to judge on, as `data.path` takes
    them; None: the run's own. metrics: names, or functions (prediction, reference, fields) -> bool
    or number; None: the run's. database: for `sql_execution`. limit: rows used at most.
    max_tokens: of an answer; None: what the longest expected answer needs. Raises ConfigError,
    DataError, AdapterError, ModelError; verdicts.Unjudged, which has the answers as `rows`, where a
    metric fails on one.
    """
    tuned = load(run, adapter=not base, model=model)
    from mlx_ft import assessment

    task = assessment.task(
        tuned.run.config, data=data, metrics=metrics, database=database, limit=limit,
        max_tokens=max_tokens,
    )  # fmt: skip
    return task.judge(tuned.model, tuned.tokenizer)


def compare(
    run: str | Path | SavedRun | Tuned | None = None,
    against: str | Path | SavedRun = "base",
    *,
    model: str | None = None,
    data: str | None = None,
    metrics: Sequence[MetricName] | None = None,
    database: str | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
) -> Comparison:
    """A run's model and another one judged on the same rows: those of `run`, or `data`.

    against: `base` (of `run`), or a run as for `load`; it is the first of the two. model: the base
    of both. The others: as for `evaluate`. One model at a time is in memory. Raises what `evaluate`
    raises.
    """
    from mlx_ft.saved import SavedRun, find_run

    other = None
    if against != "base":  # not after minutes
        other = against if isinstance(against, SavedRun) else find_run(against, model=model)
    given = isinstance(run, Tuned)
    tuned = load(run, model=model)
    import mlx.core as mx

    from mlx_ft import assessment, lora, same_base

    saved = tuned.run
    if other is not None:
        same_base.warn_of_two(other, saved)
    task = assessment.task(
        saved.config, data=data, metrics=metrics, database=database, limit=limit,
        max_tokens=max_tokens,
    )  # fmt: skip
    second = task.judge(tuned.model, tuned.tokenizer)
    if other is None:
        lora.detach(tuned.model)
        try:
            return _beside(task, tuned, ("base", saved.name), second)
        finally:
            if given:
                lora.load(tuned.model, saved.adapter)
                tuned.model.eval()
    del tuned  # two might not fit into memory
    gc.collect()
    mx.clear_cache()
    return _beside(task, load(other), (other.name, saved.name), second)


def _beside(task: Task, tuned: Tuned, names: tuple[str, str], second: Evaluation) -> Comparison:
    try:
        first = task.judge(tuned.model, tuned.tokenizer)
    except Unjudged as error:
        raise error.beside(names, second) from error
    return Comparison.of(names, first, second)


def generate(
    prompt: str | Sequence[Mapping[str, str]],
    run: str | Path | SavedRun | Tuned | None = None,
    *,
    base: bool = False,
    model: str | None = None,
    system: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Generator[str, None, Cut | None]:
    """Pieces of the answer of a run's model, as they are decoded.

    prompt: a question, or chat messages with "role" and "content". system: the system message
    to a question, not to messages; None takes the one that the run was trained with, if all rows
    share it. max_tokens: at least 1. temperature: at least 0, which is greedy. top_p: above 0, at
    most 1. seed: 0 to 2**64 - 1. run, base, model: as for `evaluate`. The generator's own value is
    what cut the answer: `max_tokens`, `window` (prompt and answer fill the tokens that the model
    was made for), or None. Raises ConfigError, AdapterError, ModelError, all before anything is
    generated.
    """
    from mlx_ft.engine.request import Sampling

    sampling = Sampling(max_tokens, temperature, top_p, seed=seed)
    if faults := sampling.faults() + _prompt_faults(prompt, system):
        raise ConfigError("No answer can be generated:", faults)
    tuned = load(run, adapter=not base, model=model)
    from mlx_ft.data.chat import generation_prompt
    from mlx_ft.generation import stream

    tokens = generation_prompt(_messages(prompt, system, tuned.run), tuned.tokenizer)
    window = None if tuned.located is None else tuned.located.window
    if window is not None and len(tokens) >= window:
        raise ConfigError(
            f"No answer can be generated: the prompt has {len(tokens):,} tokens, the model was "
            f"made for {window:,} with the answer. Nothing is cut: give a shorter one"
        )
    return stream(
        tuned.model,
        tuned.tokenizer,
        tokens,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        window=window,
    )


def _prompt_faults(prompt: str | Sequence[Mapping[str, str]], system: str | None) -> list[str]:
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        return ["prompt: found nothing to answer; give a question"]
    if isinstance(prompt, str):
        return []
    unused = "system: is for a question; give it as the first message, with the role `system`"
    return [unused] * (system is not None) + [
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
