"""Standard tasks of lm-eval, by mlx-lm's own class for it: `mlx-ft evaluate --tasks`.

Read for mlx-lm 0.32.2. Sound for tasks that choose between answers and for tasks that generate.
Not counted as lm-eval counts: texts without a context (each is given -inf) and the perplexity of
whole texts (the first token is left out); tasks that ask for these are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlx_ft.data.render import PLAIN_TEMPLATE, written_by_hand
from mlx_ft.errors import ConfigError, MlxFtError, UserError
from mlx_ft.models.read import import_mlx_lm

INSTALL = "lm-eval is not installed, which brings standard tasks: pip install 'mlx-ft[lm-eval]'"


@dataclass(frozen=True)
class Figure:
    """What a task gave. metric: e.g. `acc`, with the filter where it is not `none`.

    error: its standard error; None where lm-eval gives none.
    """

    task: str
    metric: str
    value: float
    error: float | None


def run(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    seed: int = 0,
) -> list[Figure]:
    """The figures of a model. shots: examples in a prompt; None: the task's. limit: questions a
    task. max_tokens: of an answer; None: the task's.

    lm-eval downloads what its tasks ask. Code that a model writes is not run. Raises ConfigError
    where lm-eval is missing, UserError for a task that it does not know or mlx-lm does not count.
    """
    lm_eval = require()
    judged = _model_class()(model, tokenizer, batch_size, max_tokens)
    try:
        results = lm_eval.simple_evaluate(
            model=judged,
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            apply_chat_template=judged.use_chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            confirm_run_unsafe_code=False,
        )
    except MlxFtError:
        raise
    except (KeyError, ValueError) as error:
        raise UserError(f"--tasks {','.join(tasks)}: lm-eval says: {error}") from error
    except Exception as error:  # of the network, of a data set, of a task's own code
        raise MlxFtError(f"lm-eval failed. {type(error).__name__}: {error}") from error
    if not results:
        raise MlxFtError("lm-eval gave no results")
    return figures(results["results"])


def figures(results: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """lm-eval's results, task -> {"acc,none": 0.5, "acc_stderr,none": 0.1, ...}, in its order."""
    found = []
    for task, values in results.items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error: Any = values.get(f"{metric}_stderr,{kind}")
            if not isinstance(error, (int, float)) or not math.isfinite(error):
                error = None
            name = metric if kind == "none" else f"{metric} ({kind})"
            found.append(Figure(task, name, float(value), error))
    return found


def require() -> Any:
    """The package lm-eval. Raises ConfigError that says how to get it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != "lm_eval":
            raise ConfigError(f"lm-eval cannot be imported: {error}") from error
        raise ConfigError(INSTALL) from error
    return lm_eval


def _has_template(tokenizer: Any) -> bool:
    """Whether chats are the model's way, or the run's; not where ours stands in for a template."""
    text = tokenizer.chat_template
    if text is None:
        return written_by_hand(tokenizer)
    return not str(text).endswith(PLAIN_TEMPLATE)


@cache
def _model_class() -> Any:
    """mlx-lm's class with a model that is loaded already."""
    import_mlx_lm()
    from lm_eval.api.model import LM
    from mlx_lm.evaluate import MLXLM

    class Loaded(MLXLM):
        def __init__(
            self, model: Any, tokenizer: Any, batch_size: int, max_tokens: int | None
        ) -> None:
            LM.__init__(self)  # MLXLM's own would load the model once more
            self._model, self.tokenizer = model, tokenizer
            self._batch_size, self._max_tokens = batch_size, max_tokens
            self.use_chat_template = _has_template(tokenizer)
            self._sampler = None

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            contexts = {request.args[0] for request in requests}
            if not all(self._tokenize([*contexts])):
                raise UserError(
                    "a task asks for the probability of texts without a context, which mlx-lm does "
                    "not count as lm-eval does. Leave it out of --tasks"
                )
            found: list[tuple[float, bool]] = super().loglikelihood(requests)
            return found

        def loglikelihood_rolling(self, _requests: Sequence[Any]) -> list[float]:
            raise UserError(
                "a task asks for the perplexity of whole texts, which mlx-lm does not count as "
                "lm-eval does. Leave it out of --tasks; mlx-ft evaluate --data FILE measures the "
                "perplexity of texts"
            )

    return Loaded
