"""Searches: which points are asked for, that they go on exactly, and what is refused."""

import json
import math
import statistics
import sys
import types

import pytest

from mlx_ft.config.ranges import Interval, shortest
from mlx_ft.errors import ConfigError, TrainingError
from mlx_ft.main import main
from mlx_ft.sweeper import points, search
from mlx_ft.sweeper.accept import look_at
from mlx_ft.sweeper.points import _at_once
from mlx_ft.sweeper.search import Outcome, ask, spread, startup
from mlx_ft.sweeper.space import Space
from tests.test_sweeper import clocked, world

pytestmark = pytest.mark.usefixtures("no_estimate")

__all__ = ["world"]

RATE = "optimizer.learning_rate=tag(log,interval(1e-6,1e-2))"
RANK = "lora.rank=4,8,16,32"
STEPS = 80


def argv(*more: str) -> list[str]:
    """A search in two dimensions; what is given more than once has its last value."""
    given = ["sweep=search", "sweep.name=s", RATE, RANK, *more]
    return ["-m", *{text.partition("=")[0]: text for text in given}.values()]


def loss(config) -> float:
    """Best at a learning rate of 1e-4 and rank 16."""
    rate, rank = math.log10(config.optimizer.learning_rate), math.log2(config.lora.rank)
    return 1 + (rate + 4) ** 2 + 0.1 * (rank - 4) ** 2


@pytest.fixture
def bowl(world, monkeypatch):
    """Runs whose validation losses fall to `loss`; `before(n)` may end the n-th one.

    Points are composed once rather than twice, unless a test looks at them itself.
    """
    monkeypatch.setattr(points, "look_at", lambda *_: {})
    world.before = lambda number: None
    world.loss = loss
    world.started = 0

    def run(config, *, public, run_dir, parent_run_id, overrides, choices, share, prune):
        number, world.started = world.started, world.started + 1
        (run_dir / "config.yaml").parent.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text("")
        if (outcome := world.before(number)) is not None:
            raise outcome
        world.calls.append(config)
        final, reason, step = world.loss(config), None, 0
        with (run_dir / "metrics.jsonl").open("w") as file:
            for step in range(10, STEPS + 1, 10):
                value = final + (STEPS - step) / STEPS
                file.write(json.dumps({"step": step, "val/loss": value}) + "\n")
                file.flush()
                if prune is not None and step < STEPS and (reason := prune(step, value)):
                    break
        summary = {"status": "FINISHED", "reason": reason, "pruned": reason is not None,
                   "steps": step, "planned_steps": STEPS, "val_loss_after": value,
                   "accuracy_after": 1 / value, "run_id": f"r{number}"}  # fmt: skip
        (run_dir / "summary.json").write_text(json.dumps(summary))
        return types.SimpleNamespace(status="FINISHED", run_dir=run_dir, run_id=f"r{number}",
                                     summary=summary)  # fmt: skip

    module = types.ModuleType("mlx_ft.run")
    module.__dict__["run"] = run
    monkeypatch.setitem(sys.modules, "mlx_ft.run", module)
    return world


def tried(world) -> list[tuple[float, int, int]]:
    return [(c.optimizer.learning_rate, c.lora.rank, c.seed) for c in world.calls]


def rows(world) -> list[dict]:
    return world.finished[-1][1]


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        pytest.param("tpe", 6, marks=pytest.mark.slow),
        pytest.param("spread", 3, marks=pytest.mark.slow),
        pytest.param("random", 3, marks=pytest.mark.slow),
    ],
)
def test_a_search_tries_as_many_points_and_follows_from_its_seed(bowl, sampler, count):
    given = ["-m", "sweep=search", RATE, f"sweep.sampler={sampler}", f"sweep.trials={count}",
             "sweep.pruner=none"]  # fmt: skip
    assert main([*given, "sweep.name=a"]) == 0
    first = tried(bowl)
    assert len(set(first)) == count
    assert all(1e-6 <= rate <= 1e-2 for rate, _, _ in first)
    assert main([*given, "sweep.name=b"]) == 0
    assert tried(bowl)[count:] == first
    assert main([*given, "sweep.name=c", "sweep.sampler_seed=7"]) == 0
    assert not set(tried(bowl)[2 * count :]) & set(first)
    assert [row["status"] for row in rows(bowl)] == ["FINISHED"] * count
    assert [parent[2] for parent in bowl.parents] == [count] * 3


@pytest.mark.slow
def test_names_and_folders_can_be_read_and_say_exactly_what_was_run(bowl, tmp_path):
    assert main(argv("sweep.trials=3", "sweep.pruner=none")) == 0
    kept = json.loads((tmp_path / "outputs/sweeps/s/points.json").read_text())["points"]
    for point, (rate, rank, _), row in zip(kept, tried(bowl), rows(bowl), strict=True):
        text = point["optimizer.learning_rate"]
        assert (float(text), int(point["lora.rank"])) == (rate, rank)
        assert len(text.replace(".", "").lstrip("0").split("e")[0]) <= 4
        assert row["trial"] == f"learning_rate={text} rank={rank}"
        folder = tmp_path / "outputs/sweeps/s" / f"learning_rate={text},rank={rank}"
        assert json.loads((folder / "trial.json").read_text())["status"] == "FINISHED"


SLOW = pytest.mark.slow  # the same at other moments


@pytest.mark.parametrize("killed_at", [pytest.param(0, marks=SLOW), 3, pytest.param(6, marks=SLOW)])
@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(bowl, killed_at):
    given = ["-m", "sweep=search", RATE, "sweep.trials=7"]  # the last three by what was learned
    assert main([*given, "sweep.name=whole"]) == 0
    whole, expected = tried(bowl), [(r["trial"], r["status"]) for r in rows(bowl)]
    bowl.calls.clear()
    bowl.started = 0
    bowl.before = lambda number: KeyboardInterrupt() if number == killed_at else None
    assert main([*given, "sweep.name=s"]) == 130
    assert len(bowl.calls) == killed_at
    bowl.before = lambda number: None
    assert main([*given, "sweep.name=s"]) == 0
    assert tried(bowl) == whole
    assert bowl.calls[killed_at].train.resume == "auto"  # the one that was killed, first of all
    assert [(r["trial"], r["status"]) for r in rows(bowl)] == expected
    assert {status for _, status in expected} == {"FINISHED", "PRUNED"}
    assert main([*given, "sweep.name=s"]) == 0  # nothing to do
    assert len(bowl.calls) == 7


@pytest.mark.slow
def test_a_search_whose_points_are_lost_asks_for_the_same_and_runs_none_again(bowl, tmp_path):
    assert main(argv("sweep.trials=8")) == 0
    first, folder = tried(bowl), tmp_path / "outputs/sweeps/s"
    (folder / "points.json").unlink()
    assert main(argv("sweep.trials=8")) == 0
    assert tried(bowl) == first
    assert main(argv("sweep.trials=9")) == 0  # and grows
    assert len(bowl.calls) == 9


@pytest.mark.slow
def test_damaged_points_are_told(bowl, tmp_path, capsys):
    assert main(argv("sweep.trials=2")) == 0
    place = tmp_path / "outputs/sweeps/s/points.json"
    good = json.loads(place.read_text())
    for bad in (
        "{",
        '{"points": 3}',
        json.dumps({"points": [*good["points"], good["points"][0]]}),
        json.dumps({"points": [{**good["points"][0], "lora.rank": "5"}]}),
    ):
        place.write_text(bad)
        assert main(argv("sweep.trials=2")) == 2
        assert "is not as it was written. Remove it" in capsys.readouterr().err
    assert len(bowl.calls) == 2


@pytest.mark.slow
def test_a_pruned_trial_is_not_run_again_and_never_the_best(bowl, tmp_path, capsys):
    given = ("sweep.trials=8",)
    assert main(argv(*given)) == 0
    found = rows(bowl)
    pruned = [row for row in found if row["status"] == "PRUNED"]
    assert 3 <= len(pruned) < 8
    assert bowl.best["status"] == "FINISHED"
    assert bowl.best["objective"] == min(
        row["objective"] for row in found if row["status"] == "FINISHED"
    )
    assert bowl.best["objective"] <= min(row["objective"] for row in pruned)
    taken = sum(row["steps"] for row in found)
    out = capsys.readouterr().out
    assert f"{len(pruned)} of 8 trials were pruned: {640 - taken} of 640 steps not taken" in out
    assert main(argv(*given)) == 0
    out = capsys.readouterr().out
    assert "has come to its end before" in out
    assert "of 640 steps not taken" in out
    assert len(bowl.calls) == 8
    kept = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("trial.json")]
    assert kept.count("PRUNED") == len(pruned)


@pytest.mark.slow
def test_a_grid_is_pruned_too(bowl, capsys):
    grid = ["-m", "lora.rank=16,4,8,32", "optimizer.learning_rate=1e-4,1e-2", "sweep.name=g"]
    assert main([*grid, "sweep.pruner=asha"]) == 0
    statuses = {row["trial"]: row["status"] for row in rows(bowl)}
    assert statuses["rank=16 learning_rate=1e-4"] == "FINISHED"
    assert statuses["rank=16 learning_rate=1e-2"] == "PRUNED"
    assert {statuses[f"rank={rank} learning_rate=1e-2"] for rank in (4, 8, 32)} == {"PRUNED"}
    assert "steps not taken" in capsys.readouterr().out
    assert main(grid) == 2  # another sweep: its trials are validated more often
    err = capsys.readouterr().err
    assert "sweep.pruner: 'asha' there, None now" in err
    assert main(argv("sweep.name=g")) == 2
    assert "sweep.space: None there" in capsys.readouterr().err


@pytest.mark.slow
def test_points_that_are_impossible_are_told_and_passed(bowl, capsys, monkeypatch):
    monkeypatch.setattr(points, "look_at", look_at)
    given = ["-m", "sweep=search", "sweep.name=s", "lora.dropout=interval(0,2)",
             "sweep.trials=9", "sweep.pruner=none"]  # fmt: skip
    bowl.loss = lambda config: 1 + config.lora.dropout
    assert main(given) == 1
    statuses = [row["status"] for row in rows(bowl)]
    assert len(statuses) == 9
    assert 0 < statuses.count("FAILED") < 9
    assert len(bowl.calls) == statuses.count("FINISHED")
    assert "cannot be run: lora.dropout: found 1" in capsys.readouterr().out
    assert statuses[4:].count("FAILED") <= 1  # learned from the first four
    count = len(bowl.calls)
    assert main(given) == 1
    assert len(bowl.calls) == count


@pytest.mark.slow
def test_failed_trials_are_avoided_and_retried_when_asked(bowl):
    def lost(config):
        if config.optimizer.learning_rate > 1e-4:
            raise TrainingError("diverged")
        return loss(config)

    bowl.loss = lost
    given = ("sweep.trials=9", "sweep.pruner=none")
    assert main(argv(*given)) == 1
    failed = [row["status"] == "FAILED" for row in rows(bowl)]
    assert sum(failed[:6]) >= 2
    assert sum(failed[6:]) <= 1
    bowl.loss, count = loss, len(bowl.calls)
    assert main(argv(*given)) == 1
    assert len(bowl.calls) == count
    assert main(argv(*given, "sweep.retry=true")) == 0
    assert len(bowl.calls) == count + sum(failed)


@pytest.mark.slow
def test_each_point_may_have_several_seeds(bowl):
    given = ("sweep.trials=3", "sweep.seeds=2", "seed=5", "sweep.pruner=none")
    bowl.loss = lambda config: loss(config) + (0.5 if config.seed == 6 else 0)
    assert main(argv(*given)) == 0
    found = tried(bowl)
    assert len(found) == 6
    assert [seed for *_, seed in found] == [5, 6] * 3
    assert found[0][:2] == found[1][:2]
    assert rows(bowl)[1]["trial"].endswith("seed=6")
    assert bowl.parents[0][2] == 6


@pytest.mark.slow
def test_a_space_that_has_an_end_is_tried_whole_and_no_point_twice(bowl, capsys):
    given = ["-m", "sweep=search", "lora.rank=4,8,16", "seed=1,2", "sweep.pruner=none"]
    assert main([*given, "sweep.trials=50"]) == 0
    assert len(bowl.calls) == 6
    assert len({(c.lora.rank, c.seed) for c in bowl.calls}) == 6
    assert "There are no more than 6 points: all of them are tried" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_of_a_search_shows_its_space_and_what_was_done(bowl, tmp_path, capsys):
    assert main(argv("sweep.dry_run=true")) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "Search of 20 points (tpe, seed 42, pruned by asha) in outputs/sweeps/s",
        "  optimizer.learning_rate: 1e-6 to 0.01 (log)",
        "  lora.rank: 4, 8, 16, 32",
        "Nothing was run: sweep.dry_run=true.",
    ]
    assert [*tmp_path.iterdir()] == []
    assert main(argv("sweep.trials=2")) == 0
    capsys.readouterr()
    assert main(argv("sweep.dry_run=true")) == 0
    out = capsys.readouterr().out
    assert "2 points were asked for before" in out
    assert out.count("  finished") + out.count("  pruned") == 2


@pytest.mark.slow
def test_the_name_of_a_search_depends_on_its_space_and_not_on_its_points(bowl):
    base = {"sweep": "search", "optimizer.learning_rate": RATE.partition("=")[2],
            "lora.rank": "4,8", "sweep.trials": "1"}  # fmt: skip
    for change in ({}, {"sweep.trials": "2"}, {"sweep.sampler": "random"},
                   {"sweep.sampler_seed": "1"}, {"sweep.pruner": "none"},
                   {"optimizer.learning_rate": "interval(1e-6,1e-2)"}):  # fmt: skip
        main(["-m", *(f"{key}={value}" for key, value in (base | change).items())])
    names = [parent[1] for parent in bowl.parents]
    assert names[0] == names[1]
    assert len(set(names)) == 5
    assert all(name.startswith("learning_rate-rank-") for name in names)


@pytest.mark.slow
def test_the_hours_end_a_search_and_the_next_night_goes_on(bowl, monkeypatch, capsys):
    given = ("sweep.trials=4", "sweep.max_hours=1", "sweep.pruner=none")
    with monkeypatch.context() as patch:
        clock = iter([0.0, 100.0, 200.0, 3700.0, 3800.0])  # the sweep's, then each trial's
        clocked(patch, clock)
        assert main(argv(*given)) == 1
    assert [row["status"] for row in rows(bowl)] == ["FINISHED", "FINISHED", "NOT RUN"]
    assert "sweep.max_hours is over" in capsys.readouterr().out
    assert main(argv(*given)) == 0
    night = tried(bowl)
    assert len(night) == 4
    assert main(argv(*given, "sweep.name=other")) == 0
    assert tried(bowl)[4:] == night


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([RATE], "an interval cannot be listed"),
        (["sweep=search"], "nothing varies"),
        (["sweep=search", RATE, "sweep.trials=null"], "Say how many points are tried"),
        (["lora.rank=8,16", "sweep.trials=5"], "Leave it out, or search: sweep=search"),
        (["sweep=search", RATE, "hydra.sweep.subdir=x"], "names its trials' folders itself"),
        (["sweep=search", RATE, "lora.dropout=0.1", "data.share_prefixes=true"], "share_prefixes"),
        (
            ["sweep=search", RATE, "sweep.metric=accuracy_after", "data.metric=none"],
            "judges no answers",
        ),
        (["sweep=search", RATE, "eval.every=0"], "validates at no step in between"),
        (["lora.rank=8,16", "sweep.pruner=median", "sweep.pruner_factor=2"], "has no effect with"),
        (["lora.rank=8,16", "sweep.sampler_seed=2"], "has no effect with sweep.sampler=grid"),
    ],
)
def test_refused_before_anything_is_written(bowl, arguments, message, tmp_path, capsys):
    assert main(["-m", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Nothing was written." in err
    assert [*tmp_path.iterdir()] == []
    assert bowl.calls == []


def test_without_optuna_a_search_says_what_to_install(bowl, monkeypatch, capsys):
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    assert main(argv()) == 2
    assert "pip install 'mlx-ft[search]'" in capsys.readouterr().err
    assert main(argv("sweep.sampler=spread", "sweep.trials=2")) == 0


def test_a_search_by_accuracy_asks_for_the_highest(bowl, monkeypatch):
    told = []

    def noted(space, sampler, seed, past):
        told.append([outcome.value for outcome in past])
        return ask(space, sampler, seed, past)

    monkeypatch.setattr(points, "ask", noted)
    given = ("sweep.metric=accuracy_after", "sweep.trials=3", "sweep.pruner=none")
    assert main(argv(*given)) == 0
    best = [row["objective"] for row in rows(bowl)]
    assert bowl.best["objective"] == max(best)
    assert told == [[], [-best[0]], [-best[0], -best[1]]]


def test_a_trial_that_cannot_be_judged_is_told_and_counts_as_failed(bowl, capsys, monkeypatch):
    told = []

    def noted(space, sampler, seed, past):
        told.append([outcome.state for outcome in past])
        return ask(space, sampler, seed, past)

    monkeypatch.setattr(points, "ask", noted)
    bowl.loss = lambda config: math.inf
    assert main(argv("sweep.trials=2", "sweep.pruner=none")) == 0
    assert capsys.readouterr().err.count("has no val_loss_after: the search counts it as f") == 2
    assert told == [[], ["FAILED"]]
    assert bowl.best is None


@pytest.mark.slow
def test_points_asked_together_follow_from_what_is_known_alone(bowl, monkeypatch):
    """As with a launcher that runs three at a time: a batch is asked for before its first end."""
    monkeypatch.setattr(points, "_at_once", lambda cfg: 3)
    given = ["-m", "sweep=search", RATE, "sweep.trials=8", "sweep.pruner=none"]
    assert main([*given, "sweep.name=whole"]) == 0
    whole = tried(bowl)
    assert len(set(whole)) == 8
    bowl.started = 0
    bowl.before = lambda number: KeyboardInterrupt() if number == 4 else None  # within the second
    assert main([*given, "sweep.name=s"]) == 130
    bowl.before = lambda number: None
    assert main([*given, "sweep.name=s"]) == 0
    assert tried(bowl)[8:] == whole


def test_how_many_trials_a_launcher_runs_at_once(monkeypatch):
    from omegaconf import OmegaConf

    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for jobs, expected in ((1, 1), (3, 3), (-1, 4), (-2, 3), (None, 1), (-9, 1)):
        assert _at_once(OmegaConf.create({"hydra": {"launcher": {"n_jobs": jobs}}})) == expected
    assert _at_once(OmegaConf.create({"hydra": {"launcher": {"_target_": "x"}}})) == 1


def test_numbers_are_short_and_exact():
    for value, text in ((1e-5, "1e-5"), (0.00021, "0.00021"), (1e20, "1e20"), (2.0, "2"),
                        (1.5e-10, "1.5e-10"), (-3e-7, "-3e-7")):  # fmt: skip
        assert shortest(value) == text
        assert float(text) == value
    rates = Interval(1.23456e-5, 1e-3, log=True, integer=False)
    assert rates.at(0.0) == "1.235e-5"
    assert Interval(1.23444e-5, 1e-3, True, False).at(0.0) == "1.23444e-5"  # else it lies below
    assert rates.at(0.5) == "0.0001111"  # sqrt(1.23456e-8) = 1.11111e-4
    narrow = Interval(1.0, 1.001, log=False, integer=False)
    assert narrow.at(0.25) == "1.00025"
    ranks = Interval(1, 64, log=True, integer=True)
    assert (ranks.at(0.0), ranks.at(0.999999)) == ("1", "64")
    shares = [Interval(1, 4, log=False, integer=True).at(i / 400) for i in range(400)]
    assert all(abs(shares.count(str(i)) - 100) <= 1 for i in (1, 2, 3, 4))


def space(*arguments):
    return Space(arguments, (), None)


def test_the_spread_points_fill_the_ranges_evenly():
    """Of any first 2^k points in one dimension, no gap is wider than three times the mean."""
    for seed in range(5):
        placed = [spread(number, 1, seed)[0] for number in range(32)]
        for count in (4, 8, 16, 32):
            ordered = sorted(placed[:count])
            gaps = [b - a for a, b in zip(ordered, [*ordered[1:], ordered[0] + 1], strict=True)]
            assert max(gaps) < 3 / count
    pairs = [spread(number, 2, 0) for number in range(16)]
    quarters = [(int(2 * x), int(2 * y)) for x, y in pairs]
    assert min(quarters.count((i, j)) for i in (0, 1) for j in (0, 1)) >= 2


@pytest.mark.parametrize("sampler", ["tpe", "spread", "random"])
def test_a_point_is_asked_for_once(sampler):
    small = space("a.x=1,2,3", "a.y=u,v", "a.z=int(interval(1,2))")
    past = []
    while (point := ask(small, sampler, 0, past)) is not None:
        past.append(Outcome(point, "FINISHED", 1.0))
    assert len(past) == 12 == small.size
    assert {outcome.point for outcome in past} == set(small.all_points())


def test_tpe_comes_closer_than_chance():
    """Over four seeds, of the points that follow the first ten."""
    both = space(RATE, RANK)

    def value(point):
        rate, rank = math.log10(float(point[0])), math.log2(int(point[1]))
        return (rate + 4) ** 2 + 0.1 * (rank - 4) ** 2

    def later(sampler, seed):
        past = []
        for _ in range(25):
            point = ask(both, sampler, seed, past)
            past.append(Outcome(point, "FINISHED", value(point)))
        return statistics.median(outcome.value for outcome in past[10:])

    learned, drawn = (
        statistics.mean(later(sampler, seed) for seed in range(4)) for sampler in ("tpe", "random")
    )
    assert learned < 0.5 * drawn


def test_what_tpe_is_told_matters():
    """A pruned point is worse than any finished one, a failed one worse still; open ones repel."""
    line = space("a.x=interval(0,1)")
    even = [ask(line, "spread", 0, [Outcome(("0.5",))] * n) for n in range(12)]
    assert startup(line) == 4

    def mean(outcome_of):
        past = [outcome_of(point) for point in even]
        return sum(float(ask(line, "tpe", seed, past)[0]) for seed in range(30)) / 30

    def low(point):
        return Outcome(point, "FINISHED", float(point[0]))

    def high(point):
        return Outcome(point, "FINISHED", -float(point[0]))

    def broken(state, last=None):
        return lambda p: Outcome(p, state, last=last) if float(p[0]) < 0.5 else high(p)

    assert mean(low) < 0.35
    assert mean(high) > 0.65
    assert mean(broken("FAILED")) > 0.65
    assert mean(broken("PRUNED", (10, -9.0))) > 0.65  # its value does not make it better


def test_a_space_names_its_trials_and_their_folders():
    made = space("++optimizer.learning_rate=interval(0,1)", "++seed=1", "data.path='a/b','a:b'")
    assert [str(dimension) for dimension in made.dimensions] == [
        "optimizer.learning_rate: 0 to 1",
        "data.path: 'a/b', 'a:b'",
    ]
    [trial] = made.trials(("0.25", "'a/b'"))
    assert trial.overrides == ("++optimizer.learning_rate=0.25", "++seed=1", "data.path='a/b'")
    assert trial.name == "learning_rate=0.25 path=a/b"
    [other] = made.trials(("0.25", "'a:b'"))
    assert trial.folder != other.folder  # by a digest, whichever comes first
    names = [trial.name for trial in made.probes()]
    assert names == [
        "learning_rate=0 path=a/b", "learning_rate=1 path=a/b", "learning_rate=0 path=a:b",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="nothing varies"):
        space("seed=1")


def test_numbers_of_a_list_are_in_order_and_words_are_not():
    made = space("a.x=8,4,16", "b.y=adam,lion", "c.z=1e-4,1e-5")
    ranks, words, rates = made.dimensions
    assert (ranks.texts, ranks.ordered) == (("4", "8", "16"), True)
    assert (words.texts, words.ordered) == (("adam", "lion"), False)
    assert rates.texts == ("1e-5", "1e-4")
    assert [ranks.at(share) for share in (0.0, 0.34, 0.99)] == ["4", "8", "16"]
    assert [ranks.holds(text) for text in ("4", "5", 4, None)] == [True, False, False, False]
