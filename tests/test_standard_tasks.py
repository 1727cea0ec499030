"""Standard tasks, by mlx-lm's own class on a stand-in for lm-eval: the numbers are the model's."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

import mlx_ft
from mlx_ft import cli, standard_tasks
from mlx_ft.data import template
from mlx_ft.errors import ConfigError, MlxFtError, UserError
from mlx_ft.standard_tasks import Figure
from tests.models import tiny

CHOICES = [("say 1 ", "abc"), ("say 1 ", "zz"), ("What? ", "a")]


@pytest.fixture
def lm_eval(using, monkeypatch):
    """A package of that name, whose `simple_evaluate` the test gives; mlx-lm's part is real."""
    package, api = ModuleType("lm_eval"), ModuleType("lm_eval.api")
    model, registry = ModuleType("lm_eval.api.model"), ModuleType("lm_eval.api.registry")
    model.LM = type("LM", (), {"__init__": lambda self: None})
    registry.register_model = lambda *_: lambda cls: cls
    package.api, api.model, api.registry = api, model, registry
    for module in (package, api, model, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "mlx_lm.evaluate", raising=False)
    standard_tasks._model_class.cache_clear()
    yield package
    standard_tasks._model_class.cache_clear()
    sys.modules.pop("mlx_lm.evaluate", None)


def requests(pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def by_hand(tuned, context, continuation):
    """Sum of log probabilities of the continuation's tokens, in one pass over the whole."""
    tokens = tuned.tokenizer.encode(context + continuation, add_special_tokens=False)
    start = len(tuned.tokenizer.encode(context, add_special_tokens=False))
    logits = np.array(tuned.model(mx.array([tokens[:-1]]))[0], np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(logprobs[at - 1, tokens[at]] for at in range(start, len(tokens)))


def test_choices_are_scored_by_the_model(lm_eval):
    seen = {}

    def simple_evaluate(*, model, tasks, num_fewshot, limit, apply_chat_template, **_):
        seen.update(tasks=tasks, shots=num_fewshot, limit=limit, chat=apply_chat_template)
        scores = model.loglikelihood(requests(CHOICES))
        values = {f"choice_{at},none": score for at, (score, _) in enumerate(scores)}
        return {"results": {"mine": {"alias": "mine", **values, "choice_0_stderr,none": 0.25}}}

    lm_eval.simple_evaluate = simple_evaluate
    tuned = mlx_ft.load("outputs/runs/one")
    found = standard_tasks.run(tuned.model, tuned.tokenizer, ["mine"], shots=2, limit=3)
    assert seen == {"tasks": ["mine"], "shots": 2, "limit": 3, "chat": True}
    assert [figure.metric for figure in found] == ["choice_0", "choice_1", "choice_2"]
    assert [figure.error for figure in found] == [0.25, None, None]
    expected = [by_hand(tuned, *pair) for pair in CHOICES]
    assert [figure.value for figure in found] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("choice", [None, tiny.TEMPLATE, "plain"])
def test_only_a_template_of_the_model_or_the_run_is_used(lm_eval, choice):
    seen = []

    def simple_evaluate(*, model, apply_chat_template, **_):
        seen.append((model.use_chat_template, apply_chat_template))
        return {"results": {"mine": {"acc,none": 1.0}}}

    lm_eval.simple_evaluate = simple_evaluate
    tuned = mlx_ft.load("outputs/runs/one")
    tuned.tokenizer.chat_template = None
    if choice is not None:  # of a model without one `plain` becomes the template
        template.install(tuned.tokenizer, None if choice == "plain" else choice)
    standard_tasks.run(tuned.model, tuned.tokenizer, ["mine"])
    assert seen == [(choice == tiny.TEMPLATE,) * 2]


def test_answers_are_generated_up_to_a_stop(lm_eval):
    def simple_evaluate(*, model, **_):
        options = {"until": ["c"], "max_gen_toks": 6}
        texts = model.generate_until(requests([("say 1</s>", options)]))
        return {"results": {"mine": {"text,none": texts[0], "length,strict": len(texts[0])}}}

    lm_eval.simple_evaluate = simple_evaluate
    tuned = mlx_ft.load("outputs/runs/one")
    whole = "".join(mlx_ft.generate("say 1", tuned, max_tokens=6))
    found = standard_tasks.run(tuned.model, tuned.tokenizer, ["mine"])
    assert found == [Figure("mine", "length (strict)", float(len(whole.partition("c")[0])), None)]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda model: model.loglikelihood(requests([("", "abc")])), "without a context"),
        (lambda model: model.loglikelihood_rolling(requests([("abc",)])), "whole texts"),
    ],
)
def test_what_mlx_lm_counts_otherwise_is_refused(lm_eval, ask, said):
    lm_eval.simple_evaluate = lambda *, model, **_: ask(model)
    tuned = mlx_ft.load("outputs/runs/one")
    with pytest.raises(UserError, match=said):
        standard_tasks.run(tuned.model, tuned.tokenizer, ["mine"])


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyError("no task x"), UserError), (OSError("offline"), MlxFtError)]
)
def test_what_lm_eval_says_is_told(lm_eval, error, kind):
    def simple_evaluate(**_):
        raise error

    lm_eval.simple_evaluate = simple_evaluate
    tuned = mlx_ft.load("outputs/runs/one")
    with pytest.raises(kind, match=r"no task x|offline"):
        standard_tasks.run(tuned.model, tuned.tokenizer, ["x"])


def test_the_command_shows_both_models(lm_eval, capsys):
    lm_eval.simple_evaluate = lambda *, model, **_: {"results": {"mine": {
        "acc,none": model.loglikelihood(requests(CHOICES[:1]))[0][0], "acc_stderr,none": 0.125,
    }}}  # fmt: skip
    arguments = ["evaluate", "--run", "outputs/runs/one", "--tasks", "mine", "--against", "base"]
    assert cli.main(arguments) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "metric", "base", "one"]
    values = [by_hand(mlx_ft.load("outputs/runs/one", adapter=on), *CHOICES[0])
              for on in (False, True)]  # fmt: skip
    assert values[0] != pytest.approx(values[1], abs=1e-3)
    task, metric, first, _, error, second, _, _ = line.split()
    assert (task, metric, error) == ("mine", "acc", "0.1250")
    assert [float(first), float(second)] == pytest.approx(values, abs=1e-3)
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["one"][0]["value"] == pytest.approx(values[1], abs=1e-3)


def test_without_lm_eval_it_says_how_to_get_it(using, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match="pip install"):
        standard_tasks.require()
    assert cli.main(["evaluate", "--run", "outputs/runs/one", "--tasks", "arc_easy"]) == 2
    assert "lm-eval is not installed" in capsys.readouterr().err


def test_mlx_lms_class_is_as_it_was_read():
    """What is used of it, and what was found wrong with it, at this version."""
    spec = importlib.util.find_spec("mlx_lm.evaluate")
    text = spec.loader.get_source("mlx_lm.evaluate")
    assert "self._model, self.tokenizer = load(" in text
    assert "if prefix_l == 0:" in text  # -inf without a context
    assert "inputs, targets = inputs[..., :-1], inputs[..., 1:]" in text  # the first is left out
