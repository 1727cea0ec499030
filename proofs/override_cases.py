"""Command lines for `fuzz_overrides`: made from a grammar, repeatable by seed and number.

Everything that a value may name lies below one scratch folder: `cwd/` (where the run starts),
`home/`, `tmp/`, `elsewhere/`, `model/`, `rows.jsonl` and `site/canary`, a module that leaves a
mark when it is imported or called.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlx_ft.config import conf_dir
from mlx_ft.config.groups import Groups
from mlx_ft.config.keys import keys, sections

Files = dict[str, str]
# One step of a tiny model: 1.5 seconds. A case that names one of these keys replaces it.
JOB = (
    "model.path=../model", "data=custom", "data.path=../rows.jsonl", "tracking=none",
    "train.max_steps=1", "lora.rank=4", "eval.max_tokens=4", "memory_profile=cpu",
    "memory_profile.micro_batch_size=4", "device=cpu",
)  # fmt: skip
# Valid, and as long as the user says: only their limits and what is out of range are tried.
LONG = {"train.max_steps", "train.epochs", "memory_profile.grad_accumulation_steps",
        "eval.max_tokens", "eval.samples", "threads"}  # fmt: skip
WRITTEN = ("hydra.run.dir", "paths.output_dir", "paths.tracking_dir", "paths.cache_dir")


@dataclass
class Case:
    """A command line. places: folders that it names itself, so that it may write there.

    prints: one of Hydra's flags that only show something. files: made in `cwd` beforehand.
    """

    kind: str
    args: list[str]
    places: list[str] = field(default_factory=list)
    prints: bool = False
    files: Files = field(default_factory=dict)


VALID: dict[str, tuple[str, ...]] = {
    "model.path": ("../model", "'../model/'"),
    "model.quantize": ("null", "auto", "{bits: 4, group_size: 32}", "{mode: mxfp4}", "{bits: 8}"),
    "lora.target_modules": ("all-linear", "attention", "mlp", "[q_proj]", "[q_proj,down_proj]"),
    "optimizer.learning_rate": ("1e-4", "10", "1e-30", "5e-324"),
    "data.path": ("../rows.jsonl", "[../rows.jsonl]", "[{path: ../rows.jsonl, weight: 2}]"),
    "data.valid_path": ("null", "../valid.jsonl"),
    "data.test_path": ("null", "../valid.jsonl"),
    "data.roles": ("{}", "{Doctor: assistant}"),
    "data.template": ("null", "alpaca", "chatml", "llama2"),
    "data.max_errors": ("0", "3", "5%", "100%"),
    "data.metric": ("none", "exact_match", "contains_answer"),
    "data.database": ("null", "builtin:geography_sql"),
    "memory_profile.quantize": ("null", "auto", "{bits: 4}", "{mode: mxfp8}"),
    "tracking.tags": ("{}", "{owner: me}", "{a: 1, b: null}", "{a: ${seed}}"),
    "tracking.run_name": ("null", "mine", "'a/b'", "'é 😀'"),
    "tracking.experiment_name": ("mine", "'a/b c'"),
    "train.compile": ("auto", "false", "auto", "false", "auto", "true"),  # 20 s of compiling
    "train.epochs": ("1", "0.5"),
    "train.max_steps": ("1", "2"),
    "threads": ("null", "1", "2"),
    "device": ("auto", "cpu"),
    "log_level": ("debug", "info", "warning", "error"),
}
WRONG = (
    "", "''", "null", "true", "nan", "inf", "-inf", "-1", "0", "-0.0", "1e308", "1e309", "1e-320",
    "9223372036854775807", "9223372036854775808", "1" + "0" * 30, "9" * 5000, "0x10", "1_000",
    "1.5", "1e3", "+1", "abc", "[]", "{}", "[1,2]", "{a: 1}", "[[[[1]]]]", "'a b'", "a b", "é😀",
    "\u202eabc", "\x1b[2J\x1b[31m", "a\nb\nc", "\r", "\t", "\x07", "x" * 3000, "~", "~/x", "'~/x'",
    "../../../x", "/dev/null", "/dev/full", "/proc/self/mem", "'a: b'", "'", '"', "\\", "a,b",
    "[a", "{a", "}", "range(1,3)", "choice(1)", "int(3)", "cast(1)", "sort(2,1)", "glob(*)",
    "interval(0,1)", "shuffle(1,2)", "str(1)", "json_str('1')", "$(touch x)", "`touch x`", "%n",
    "; touch x", "{{ 7*7 }}", "__import__('os')", "???", "!!python/none", "&a", "*a", "#", "@x",
    os.fsdecode(b"\xff\xfe"), "a" + os.fsdecode(b"\x80"), "[" * 200, "{a:" * 60, "\U0010ffff",
)  # fmt: skip
# Text of a path and the place that it names; None: nothing may be written.
PATHS: tuple[tuple[str, str | None], ...] = (
    ("out", "out"), ("./a/b", "a"), ("'a b'", "a b"), ("../sibling", "../sibling"), (".", "."),
    ("../elsewhere/new/deep", "../elsewhere"), ("'~/fuzz'", "../home/fuzz"), ("é😀", "é😀"),
    ("${oc.env:HOME}/mine", "../home/mine"), ("'${oc.env:NO_SUCH,there}'", "there"),
    ("${oc.env:NO_SUCH}", None), ("../rows.jsonl", "../rows.jsonl"),
    ("../rows.jsonl/x", "../rows.jsonl"),
    ("/proc/x", "/proc"), ("/dev/null", "/dev/null"),
    ("/dev/null/x", "/dev/null/x"), ("a" * 300, None),
    ("x/" * 3000, None), ("''", None), ("'~nobody-there/x'", None), ("null", None),
    ("'a\nb'", "a\nb"), ("'\x1b[2J'", "\x1b[2J"), ("'  '", None), ("-x", "-x"),
    (os.fsdecode(b"'\xff'"), os.fsdecode(b"\xff")), ("a/../b", "."),
    ("../loop", "../loop"), ("../readable.yaml", "../readable.yaml"), ("$HOME", "$HOME"), ("nul",
    "nul"),
)  # fmt: skip
TARGETS = (
    "canary.fire", "os.mkdir", "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen",
    "canary.Thing", "hydra.utils.instantiate", "hydra.utils.get_method", "canary",
)  # fmt: skip
LOOKUPS = (
    "${oc.decode:'{_target_: canary.fire}'}", "${oc.create:'{_target_: canary.fire}'}",
    "${oc.env:HOME}", "${oc.env:NO_SUCH}", "${oc.env:NO_SUCH,5}", "${oc.env:'NO_SUCH',null}",
    "${oc.env:NO_SUCH,${oc.decode:'1'}}", "${oc.env:${oc.env:HOME}}", "${oc.select:seed}",
    "${oc.deprecated:seed}", "${oc.dict.keys:lora}", "${oc.dict.values:lora}", "${hydra:job.name}",
    "${hydra:runtime.cwd}", "${now:%Y}", "${now:%n%t}", "${python_version:}", "${seed}", "${lora}",
    "${lora.rank}", "${lora[rank]}", "${.rank}", "${..seed}", "${nope}", "${", "${}", "${:}",
    "${seed", "$${seed}", "\\${seed}", "\\\\${seed}", "'${seed}'", "${ seed }", "${${seed}}",
    "${eval:1+1}", "${canary.fire:}", "${canary:}", "${resolver:canary.fire}", "a${seed}b",
    "${tracking.tags}", "${optimizer.learning_rate}", "[${seed}]", "{a: ${oc.env:HOME}}",
    "${paths.output_dir}", "${model.path}", "${hydra.run.dir}", "${oc.env:HOME}${oc.env:HOME}",
)  # fmt: skip
HYDRA = (
    "hydra.callbacks.x={T}", "hydra.callbacks={x: {T}}", "hydra/callbacks=mine", "hydra.job.name=x",
    "hydra.job.chdir=true", "hydra.job.env_set={PATH: x}", "hydra.job.env_copy=[HOME]",
    "hydra.job.env_set.LD_PRELOAD=x.so", "hydra.searchpath=[pkg://canary]", "hydra={T}",
    "hydra.searchpath=[file:///etc]", "hydra/sweeper=basic", "hydra.sweeper={T}", "hydra/env=x",
    "hydra.sweeper.params={lora.rank: '1,2'}", "hydra/job_logging=default", "hydra/output=x",
    "hydra.job_logging.handlers.x={(): canary.fire}", "hydra.job_logging.root=null", "hydra=null",
    "hydra.hydra_logging.handlers.x={class: canary.Thing}", "hydra/hydra_logging=colorlog",
    "hydra.output_subdir=.hydra", "hydra.mode=MULTIRUN", "hydra.launcher={T}", "hydra/launcher=x",
    "hydra.launcher.x={T}", "hydra.launcher._target_=canary.fire", "hydra.launcher.n_jobs=2",
    "hydra/launcher=basic", "hydra/launcher=../mine", "hydra/launcher=[basic]",
    "hydra.verbose=true",
    "hydra.verbose=canary", "hydra.verbose=[a,b]", "hydra.verbose={T}", "hydra.verbose=${seed}",
    "hydra.sweep.dir=out", "hydra.sweep.subdir=../../x", "hydra.help.template=x", "hydra.x=1",
    "hydra.runtime.cwd=/", "hydra.overrides.task=[x]", "hydra.run={dir: x}", "hydra.run.dir={T}",
    "hydra.run.dir=[a]", "hydra.run.dir=1", "hydra.run.dir=null", "hydra.run.dir=true",
    "hydra/help=x", "hydra.help={T}", "hydra.hydra_help.template=x", "hydra.run.dir=a,b",
)  # fmt: skip


def quoted_target(rng: random.Random) -> str:
    """A `_target_` node in one of many spellings."""
    target = rng.choice(TARGETS)
    key = rng.choice(("_target_",) * 4 + ("'_target_'", '"_target_"', "_Target_", "\\_target_",
                     "_tar\\get_", "\\x5ftarget_", "_target\u200b_", "\uff3ftarget_",
                     "_${oc.env:T,target}_", "target", "_recursive_", "_partial_",
                     "()"))  # fmt: skip
    value = rng.choice(
        (target, f"'{target}'", f"${{oc.env:X,{target}}}", f"{{_target_: {target}}}")
    )
    node = rng.choice((f"{{{key}: {value}}}", f"{{{key}: {value}, path: made}}",
                       f"{{ {key} : {value} }}", f"{{{key}:{value}, _args_: [made]}}"))  # fmt: skip
    return rng.choice((node,) * 3 + (f"[{node}]", f"{{a: {node}}}", f"{{a: [{{b: {node}}}]}}",
                      f'"{node}"', f"'{node}'", f"[1, {node}]"))  # fmt: skip


def cases(count: int, seed: int, scratch: Path) -> list[Case]:
    """`count` command lines; the same ones for the same seed."""
    weights = [weight for _, weight in KINDS]
    made = []
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")  # noqa: S311 (repeatable, not secret)
        make = rng.choices([make for make, _ in KINDS], weights)[0]
        case = make(rng, scratch)
        case.args = with_job(case.args)
        made.append(case)
    return made


def with_job(args: list[str]) -> list[str]:
    """The arguments after those of the tiny job that they do not name."""
    given = {arg.partition("=")[0].lstrip("+~") for arg in args}
    return [*(text for text in JOB if text.partition("=")[0] not in given), *args]


def _valid(key: str, rng: random.Random) -> str:
    """A value that the key takes."""
    if key in VALID:
        return rng.choice(VALID[key])
    known = keys()[key]
    if known.metadata["choices"]:
        return str(rng.choice(known.metadata["choices"]))
    limits = known.metadata
    values = {
        "bool": ("true", "false"), "null": ("null",), "'auto'": ("auto",), "'all'": ("all",),
        "int": (str(limits["minimum"] or 0), "1", "2", "3"), "str": ("mine",), "tags": ("{}",),
        "float": ("0.5", "0.01"), "list": ("[q_proj]",), "share": ("5%",),
    }  # fmt: skip
    return rng.choice(values.get(rng.choice(known.kinds), ("null",)))


def _edge(key: str, rng: random.Random) -> str:
    """A value at, beside or far beyond a limit of the key."""
    limits = [keys()[key].metadata[name] for name in ("minimum", "maximum", "above", "below")]
    edges = [limit for limit in limits if limit is not None] or [0]
    edge = rng.choice(edges)
    if key in LONG:
        return str(rng.choice((min(edges), min(edges) - 1, -edge - 1, 10**19, 1e300)))
    return str(rng.choice((edge, edge, edge + 1, edge - 1, edge * 1e-9, -edge, 2**31, 2**31 - 1,
                           2**63, 2**64 + 1, 10**12, 1e18, 1e300, 1e-300)))  # fmt: skip


def _value(key: str, rng: random.Random) -> str:
    if key in LONG and rng.random() < 0.5:
        return _edge(key, rng)
    roll = rng.random()
    if roll < 0.25:
        return _edge(key, rng)
    return rng.choice([text for text in WRONG if key not in LONG or not text.isdigit()])


def valid(rng: random.Random, _: Path) -> Case:
    """Values that the schema takes, several together: a run, or a fault between keys."""
    chosen = rng.sample(sorted(keys()), rng.randint(1, 5))
    chosen = [key for key in chosen if key not in (*WRITTEN, "tracking.backend")]
    args = [f"{key}={_valid(key, rng)}" for key in chosen]
    groups = rng.sample(("lora", "optimizer", "experiment"), rng.randint(0, 2))
    names = Groups((conf_dir(),))
    args += [f"{name}={rng.choice(names.options(name))}" for name in groups]
    return Case("valid", [arg for arg in args if not _asks_much(arg)])


def _asks_much(arg: str) -> bool:
    """A recipe for a model of gigabytes; a metric that runs programs."""
    return arg.startswith("experiment=") and arg not in ("experiment=quick", "experiment=chat")


def edges(rng: random.Random, _: Path) -> Case:
    """Numbers at and beyond their limits."""
    number = [name for name, key in keys().items() if {"int", "float"} & set(key.kinds)]
    return Case("edges", [f"{k}={_edge(k, rng)}" for k in rng.sample(number, rng.randint(1, 2))])


def wrong(rng: random.Random, _: Path) -> Case:
    """One to many keys with values of any kind."""
    chosen = rng.sample(sorted(keys()), rng.choice((1, 1, 1, 2, 5, 40)))
    chosen = [key for key in chosen if key not in WRITTEN]
    return Case("wrong", [f"{key}={_value(key, rng)}" for key in chosen])


def paths(rng: random.Random, scratch: Path) -> Case:
    """Where a run writes, and what it reads."""
    args, places = [], []
    for key in rng.sample(WRITTEN, rng.randint(1, 2)):
        text, place = rng.choice((*PATHS, (f"{scratch}/elsewhere/abs", "../elsewhere")))
        args.append(f"{key}={text}")
        places += [place] if place is not None else []
    if rng.random() < 0.3:
        key = rng.choice(("data.path", "data.valid_path", "data.test_path", "data.database",
                          "model.path", "data.template"))  # fmt: skip
        args.append(f"{key}={rng.choice(PATHS)[0]}")
    return Case("paths", args, places)


URIS: tuple[tuple[str, str | None], ...] = (
    ("sqlite:///own.db", "."), ("sqlite:///../elsewhere/own.db", "../elsewhere"), ("null", None),
    ("sqlite:///:memory:", None), ("sqlite://", None), ("sqlite:////proc/x.db", "/proc"),
    ("sqlite:///../elsewhere/rows.jsonl", "../elsewhere"), ("file:./files", "files"), ("./files",
    "files"),
    ("databricks", None), ("postgresql://localhost:9/x", None), ("mysql+pymysql://u@h/x", None),
    ("'canary://x'", None), ("http://me:secret@127.0.0.1:9", None), ("javascript:alert(1)", None),
    ("'sqlite:///${oc.env:HOME}/own.db'", "../home"), ("'sqlite:///a\nb.db'", "."), ("''", None),
    ("sqlite:///x.db?mode=ro", "."), ("uc:x", None), ("ftp://127.0.0.1:9", None), ("http://", None),
)  # fmt: skip


def tracked(rng: random.Random, _: Path) -> Case:
    """MLflow's database, names and tags."""
    uri, place = rng.choice((("null", None),) * 6 + URIS)
    nasty = rng.choice(("mine", "'a/b'", "'..'", "'é😀'", "'\x1b[2J'", "'a\nb'", "x" * 3000, "'%'",
                        os.fsdecode(b"'\xff'"), "''", "null", "0", "a" * 251, "'\\''"))  # fmt: skip
    extra = rng.choice((f"tracking.run_name={nasty}", f"tracking.experiment_name={nasty}",
                        f"tracking.tags={{a: {nasty}}}", f"+tracking.tags.{rng.choice(NAMES)}=1",
                        f"tracking.tags.mlflow.runName={nasty}"))  # fmt: skip
    quiet = [f"tracking.uri={uri}"] if uri != "null" else []
    return Case("tracked", ["tracking=mlflow", *quiet, extra], [place] if place else [])


NAMES = ("a", "a.b", "é", "'a b'", "a/b", "..", "x" * 300, "_target_", "mlflow.user", "1", "\x1b")


def groups(rng: random.Random, _: Path) -> Case:
    """Choices of files, misspelt, from other folders, and of several kinds."""
    found = Groups((conf_dir(),))
    group = rng.choice(found.names())
    choices = [*found.options(group), "nope", "", "null", "../lora/default", "../../rows", "./x",
               "/etc/passwd", "../main", "[a,b]", "{a: 1}", f"{found.options(group)[0]}x", "~",
               "default.yaml", "main", "../../../../etc/hosts", "../../home", "?", "*",
               "pkg://canary",
               "file:///etc", "é", "a b", "'../main'", "default@x", "${seed}"]  # fmt: skip
    choice = rng.choice(choices)
    if (group in ("data", "model", "tracking", "experiment")) and choice in found.options(group):
        choice += "x"  # what these bring is not tiny
    return Case("groups", [f"{rng.choice(('', '', '', '+', '++', '~'))}{group}={choice}"])


def structure(rng: random.Random, _: Path) -> Case:
    """Duplicates, deletions, prefixes, packages, keys that are none."""
    key = rng.choice((*keys(), *sections()))
    section = key.partition(".")[0]
    value = _valid(key, rng) if key in keys() else "{}"
    if key in WRITTEN or key == "tracking.backend":
        key, section, value = "seed", "seed", "1"
    forms = [
        [f"{key}={value}", f"{key}={value}"], [f"~{key}"], [f"~{key}={value}"], [f"+{key}={value}"],
        [f"++{key}={value}"], [f"+++{key}={value}"], [f"{key}@x={value}"],
        [f"{key}@_global_={value}"],
        [key], [f"{key}="], [f"={value}"], ["="], [""], [" "], [f" {key}={value}"], ["@"], ["+"],
        ["~"],
        [f"{key} ={value}"], [f"{key}= {value}"], [f"--{key}={value}"], [f"-{key}={value}"],
        [f"{section}={{{key.rpartition('.')[2]}: {value}}}"], [f"{key.upper()}={value}"],
        [f"{key}x={value}"], [f"{key}.x={value}"], [f"{key}[0]={value}"], [f"{section}..x=1"],
        [f"{section}.=1"], [f".{key}={value}"], [f"{key}=={value}"], [f"++{section}.__class__=1"],
        [f"{section}.${{seed}}=1"], [f"{section}/x={value}"], [f"{section}=[{value}]"],
        [f"tracking.tags.{rng.choice(NAMES)}={rng.choice(WRONG)}"], ["~tracking.tags.no"],
        [f"{rng.choice(WRONG)}={rng.choice(WRONG)}"], [f"k{i}=1" for i in range(3000)],
        ["seed=1"] * 500, [f"data.roles.{rng.choice(NAMES)}={rng.choice(WRONG)}"],
        [f"model.quantize.{rng.choice(('bits', 'x', '_target_', 'mode'))}={rng.choice(WRONG)}"],
    ]  # fmt: skip
    return Case("structure", rng.choice(forms))


def lookups(rng: random.Random, scratch: Path) -> Case:
    """Interpolations, allowed ones and others."""
    text = rng.choice(LOOKUPS)
    key = rng.choice(
        (*keys(), *WRITTEN * 4, "hydra.run.dir", "hydra.launcher.x", "tracking.tags.a")
    )
    if key in LONG:
        key = "seed"
    places = ["."] if key in WRITTEN else []
    if key in WRITTEN and "HOME" in text:
        places += ["../home"]
    form = rng.choice((text, text, f"'{text}'", f'"{text}"', f"a{text}"))
    return Case("lookups", [f"{key}={form}"], [*places, f".{scratch}"])


def targets(rng: random.Random, _: Path) -> Case:
    """`_target_` at every depth."""
    node = quoted_target(rng)
    key = rng.choice((*keys(), *sections(), "tracking.tags.x", "data.roles.x", "model.quantize.x",
                      "hydra.launcher.x", "hydra.launcher", "hydra.run.dir", "x", "data.path",
                      "tracking.tags", "data.roles", "model.quantize", "lora.target_modules",
                      "hydra.verbose", "hydra.callbacks.x", "hydra"))  # fmt: skip
    prefix = rng.choice(("", "", "+", "++"))
    flat = f"{key}.{rng.choice(('_target_', 'x._target_'))}={rng.choice(TARGETS)}"
    return Case("targets", [rng.choice((f"{prefix}{key}={node}",) * 4 + (f"{prefix}{flat}",))],
                ["."] if key in WRITTEN else [])  # fmt: skip


def hydras(rng: random.Random, _: Path) -> Case:
    """Hydra's own keys."""
    texts = [
        text.replace("{T}", quoted_target(rng)) for text in rng.sample(HYDRA, rng.randint(1, 2))
    ]
    prefix = rng.choice(("", "", "+", "++", "~"))
    return Case("hydra", [*rng.choice(([], ["-m"])), *(prefix + text for text in texts)], ["."])


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
NODES = (
    "{_target_: canary.fire}", "{x: {_target_: os.mkdir, path: made}}", "[{_target_: canary.fire}]",
    "!!python/object/apply:canary.fire []", "!!python/name:canary.fire", "!!python/module:canary",
    "!!python/object/new:canary.Thing []", "!canary x", "!!binary aGVsbG8=", "!!set {a}",
    "\"${oc.create:'{_target_: canary.fire}'}\"", "\"${oc.decode:'{_target_: canary.fire}'}\"",
    "2020-01-01",
    "{\"_tar\\u0067et_\": canary.fire}", "{<<: {_target_: canary.fire}}", "'${canary:}'", "? x",
    "- x",
    "{x: \"${oc.create:'{_target_: canary.fire}'}\"}", "{_target_: '${oc.env:X,canary.fire}'}",
    "x: y: z",
    "{() : canary.fire}", "{class: canary.Thing}", "ext://canary.fire", "[", "\t", "%x", "*a",
    "{1: 2}",
    "{(): canary.fire}", "{x: {_target_: canary.fire, _convert_: all}}", "\"\\0\"", "{null: 1}",
    "{_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher, x: "
    "\"${oc.create:'{_target_: canary.fire}'}\"}", "{_target_: canary.fire, _partial_: true}",
)  # fmt: skip
SPOTS = (
    "lora: {N}", "x: {N}", "lora: {{x: {N}}}", "tracking: {{tags: {N}}}",
    "model: {{quantize: {N}}}",
    "hydra: {N}", "hydra: {{launcher: {N}}}", "hydra: {{sweeper: {N}}}",
    "hydra: {{callbacks: {N}}}",
    "hydra: {{launcher: {{x: {N}}}}}", "hydra: {{sweeper: {{x: {N}}}}}", "hydra: {{env: {N}}}",
    "hydra: {{job_logging: {{version: 1, root: {{handlers: [x]}}, handlers: {{x: {N}}}}}}}",
    "hydra: {{hydra_logging: {{version: 1, root: {{handlers: [x]}}, handlers: {{x: {N}}}}}}}",
    "hydra: {{job_logging: {N}}}", "hydra: {{searchpath: ['pkg://canary']}}", "{N}",
    "hydra: {{searchpath: [\"${{oc.decode:'pkg://canary'}}\"]}}", "hydra: {{run: {{dir: {N}}}}}",
    "hydra: \"${{oc.create:'{{searchpath: [pkg://canary]}}'}}\"", "hydra: {{run: {{dir: made}}}}",
    "hydra: {{job: {{env_set: {{PATH: x}}, env_copy: [HOME, NO_SUCH]}}}}",
    "hydra: {{verbose: {N}}}",
    "hydra: {{help: {{template: '$CONFIG $X'}}}}", "hydra: {{output_subdir: made}}", "seed: {N}",
    "hydra: {{job: {{chdir: true}}}}", "hydra: {{sweep: {{dir: {N}}}}}",
    "hydra: {{mode: MULTIRUN}}",
    "hydra: {{launcher: \"${{oc.create:'{{_target_: canary.fire}}'}}\"}}", "hydra: {{help: {N}}}",
    "hydra: {{job_logging: {{version: 1, formatters: {{f: {N}}}, root: {{handlers: []}}}}}}",
    "hydra: {{hydra_logging: {{version: 1, root: {{handlers: [x]}}, handlers: {{x: {{class: "
    "logging.FileHandler, filename: made.log}}}}}}}}", "data: {{path: {N}}}",
    "data: {{roles: {N}}}",
)  # fmt: skip
DEFAULTS = (
    "[main, _self_]", "[_self_, main]", "[../../x]", "[/etc/passwd]", "[main, x: y]", "[mine]",
    "{a: 1}",
    "[main, override hydra/launcher: mine, _self_]", "[main, hydra/callbacks: mine, _self_]", "5",
    "[main, override hydra/job_logging: default]", "[main, optional nope: x]", "[main, '${seed}']",
    "[main, lora@hydra.launcher: mine, _self_]", "[main, {pkg://canary: x}]", "[pkg://canary/x]",
    "[main, override hydra/sweeper: basic, _self_]", "[main, override hydra/output: x]",
    "[main, main]",
    "[main, hydra/env: mine, _self_]", "[main, _self_, {override lora: ../../x}]", "[null]", "[{}]",
    "[file:///etc/passwd]", "[main, {optimizer: [adam, lion]}, _self_]",
    "[main, lora: mine, _self_]",
)  # fmt: skip
WHOLE = ("", "\0", "- a", "5", "null", BOMB, "\ufeffseed: 1", "seed: 1\nseed: 2", "a: " + "[" * 400,
         "a: " + "{a: " * 300, "x" * 200_000, "%YAML 9.9\n---\nseed: 1", "--- 1\n--- 2", "\udcff",
         "# @package hydra.launcher\n_target_: canary.fire", "lora: &a {rank: 4, x: *a}",
         "# @package _global_\nhydra: {callbacks: {x: {_target_: canary.fire}}}",
         "defaults: [main, _self_]\nlora: " + "{a: " * 40 + "1" + "}" * 40)  # fmt: skip


def folders(rng: random.Random, _: Path) -> Case:
    """`--config-dir` with hostile files: a primary config, a group's file or Hydra's own."""
    spot = rng.choice(SPOTS).replace("{{", "{").replace("}}", "}").replace("{N}", rng.choice(NODES))
    text = f"defaults: {rng.choice(('[main, _self_]',) * 6 + DEFAULTS)}\n{spot}\n"
    if rng.random() < 0.2:
        text = rng.choice(WHOLE)
    mine = rng.choice((*NODES, *WHOLE, "rank: 4", "# @package _global_\n" + spot,
                       f"# @package {rng.choice(('hydra.launcher', 'hydra', 'x.y', '_group_'))}\n"
                       "_target_: canary.fire"))  # fmt: skip
    spots = ("lora/mine", "hydra/launcher/mine", "hydra/callbacks/mine", "hydra/env/mine",
             "hydra/help/mlx_ft", "hydra/job_logging/none", "hydra/sweeper/mlx_ft", "hydra/config",
             "main", "lora/default", "hydra/job_logging/default",
             "hydra/hydra_logging/none")  # fmt: skip
    files = {"mine/primary.yaml": text, f"mine/{rng.choice(spots)}.yaml": mine}
    args = ["--config-dir", "mine"]
    if rng.random() < 0.75:
        args += [
            "--config-name",
            rng.choice(("primary",) * 8 + ("../mine/primary", "primary.yaml")),
        ]
    args += rng.choice(([], [], [], ["-m"], ["-m", "seed=1,2"], ["--cfg", "all"], ["--help"],
                        ["--info", "all"], ["lora=mine"], ["-m", "hydra/launcher=mine"],
                        ["--cfg", "job", "--resolve"], ["--hydra-help"]))  # fmt: skip
    return Case("files", args, ["."], _shows(args), files)


FLAGS = (
    ["--help"], ["-h"], ["--hydra-help"], ["--version"], ["--cfg"], ["--cfg", "job"], ["--cfg",
    "all"],
    ["--cfg", "hydra"], ["--cfg", "x"], ["--cfg", "job", "--resolve"], ["-p", "lora", "-c", "job"],
    ["--cfg", "job", "-p", "x.y"], ["--cfg", "job", "-p", "__class__"], ["--resolve"], ["-p", "x"],
    ["--info"], ["--info", "all"], ["--info", "config"], ["--info", "defaults"], ["--info",
    "plugins"],
    ["--info", "defaults-tree"], ["--info", "searchpath"], ["--info", "x"], ["--run"], ["-r"],
    ["-m"],
    ["--experimental-rerun", "x.pickle"], ["--experimental-rerun"], ["--exp", "x"], ["--shell"],
    ["--config-name"], ["--config-name", "x"], ["--config-name", "../../x"], ["-cn", "main"],
    ["-cn="],
    ["--config-name", "/etc/passwd"], ["--config-name", "pkg://canary"], ["--config-name",
    "lora/mlp"],
    ["--config-dir"], ["--config-dir", "x"], ["--config-dir", "/"], ["--config-dir",
    "../rows.jsonl"],
    ["--config-dir", "pkg://canary"], ["--config-dir", ""], ["--config-dir", "a" * 5000], ["-cd",
    "."],
    ["--config-path", "x"], ["--config-path", ".."], ["-cp", "pkg://canary"], ["-cp", "\x1b[2J"],
    ["--shell-completion", "x=y"], ["-sc", "query=bash"], ["-sc", "install=x"], ["-sc", "query=x"],
    ["-sc", "install=canary", "uninstall=y"], ["-sc", "uninstall=bash"], ["-sc"], ["--"], ["-"],
    ["-x"],
    ["--cfg", "job", "-m"], ["--", "--help"], ["@x"], ["--config-dir", os.fsdecode(b"\xff")],
    ["-hm"],
    ["--config-name", "a\nb"], ["--config-name", os.fsdecode(b"\xff")], ["-mm"], ["--multirun=x"],
)  # fmt: skip


def _shows(args: list[str]) -> bool:
    showing = ("--h", "-h", "--v", "--c", "-c", "--i", "--s", "-sc", "-i")
    quiet = ("--config", "-cn", "-cd", "-cp")
    return any(arg.startswith(showing) and not arg.startswith(quiet) for arg in args)


def flags(rng: random.Random, _: Path) -> Case:
    """Hydra's options."""
    args = [
        *rng.choice(FLAGS),
        *rng.choice(([], [], ["lora.rank=4"], ["lora.rank=x"], ["seed=${lora}"])),
    ]
    if rng.random() < 0.2:
        args += rng.choice(FLAGS)
    return Case("flags", args, ["."], prints=True)


def sweeps(rng: random.Random, _: Path) -> Case:
    """`-m`: grids of good and bad values."""
    key = rng.choice([name for name in keys() if name not in (*WRITTEN, *LONG)])
    bad = [text for text in WRONG if len(text) < 100]
    many = rng.choice((f"{_valid(key, rng)},{rng.choice(bad)}", f"{_valid(key, rng)}",
    rng.choice(bad),
                       f"{rng.choice(LOOKUPS)},1", "range(1,100000)", "glob(*)",
                       f"{quoted_target(rng)},1",
                       "choice(1,2)", "1,1", "range(1,1e9)", "1,2,", ",", "sort(1,2)",
                       "shuffle(3,1)",
                       "interval(1,2)", "tag(a,choice(1,2))", "range(1,2,0)",
                       "range(1,2,1e-9)"))  # fmt: skip
    extra = rng.choice(([], [], ["hydra.sweep.dir=sw"], ["hydra.sweep.subdir=../../esc"],
                        ["hydra.sweep.subdir=${hydra.job.num}"], ["seed=range(1,2000)"],
                        ["hydra.sweep.dir='\x1b[2J'"], ["hydra/launcher=basic"],
                        ["hydra.sweep.subdir=${hydra:runtime.cwd}/x"]))  # fmt: skip
    return Case("sweeps", ["-m", f"{key}={many}", *extra], ["sw", "..", "."])


def mutated(rng: random.Random, scratch: Path) -> Case:
    """Another case with characters replaced, inserted or left out."""
    case = rng.choice((wrong, structure, lookups, targets, hydras, sweeps, groups))(rng, scratch)
    alphabet = "=,:.${}[]()'\"\\+~@/-_ \n\t*0aé\udcff\x01#&!|%<>?;^`"
    args = []
    for arg in case.args:
        letters = list(arg[:400])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(letters) + 1)
            letters[at : at + rng.randint(0, 1)] = rng.choice(("", *alphabet))
        args.append("".join(letters))
    args = [arg for arg in args if not arg.startswith((*WRITTEN, *LONG))]
    return Case("mutated", args, ["."], _shows(args))


Make = Callable[[random.Random, Path], Case]
KINDS: tuple[tuple[Make, float], ...] = (
    (valid, 14), (edges, 8), (wrong, 14), (paths, 8), (tracked, 3), (groups, 6), (structure, 9),
    (lookups, 6), (targets, 8), (hydras, 6), (folders, 10), (flags, 4), (sweeps, 4), (mutated, 10),
)  # fmt: skip
