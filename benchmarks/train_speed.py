"""Training speed, memory and result: mlx-ft, mlx-lm, and transformers + PEFT on torch.

    python benchmarks/train_speed.py [--repeats 5] [--json FILE] [--plot FILE]

Everybody trains the same LoRA (rank 8, scale 2, all projections of the last 16 layers, no
dropout) on the same float32 weights of SmolLM2-135M-Instruct and the same rows, text-to-SQL as
they come (`plain`) and with two tables' schema in the prompt (`tables`): 3 epochs of 64 rows, 4 at
once, AdamW at a constant rate, loss on the answer only (up to its end-of-turn token; PEFT and
mlx-lm go on to the newline after it, mlx-lm to a token of padding). Frozen layers are cached from
the second epoch on where `train.frozen_cache=auto` does so (`tables`, not `plain`), which
`frozen_cache=false` goes without; `2 rows at once` and `1 row at once`
take a step in micro-batches of so many, `offloaded` has the layers below the adapter in a file
(`train.offload_frozen=true`), both for less memory. Each run is a process of its own; the
order alternates from repeat to repeat, whose number is the seed. Peers: mlx-lm's own trainer, as
installed and with the BLAS of mlx-ft loaded first; a plain torch loop in the environment of
`.ci/peers.sh`, made when missing. All must give the embedded model's logits.

tokens/s: tokens of the rows, without padding, by the wall time between the ends of steps, with
whatever lies between them, such as logs and data, but no validation. The first 3 steps warm up and
do not count. mlx-lm as installed is far slower: it takes 3 steps, of which 2 count, and gives no
loss. Peak memory: the process's largest resident set. Validation loss: of the last adapter, by one
judge on plain padded rows. Every run of ours starts with an empty cache. Medians.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring
from measuring import ROOT, median
from speed import rows

SPEED = ROOT / "benchmarks/speed"
Result = dict[str, Any]

JOB: Result = {
    "rank": 8,
    "scale": 2.0,
    "layers": 16,
    "learning_rate": 1e-3,
    "batch": 4,
    "tolerance": 1e-3,
}
OURS = "mlx-ft"
INSTALLED = "mlx-lm as installed"
PEERS: dict[str, Result] = {
    INSTALLED: {"blas": False},
    "mlx-lm, same BLAS": {"blas": True},
    "transformers + PEFT": {"dtype": "float32"},
}
MORE_PEERS: dict[str, Result] = {
    "transformers + PEFT, bfloat16": {"dtype": "bfloat16"}
}  # another computation
OFF = {
    "packing=none": ["data.packing=none"],
    "share_prefixes=false": ["data.share_prefixes=false"],
    "targets_only=false": ["train.targets_only=false"],
    "frozen_cache=false": ["train.frozen_cache=false"],
}
SMALL = ["memory_profile.micro_batch_size=2", "memory_profile.grad_accumulation_steps=2"]
SMALLEST = ["memory_profile.micro_batch_size=1", "memory_profile.grad_accumulation_steps=4"]
VARIANTS: dict[str, list[str]] = {
    OURS: [],
    f"{OURS}, 2 rows at once": SMALL,
    f"{OURS}, 1 row at once": SMALLEST,
    f"{OURS}, offloaded": ["train.offload_frozen=true"],
    f"{OURS}, offloaded, 1 row": ["train.offload_frozen=true", *SMALLEST],
    **{f"{OURS}, {name}": keys for name, keys in OFF.items()},
    f"{OURS}, all four off": [key for keys in OFF.values() for key in keys],
}


def overrides(job: Result, folder: Path) -> list[str]:
    """The job as `train.py` takes it."""
    return [
        "data=custom", f"data.path={job['data']}/train.jsonl",
        f"data.valid_path={job['data']}/valid.jsonl", f"model.path={job['model']}",
        f"lora.rank={job['rank']}", f"lora.alpha={job['scale'] * job['rank']}",
        f"lora.num_layers={job['layers']}", f"optimizer.learning_rate={job['learning_rate']}",
        "optimizer.schedule=constant", "optimizer.warmup_steps=0", "optimizer.max_grad_norm=null",
        f"memory_profile.micro_batch_size={job['batch']}",
        "memory_profile.grad_accumulation_steps=1", f"train.max_steps={job['steps']}",
        "eval.every=0", "eval.before=false", "eval.max_rows=4", "checkpoint.best=false",
        "tracking=none", f"seed={job['seed']}", f"hydra.run.dir={folder / 'run'}",
        f"paths.cache_dir={folder / 'cache'}",
    ]  # fmt: skip


def changed(given: list[str], own: list[str]) -> list[str]:
    """The arguments with those of a variant in their place."""
    keys = {text.partition("=")[0] for text in own}
    return [text for text in given if text.partition("=")[0] not in keys] + own


def train(who: str, job: Result, folder: Path) -> Result:
    """One run in a process of its own."""
    folder.mkdir(parents=True)
    steps = folder / "steps.jsonl"
    job = {**job, "adapter": str(folder / "adapter"), "steps_file": str(steps)}
    if who in VARIANTS:
        command = [sys.executable, str(SPEED / "ours.py"), str(steps)]
        command += changed(overrides(job, folder), VARIANTS[who])
        job["adapter"] = str(folder / "run/adapter")
    else:
        job |= {**PEERS, **MORE_PEERS}[who]
        (folder / "job.json").write_text(json.dumps(job))
        torch = "dtype" in job
        python = measuring.peers_python() if torch else sys.executable
        script = SPEED / ("peft_lora.py" if torch else "mlx_lm_lora.py")
        command = [python, "-W", "ignore", str(script), str(folder / "job.json")]
    done = measuring.run(command, TOKENIZERS_PARALLELISM="false")
    lines = [json.loads(line) for line in steps.read_text().splitlines()]
    if len(lines) != job["steps"]:
        sys.exit(f"{who} took {len(lines)} steps of {job['steps']}:\n{done.output[-2000:]}")
    trainable = [json.loads(line)["trainable"] for line in done.output.splitlines()
                 if line.startswith('{"trainable"')]  # fmt: skip
    timed = lines[job["warm_up"] :]
    tokens = sum(line["tokens"] for line in timed)
    seconds = lines[-1]["at"] - lines[job["warm_up"] - 1]["at"]
    return {
        "who": who, "seed": job["seed"], "tokens_per_second": tokens / seconds, "tokens": tokens,
        "seconds": seconds, "timed_steps": len(timed), "peak_mb": done.peak_mb,
        "adapter": job["adapter"], "trainable": trainable[0] if trainable else None,
        "steps": lines,
    }  # fmt: skip


def in_turn(names: list[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, name): forwards, backwards, and so on."""
    for repeat in range(repeats):
        yield from ((repeat, name) for name in (names[::-1] if repeat % 2 else names))


def judge(results: list[Result], job: Result) -> float:
    """Put each run's validation loss into it; the base model's."""
    judged = [result for result in results if result["who"] != INSTALLED]
    shape = [str(job[key]) for key in ("rank", "scale", "layers")]
    places = [result["adapter"] for result in judged]
    valid = str(Path(job["data"]) / "valid.jsonl")
    command = [sys.executable, str(SPEED / "judge.py"), job["model"], valid, *shape, *places]
    losses = json.loads(measuring.run(command).output.splitlines()[-1])
    for result in judged:
        result["val_loss"] = losses[result["adapter"]]
    return float(losses["base"])


def summarize(results: list[Result]) -> dict[str, Result]:
    """Medians of each participant."""
    found: dict[str, Result] = {}
    for who in dict.fromkeys(result["who"] for result in results):
        own = [result for result in results if result["who"] == who]
        rates = [result["tokens_per_second"] for result in own]
        found[who] = {
            "tokens_per_second": median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "peak_mb": median(result["peak_mb"] for result in own),
            "val_loss": median(result["val_loss"] for result in own if "val_loss" in result),
        }
    return found


def show(kind: str, found: dict[str, Result], base: float) -> None:
    ours = found.get(OURS)
    lines = []
    for who, own in found.items():
        rate, peak = own["tokens_per_second"], own["peak_mb"]
        loss = "" if own["val_loss"] != own["val_loss"] else f"{own['val_loss']:.4f}"
        compared = ours is not None and who != OURS
        lines.append([
            who, f"{rate:.1f}", f"{own['lowest']:.1f}-{own['highest']:.1f}",
            f"{ours['tokens_per_second'] / rate:.2f}x" if ours and compared else "",
            f"{peak:,.0f}", f"{ours['peak_mb'] / peak:.2f}x" if ours and compared else "", loss,
        ])  # fmt: skip
    head = ["", "tokens/s", "range", "ours is", "peak MB", "ours is", "val loss"]
    print(f"\nrows: {kind}; validation loss of the base {base:.4f}")
    print(measuring.table(head, lines))


def draw(kinds: dict[str, dict[str, Result]], axes: Any) -> None:
    """Speed and memory of the main participants, one bar for each kind of rows."""
    names = [who for who in (*PEERS, OURS) if all(who in found for found in kinds.values())]
    labels = {"plain": "short rows", "tables": "rows with schema"}
    for ax, key, title in (
        (axes[0], "tokens_per_second", "tokens/s"),
        (axes[1], "peak_mb", "peak memory (MB)"),
    ):
        height = 0.8 / len(kinds)
        for i, (kind, found) in enumerate(kinds.items()):
            places = [at + (i - (len(kinds) - 1) / 2) * height for at in range(len(names))]
            values = [found[who][key] for who in names]
            bars = ax.barh(
                places, values, height, color=measuring.COLOURS[i], label=labels.get(kind, kind)
            )
            ax.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=11)
        ax.set_yticks(range(len(names)), names)
        ax.margins(x=0.18)
        ax.set_title(title)
    axes[1].set_yticks([])
    axes[0].legend(loc="lower right", frameon=False)


def measure(kind: str, arguments: argparse.Namespace, scratch: Path, keep: Any) -> dict[str, Any]:
    """All runs on one kind of rows. keep: is told of every result, as this takes long."""
    data = scratch / kind
    rows.write(data, kind, arguments.rows, arguments.valid)
    steps = arguments.epochs * arguments.rows // int(JOB["batch"])
    job = {**JOB, "data": str(data), "model": str(scratch / "model"), "steps": steps}
    names = [n for n in (*VARIANTS, *PEERS, *MORE_PEERS) if n in arguments.who]
    results: list[Result] = []
    for index, (repeat, who) in enumerate(in_turn(names, arguments.repeats)):
        job |= {"seed": repeat, "steps": steps, "warm_up": arguments.warm_up}
        if who == INSTALLED:
            job |= {"steps": arguments.installed_steps, "warm_up": 1}
        result = train(who, job, scratch / f"{kind}-{index}")
        print(f"{kind:<8}{repeat + 1}  {who:<32}{result['tokens_per_second']:>8.1f} tokens/s"
              f"{result['peak_mb']:>8,.0f} MB", flush=True)  # fmt: skip
        results.append(result)
        keep({kind: results})
    if len({result["trainable"] for result in results} - {None}) > 1:
        sys.exit("the adapters are not of the same size")
    base = judge(results, job)
    return {"runs": results, "base_loss": base, "medians": summarize(results)}


def arguments_of(names: list[str]) -> argparse.Namespace:
    parser = measuring.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64, help="training rows")
    parser.add_argument("--valid", type=int, default=48, help="validation rows")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=3, help="steps that do not count")
    parser.add_argument("--installed-steps", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(rows.KINDS), choices=rows.KINDS)
    parser.add_argument("--who", nargs="+", choices=names, metavar="NAME",
                        default=[*VARIANTS, *PEERS], help=", ".join(map(repr, names)))  # fmt: skip
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of([*VARIANTS, *PEERS, *MORE_PEERS])
    about = measuring.machine()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        measuring.run([sys.executable, str(SPEED / "model.py"), str(scratch / "model")])
        for kind in arguments.kinds:
            found[kind] = measure(
                kind,
                arguments,
                scratch,
                lambda runs: measuring.keep(arguments.json, {**found, **runs}, about),
            )
            measuring.keep(arguments.json, found, about)
    for kind, result in found.items():
        show(kind, result["medians"], result["base_loss"])
    medians = {kind: result["medians"] for kind, result in found.items()}
    measuring.plot(arguments.plot, functools.partial(draw, medians), columns=2)


if __name__ == "__main__":
    main()
