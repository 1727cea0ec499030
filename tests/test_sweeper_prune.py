"""Pruning: the rules against tables made by hand, and what a trial knows of the others."""

import itertools
import json
import math
import random

import pytest

from mlx_ft.config.schema import Config
from mlx_ft.config.schema_sweep import SweepConfig
from mlx_ft.state import Progress
from mlx_ft.stopping import Stopping
from mlx_ft.sweeper.prune import (
    Rule,
    best_by,
    pruner,
    read_curve,
    rivals_at,
    said_of_saved,
    siblings,
    verdict,
)

NAN = math.nan


def curve(*values, every=10):
    return [(every * (i + 1), value) for i, value in enumerate(values)]


def test_the_best_so_far_and_those_that_have_come_so_far():
    assert best_by(curve(3.0, 1.0, 2.0), 10) == 3.0
    assert best_by(curve(3.0, 1.0, 2.0), 30) == 1.0
    assert best_by(curve(NAN, 2.0), 20) == 2.0
    assert best_by(curve(NAN), 10) == math.inf
    assert best_by([], 10) == math.inf
    others = [curve(3.0, 1.0), curve(2.0), [], [(5, 9.0), (15, 8.0), (25, 7.0)]]
    assert rivals_at(others, 10) == [3.0, 2.0, 9.0]  # the last one's first value past its step 5
    assert rivals_at(others, 20) == [1.0, 8.0]
    assert rivals_at(others, 26) == []


FIVE = [curve(1.0, 0.9, 0.8), curve(1.2, 1.1, 1.0), curve(1.4, 1.3, 1.2), curve(1.6, 1.5, 1.4),
        curve(1.8)]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "stopped"),
    [
        (curve(1.4), False),  # the median of 1.0, 1.2, 1.4, 1.6, 1.8, and not above it
        (curve(1.41), True),
        (curve(1.41, 1.21), True),  # of four now: (1.1 + 1.3) / 2 = 1.2
        (curve(1.41, 1.2), False),
        (curve(1.1, 9.0), False),  # by its best so far
        (curve(NAN), True),
        (curve(NAN, 1.0), False),
        (curve(9.0, 9.0, 9.0, 9.0), False),  # nobody has come so far
    ],
)
def test_median(own, stopped):
    assert (verdict(Rule("median"), own, FIVE) is not None) == stopped


def test_the_median_waits_for_others_and_for_its_warm_up():
    bad = curve(9.0, 9.0)
    assert verdict(Rule("median", startup=5), bad, FIVE) is None  # four have come to step 20
    assert verdict(Rule("median", startup=4), bad, FIVE) is not None
    assert verdict(Rule("median", warmup=3), bad, FIVE) is None
    text = verdict(Rule("median"), bad, FIVE)
    assert text == "9.0000 is above the median of 4 others, 1.2000"
    assert verdict(Rule("median"), curve(NAN), [curve(NAN)] * 5) is None  # none is better


@pytest.mark.parametrize(
    ("factor", "own", "rivals", "stopped"),
    [
        (2, curve(2.0), [], False),  # the first one there
        (2, curve(2.0), [1.0], True),  # of two, one goes on
        (2, curve(0.5), [1.0], False),
        (2, curve(2.0), [1.0, 3.0], True),  # of three, still one
        (2, curve(2.0), [1.0, 3.0, 4.0], False),  # of four, two
        (3, curve(2.0), [1.0, 3.0, 4.0, 5.0], True),  # of five, one
        (3, curve(2.0), [1.0, 3.0, 4.0, 5.0, 6.0], False),
        (2, curve(1.0), [1.0, 1.0, 1.0], False),  # nobody is better than it is
        (2, curve(NAN), [1.0, 2.0, NAN], True),
        (2, curve(9.0, 9.0, 9.0), [1.0, 1.0], False),  # number three is no rung
    ],
)
def test_halving(factor, own, rivals, stopped):
    others = [curve(value, value, value, value) for value in rivals]
    assert (verdict(Rule("asha", factor=factor), own, others) is not None) == stopped


def test_the_rungs_of_halving():
    others = [curve(*[0.1] * 20)]
    for warmup, factor, rungs in ((1, 3, [1, 3, 9]), (2, 2, [2, 4, 8, 16]), (3, 4, [3, 12])):
        rule = Rule("asha", warmup=warmup, factor=factor)
        asked = [n for n in range(1, 19) if verdict(rule, curve(*[1.0] * n), others)]
        assert asked == rungs
    assert (
        verdict(Rule("asha"), curve(1.0), others) == "1.0000 is number 2 of 2, of which 1 went on"
    )


@pytest.mark.parametrize(
    ("own", "ahead", "stopped"),
    [
        (curve(2.0, 2.1, 2.2), 1.0, True),
        (curve(2.0, 2.1), 1.0, False),  # only one validation without a gain
        (curve(2.0, 2.1, 1.9), 1.0, False),  # a gain
        (curve(2.0, 2.1, 2.2), 2.0, False),  # nobody is ahead
        (curve(0.5, 2.1, 2.2), 1.0, False),  # its best is
        (curve(NAN, NAN, NAN), 1.0, True),
    ],
)
def test_patience(own, ahead, stopped):
    others = [curve(ahead, ahead, ahead)]
    assert (verdict(Rule("patience", patience=2), own, others) is not None) == stopped
    assert verdict(Rule("patience", patience=2), own, []) is None


@pytest.mark.parametrize("kind", ["median", "asha", "patience"])
def test_the_best_is_never_stopped(kind):
    """Whatever the curves: who is ahead at the end was stopped by nobody; in any order."""
    chance = random.Random(kind)
    pruned = 0
    for _ in range(300):
        rule = Rule(kind, 1, chance.randint(1, 3), chance.randint(2, 4), chance.randint(1, 3))
        whole = [curve(*[chance.choice([chance.random(), NAN]) if chance.random() < 0.3
                         else chance.random() for _ in range(8)]) for _ in range(6)]  # fmt: skip
        done = []
        for full in whole:
            own = next((full[:n] for n in range(1, 8) if verdict(rule, full[:n], done)), full)
            pruned += len(own) < 8
            done.append(own)
        best = min(best_by(one, 80) for one in done)
        finished = [best_by(one, 80) for one in done if len(one) == 8]
        assert min(finished) == best
    assert pruned > 100


def write(folder, *rows, tail=""):
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + tail)


def test_curves_are_read_from_the_trials_folders(tmp_path):
    rows = [
        {"step": 0, "val/loss": 5.0, "val/perplexity": 9.0},
        {"step": 1, "train/loss": 4.0},
        {"step": 10, "val/loss": 3.0},
        {"step": 20, "val/loss": None},
        {"step": 30, "val/loss": 1.0},
        {"step": 30, "val/loss": 2.0},  # done again
        {"step": 40, "final/val_loss": 0.5},
    ]
    write(tmp_path / "s/a", *rows, tail='{"step": 50, "val/loss": 1.')
    found = read_curve(tmp_path / "s/a")
    assert [step for step, _ in found] == [10, 20, 30]
    assert (found[0][1], found[2][1], math.isnan(found[1][1])) == (3.0, 2.0, True)
    assert read_curve(tmp_path / "none") == []


def test_the_other_trials_are_those_as_deep_in_the_sweep(tmp_path):
    for name in ("a", "b", "c/x", "d/y"):
        write(tmp_path / "s" / name)
    (tmp_path / "s" / "e").mkdir()
    (tmp_path / "s" / "a" / "checkpoints").mkdir()
    assert siblings(tmp_path / "s/a", tmp_path / "s") == [tmp_path / "s/b"]
    assert siblings(tmp_path / "s/c/x", tmp_path / "s") == [tmp_path / "s/d/y"]
    assert siblings(tmp_path / "elsewhere", tmp_path / "s") == []


def test_a_trial_asks_with_its_own_curve_and_the_others(tmp_path):
    write(tmp_path / "s/a", {"step": 10, "val/loss": 1.0})
    write(tmp_path / "s/b", {"step": 0, "val/loss": 9.0}, {"step": 10, "val/loss": 2.0})
    config = SweepConfig(pruner="asha")
    assert pruner(SweepConfig(), tmp_path / "s/b", tmp_path / "s") is None
    ask = pruner(config, tmp_path / "s/b", tmp_path / "s")
    assert ask is not None
    assert "2.0000 is number 2 of 2" in (ask(10, 2.0) or "")
    assert ask(10, 0.5) is None
    assert ask(20, 2.0) is None  # its second validation: no rung
    highest = pruner(
        SweepConfig(pruner="asha", direction="maximize"), tmp_path / "s/b", tmp_path / "s"
    )
    assert highest is not None
    assert highest(10, 2.0) is None
    assert highest(10, 0.5) is not None
    accuracy = pruner(
        SweepConfig(pruner="asha", metric="accuracy_after"), tmp_path / "s/b", tmp_path / "s"
    )
    assert accuracy is not None
    assert accuracy(10, 2.0) is not None  # what is compared on the way is the loss


def test_what_pruning_has_saved():
    rows = [
        {"status": "FINISHED", "steps": 100, "planned_steps": 100},
        {"status": "PRUNED", "steps": 13, "planned_steps": 100},
        {"status": "PRUNED", "steps": 38, "planned_steps": 100},
        {"status": "FAILED", "steps": None},
    ]
    text = "2 of 4 trials were pruned: 149 of 300 steps not taken"
    assert said_of_saved(rows) == text
    assert said_of_saved(rows[:1]) is None
    assert said_of_saved(rows[:2]) == "1 of 2 trials was pruned: 87 of 200 steps not taken"


def test_a_run_that_may_be_pruned_is_validated_more_often():
    config = Config()
    assert Stopping(config, None).interval(60) == 30
    assert Stopping(config, lambda step, loss: None).interval(60) == 8
    assert Stopping(config, lambda step, loss: None).interval(4) == 1
    assert Stopping(config, None).interval(4) == 0
    config.eval.every = 7
    assert Stopping(config, lambda step, loss: None).interval(60) == 7
    config.eval.every, config.train.early_stopping_patience = "auto", 3
    assert Stopping(config, None).interval(60) == 5


def test_the_last_step_is_not_pruned_and_a_loss_that_is_none_is_nan():
    asked = []

    def ask(step, loss):
        asked.append((step, loss))
        return "hopeless"

    stopping = Stopping(Config(), ask)
    assert not stopping.stops(Progress(step=60, last_loss=1.0), last=True)
    assert (asked, stopping.pruned) == ([], None)
    assert stopping.stops(Progress(step=8, last_loss=None), last=False)
    assert asked[0][0] == 8
    assert math.isnan(asked[0][1])
    assert stopping.pruned == "hopeless"


def test_all_rules_are_reached():
    """Every choice of the schema is a rule, and no rule has settings of another."""
    kinds = ("none", "median", "asha", "patience")
    settings = [Rule.of(SweepConfig(pruner=kind)).identity() for kind in kinds]
    assert settings[0] == {}
    for (kind, one), (_, other) in itertools.permutations(
        [*zip(kinds, settings, strict=True)][1:], 2
    ):
        assert one["sweep.pruner"] == kind
        shared = {"sweep.pruner", "sweep.pruner_warmup"}
        assert one.keys() & other.keys() == shared
