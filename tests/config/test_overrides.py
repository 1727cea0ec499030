import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_ft.config import conf_dir
from mlx_ft.config.groups import Groups
from mlx_ft.config.keys import keys, sections
from mlx_ft.config.overrides import check_overrides

GROUPS = Groups((conf_dir(),))


def faults(*texts, multirun=False, groups=GROUPS):
    return check_overrides(texts, groups, multirun=multirun)


@pytest.mark.parametrize(
    "text",
    [
        "lora.rank=8",
        "++lora.rank=8",
        "lora.rank=1e3",
        "lora={rank: 8, alpha: 16}",
        "optimizer=lion",
        "experiment=quick",
        "experiment=null",
        "lora.target_modules=[q_proj,v_proj]",
        "model.quantize={bits:4,group_size:64,mode:affine}",
        "model.quantize.bits=8",
        "model.quantize=null",
        "tracking.tags.owner=me",
        "+tracking.tags.owner=me",
        "~tracking.tags.owner",
        "tracking.uri=${oc.env:URI}",
        "tracking.uri='http://${oc.env:HOST,localhost}:5000'",
        "seed=${train.max_steps}",
        "data.path='a, b.jsonl'",
        "hydra.run.dir=out/${now:%Y}",
        "hydra.verbose=true",
        "data.path=$HOME/x",
        "data.path='~/x'",
    ],
)
def test_accepted(text):
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora.rnak=8", "Did you mean lora.rank?"),
        ("+lora.rnak=8", "Did you mean lora.rank?"),
        ("memory-profile=cpu", "Did you mean memory_profile?"),
        ("memory-profile.x=1", "Did you mean memory_profile?"),
        ("rank=8", "Did you mean lora.rank?"),
        ("learning_rate=1", "Did you mean optimizer.learning_rate?"),
        ("lora={rnak: 8}", "Did you mean lora.rank?"),
        ("lora={rank: 0}", "at least 1"),
        ("lora.rank=0", "at least 1"),
        ("lora.rank=abc", "a whole number"),
        ("lora.rank=", "found ''"),
        ("optimizer=foo", "there is: adafactor, adam"),
        ("optimizer=loin", "Did you mean lion?"),
        ("optimizer=null", "there is no optimizer None"),
        ("experiment=nope", "there is: chat, code"),
        ("lora=[a,b]", "there is no lora"),
        ("+lora.rank=8", "without +"),
        ("+experiment=quick", "Write experiment=VALUE, without +"),
        ("++optimizer=lion", "without ++"),
        ("~lora.rank", "cannot be removed"),
        ("~lora", "cannot be removed"),
        ("model@x=phi_2", "packages"),
        ("hydra.job.chdir=true", "only hydra.run.dir"),
        ("hydra.output_subdir=x", "only hydra.run.dir"),
        ("hydra.mode=MULTIRUN", "Use -m"),
        ("hydra.searchpath=[x]", "only hydra.run.dir"),
        ("hydra/job_logging=default", "only hydra.run.dir"),
        ("+hydra.callbacks.x={_target_: os.mkdir}", "_target_"),
        ("tracking.tags={_target_: os.mkdir}", "_target_"),
        ("hydra.launcher._target_=os.mkdir", "_target_"),
        ("hydra/launcher='a b'", "name of a launcher"),
        ("hydra.run.dir=${oc.decode:x}", "refused"),
        ("hydra.run.dir=", "expected a folder"),
        ("hydra.run.dir=null", "expected a folder"),
        ("hydra.run.dir=[a]", "expected a folder"),
        ("hydra.run.dir=true", "expected a folder"),
        ("tracking.uri=${now:%Y}", "refused"),
        ("tracking.uri=${oc.decode:x}", "refused"),
        ("tracking.uri=${hydra.job.name}", "refused"),
        ("tracking.uri=${nope}", "refused"),
        ("tracking.tags={a: '${oc.create:x}'}", "refused"),
        ("tracking.uri='${oc.env:A,${oc.decode:x}}'", "refused"),
        ("lora.rank=[8", "cannot be read"),
        ("data.path=~/x", "'data.path=\"~/x\"', or write data.path=$HOME/x"),
        ("data.path=~me/x", "'data.path=\"~me/x\"'"),
        ("hydra.run.dir='~nosuchuser/x'", "there is no user 'nosuchuser'"),
        ("hydra.sweep.dir=out", "Write hydra.run.dir=FOLDER, or add -m"),
        ("hydra.sweep.subdir=out", "no effect on a single run"),
        ("hydra/launcher=joblib", "Write it with -m"),
        ("hydra.launcher.n_jobs=2", "Write it with -m"),
        ("lora.rank", "Write lora.rank=VALUE"),
        ("=8", "key=value"),
        ("8", "key=value"),
        ("--lora.rank=8", "no dashes: lora.rank=8"),
        ("lora.rank=8,16", "Add -m"),
        ("lora.rank=range(1,3)", "Add -m"),
    ],
)
def test_refused(text, message):
    found = faults(text)
    assert found
    assert message in "\n".join(found)
    assert f"`{text}`" in found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora.rank=-1,0", "found 0"),
        ("lora.rank=choice(0,-1)", "found -1"),
        ("lora.rank=range(-2,1)", "found 0"),
        ("lora.rank=range(1,100000)", "more than 10,000"),
        ("lora.rank=range(3,3)", "no values"),
        ("lora.rank=interval(1,3)", "Write int(interval(1,3))"),
        ("lora.rank=tag(big,int(interval(4,64)))", "tag big is not known here"),
        ("lora.rank=tag(log,range(8,16))", "has no effect on a list"),
        ("lora.rank=tag(log,choice(8,16))", "has no effect on a list"),
        ("lora.dropout=tag(log,interval(0,0.1))", "begins above 0"),
        ("lora.dropout=interval(0.5,0.1)", "with a below b"),
        ("lora.dropout=interval(-2,-1)", "found -2"),
        ("optimizer=interval(1,2)", "there is no optimizer"),
        ("sweep.trials=interval(1,2)", "whole numbers"),
        ("sweep.pruner_factor=1", "at least 2"),
        ("sweep=searhc", "Did you mean search?"),
        ("optimizer=bar,foo", "'foo'"),
        ("optimizer=glob(zzz*)", "matches nothing"),
        ("hydra.run.dir=a", "Write hydra.sweep.dir=FOLDER"),
        ("hydra.sweep.dir=a,b", "cannot be swept"),
        ("seed=1,${oc.decode:x}", "refused"),
    ],
)
def test_refused_in_a_sweep(text, message):
    assert message in "\n".join(faults(text, multirun=True))


@pytest.mark.parametrize(
    "text",
    [
        "lora.rank=8,0",  # the sweep says which trials cannot be run
        "lora.rank=8,16",
        "lora.rank=range(8,17,8)",
        "lora.dropout=range(0,0.3,0.1)",
        "optimizer=adam,lion",
        "optimizer=glob(ad*)",
        "lora.rank=int(interval(4,64))",  # the sweep says whether it searches
        "lora.rank=tag(log,int(interval(4,64)))",
        "optimizer.learning_rate=tag(log,interval(1e-5,1e-3))",
        "lora.dropout=interval(0,2)",
        "lora.target_modules=[q_proj],attention",
        "hydra.sweep.dir=out",
        "hydra.sweep.subdir=${hydra.job.num}",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ],
)
def test_accepted_in_a_sweep(text):
    assert faults(text, multirun=True) == []


def test_all_faults_come_together_and_a_key_counts_once():
    found = faults("lora.rnak=8", "seed=1", "optimizer=foo", "seed=2", "lora.rank=-1")
    assert [fault.split("`")[1] for fault in found] == [
        "lora.rnak=8",
        "optimizer=foo",
        "seed=2",
        "lora.rank=-1",
    ]


def test_a_long_or_unprintable_argument_is_shown_short_and_escaped():
    [long] = faults(f"lora.rank={'x' * 10_000}")
    assert "a whole number" in long
    assert len(long) < 400
    [choice] = faults(f"optimizer={'x' * 5000}")
    assert "there is: adafactor, adam" in choice
    assert len(choice) < 500
    [control] = faults("lora.rank=\x1b[2J")
    assert control.startswith("`lora.rank=\\x1b[2J`: ")


def test_the_users_files_are_choices_too(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("path: x")
    groups = Groups((tmp_path, conf_dir()))
    assert faults("model=mine", groups=groups) == []
    assert "mine" in faults("model=other", groups=groups)[0]


@settings(max_examples=60)
@given(st.text(max_size=12), st.text(max_size=12))
@example("lora", "{" * 200)
@example("lora.rank", "[" * 2000)
@example("a@b", "1")
@example("seed", "${")
@example("seed", "range(1,2,0)")
@example("seed", "range(1.0,2.0,0)")
@example("seed", "sort(3,1)")
@example("seed", "cast(x)")
@example("seed", "9" * 5000)
def test_junk_gives_faults_and_never_an_exception(key, value):
    known = key in keys() or key in sections()
    for multirun in (False, True):
        found = faults(f"{key}={value}", multirun=multirun)
        assert known or found


@settings(max_examples=60)
@given(st.sampled_from(sorted(keys())), st.text(max_size=20), st.booleans())
def test_any_value_of_a_key_is_judged_without_an_exception(key, value, multirun):
    assert isinstance(faults(f"{key}={value}", multirun=multirun), list)
