"""`mlx-ft estimate`: what a run will take, before anything is downloaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft.runtime import GIB

if TYPE_CHECKING:
    from mlx_ft.config.schema import Config
    from mlx_ft.memory_estimate import Estimate
    from mlx_ft.memory_knobs import Knob
    from mlx_ft.outlook import Outlook

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

TEXT = "memory, disk and hours of a run, before anything is downloaded"
HELP = """\
What a run with these settings will take: memory by what it is for, what saves some of it, disk
and hours. Takes the settings of `mlx-ft train`; downloads nothing, and needs no model: recipes
carry their architecture's numbers. docs/memory.md says how it is counted.
"""
EXAMPLES = """\
examples:
  mlx-ft estimate                                        the run that `mlx-ft train` would be
  mlx-ft estimate experiment=mistral_7b_m4
  mlx-ft estimate experiment=codellama_7b memory_profile=m1_max_32gb lora.rank=64
  mlx-ft estimate model.path=org/name --config config.json memory_profile=m4_24gb
"""
ROWS, TOKENS = 1000, 300  # as mlx_ft.outlook assumes, which a help text does not wait for


def add_commands(commands: Commands) -> None:
    """Add `estimate`."""
    made = commands.add_parser(
        "estimate", help=TEXT, description=HELP, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `mlx-ft train`")
    made.add_argument("--config", type=Path, metavar="FILE", dest="numbers",
                      help="the config.json of a model that is not here")  # fmt: skip
    made.add_argument("--rows", type=_count, metavar="N",
                      help=f"training rows to assume; default: your data's, or {ROWS:,} where they "
                           "cannot be encoded without a download")  # fmt: skip
    made.add_argument("--tokens", type=_count, metavar="N",
                      help=f"tokens of a row to assume; default: as --rows, {TOKENS}")  # fmt: skip
    made.add_argument("--json", action="store_true", help="print it as JSON, in bytes and seconds")
    made.set_defaults(command=run)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**12:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number above 0")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Print the estimate. Raises UserError kinds."""
    from mlx_ft.config import compose

    command = compose.CommandLine(tuple(args.overrides))
    compose.check(command)
    asked: Config = compose.resolve(compose.compose(compose.open_hydra(command), command))
    from mlx_ft import runtime

    runtime.prepare(asked.threads, Path(asked.paths.cache_dir).expanduser())
    from mlx_ft.console import configure_logging
    from mlx_ft.outlook import outlook

    configure_logging("warning")
    ahead = outlook(asked, numbers=args.numbers, rows=args.rows, tokens=args.tokens)
    found = _figures(ahead)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(_lines(found, ahead)))
    return 0


def _figures(ahead: Outlook) -> dict[str, Any]:
    """Everything as numbers: bytes, seconds."""
    from mlx_ft import memory_plan
    from mlx_ft.memory_knobs import knobs
    from mlx_ft.models.tokenizer import needs_download

    job, work = ahead.job, ahead.work
    config, now = job.config, job.estimate
    profile = config.memory_profile
    columns = int(profile.max_seq_length)
    needs = job.needs(columns)
    peak, beside = job.peak(columns), memory_plan.beside(config)
    longest = work.longest or columns  # what there will be at once, where it is known
    saving = knobs(
        now, job.rows, longest, job.rows * longest, device=ahead.device, packed=ahead.packed
    )
    held = {
        "weights": now.weights, "adapter": now.adapter, "best adapter": now.adapter,
        "gradients": now.adapter, "optimizer": now.adapter * now.moments,
    }  # fmt: skip
    during = {"activations": needs.kept, "one layer backward": needs.layer,
              "logits and loss": needs.loss, "update": needs.update}  # fmt: skip
    download = now.parameters * 2 if needs_download(config.model) else 0
    return {
        "model": config.model.path,
        "parameters": now.parameters,
        "trainable": now.trainable,
        "profile": asdict(profile),
        "memory": {**held, **during, "mlx_peak": peak, "beside": beside, "total": peak + beside},
        "longest_row": None if work.longest is None else ahead.needed,
        "budget": {"size": ahead.room.size, "bound": ahead.room.bound,
                   "fits": ahead.needed <= ahead.room.size},
        "knobs": [asdict(knob) for knob in saving],
        "disk": {"adapter": job.adapter_file(), "checkpoint": job.checkpoint(),
                 "checkpoints": job.checkpoint() * config.checkpoint.keep_last,
                 "download": download},
        "work": asdict(work),
        "time": {"operations": ahead.operations, "seconds": ahead.seconds, "reads": ahead.reads,
                 **asdict(ahead.speed)},
    }  # fmt: skip


def _lines(found: dict[str, Any], ahead: Outlook) -> Iterator[str]:
    from mlx_ft import memory_plan
    from mlx_ft.memory_knobs import Knob

    job, work, room = ahead.job, ahead.work, ahead.room
    config, now, memory = job.config, job.estimate, found["memory"]
    profile = config.memory_profile
    accumulation = profile.grad_accumulation_steps
    yield f"{config.model.path}: {now.parameters / 1e6:,.1f} M parameters"
    yield (
        f"adapter of rank {now.rank} on {now.adapted} of {now.dimensions.layers} layers: "
        f"{now.trainable / 1e6:,.2f} M parameters"
    )
    yield (
        f"memory_profile={profile.name}: {job.rows} x {profile.max_seq_length} tokens at once, "
        f"{accumulation} times a step, {profile.compute_dtype}"
        f"{_checkpointed(now)}"
    )
    yield ""
    yield from _table(memory, now.weight_bits, now.moments, now.offloaded)
    if work.longest is not None:
        yield f"with the longest row of your data ({work.longest} tokens): " \
              f"{_gb(found['longest_row'])}"  # fmt: skip
    columns = work.longest or int(profile.max_seq_length)
    if found["budget"]["fits"]:
        yield f"fits into {_gb(room.size)}: {room.bound}"
    elif short := memory_plan.shortage(config, now, columns, room):
        yield f"does NOT fit: {short}"
    else:
        yield f"does NOT fit into {_gb(room.size)}: {room.bound}; one row at once does"
    yield ""
    yield from _saving([Knob(**knob) for knob in found["knobs"]])
    yield ""
    yield from _disk(found["disk"], config)
    yield ""
    if config.data.metric != "none":
        rows_at_once = config.eval.generation_batch_size
        yield f"Test questions, {rows_at_once} at once (eval.generation_batch_size), may need more"
        yield "memory than the training, and take their own time: neither is counted."
        yield ""
    yield from _time(ahead)


def _checkpointed(now: Estimate) -> str:
    if not now.checkpointed:
        return ""
    return ", checkpointed" if now.checkpointed == now.adapted else (
        f", {now.checkpointed} layers checkpointed")  # fmt: skip


def _table(
    memory: dict[str, int], weight_bits: float, moments: int, offloaded: bool
) -> Iterator[str]:
    rows = [
        ("weights", memory["weights"], f"{weight_bits:.2f} bits each"),
        ("adapter", memory["adapter"] + memory["best adapter"], "and its best copy, float32"),
        ("gradients", memory["gradients"], "of the adapter, added up"),
        ("optimizer", memory["optimizer"], f"{moments} numbers per trainable parameter"),
        ("activations", memory["activations"], "kept for the backward pass"),
    ]
    largest = max(("one layer backward", "logits and loss"), key=lambda name: memory[name])
    for name, about in (("one layer backward", "the largest one"),
                        ("logits and loss", "a chunk at a time")):  # fmt: skip
        later = "" if name == largest else "; not at the peak"
        rows.append((name, memory[name], about + later))
    yield from (f"{name:<20}{_gb(size):>10}   {about}" for name, size, about in rows)
    step = sum(size for name, size, _ in rows[:5]) + memory[largest]
    # What is offloaded is there as long as a row's first activations are computed.
    new = "   when a row is new: with all of the weights" if offloaded else ""
    is_new = memory["mlx_peak"] > step
    yield f"{'peak of MLX':<20}{_gb(memory['mlx_peak']):>10}{new if is_new else ''}"
    yield f"{'caches, process':<20}{_gb(memory['beside']):>10}   MLX's buffers for reuse; Python"
    yield f"{'all together':<20}{_gb(memory['total']):>10}"


def _saving(knobs: Sequence[Knob]) -> Iterator[str]:
    if not knobs:
        yield "No setting saves 1% or more."
        return
    yield "What saves memory, the most first:"
    width = max(len(knob.setting) for knob in knobs)
    for knob in knobs:
        yield f"  {knob.setting:<{width}}  {_gb(knob.saves):>9}   {knob.costs}"


def _disk(disk: dict[str, int], config: Config) -> Iterator[str]:
    kept = config.checkpoint.keep_last
    text = f"{_mb(disk['checkpoint'])} a checkpoint, {_mb(disk['checkpoints'])} for {kept} kept"
    yield f"disk: adapter file {_mb(disk['adapter'])}; {text}"
    if disk["download"]:
        yield f"      the model itself, about {_gb(disk['download'])} to download"


def _time(ahead: Outlook) -> Iterator[str]:
    from mlx_ft.memory_plan import READING

    seconds, work = ahead.seconds, ahead.work
    hours = f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"
    yield f"time: about {hours} of training, for {work.steps:,} steps, {work.epochs:,.2f} epochs"
    yield f"      of {work.about}"
    yield f"      at {ahead.speed.about}"
    if ahead.reads:
        yield f"      {_gb(ahead.reads)} of it read in the first epoch (train.offload_frozen), " \
              f"{ahead.reads / READING / 60:,.1f} minutes"  # fmt: skip
        yield f"      at {READING / 1e9:.2f} GB/s, a cold disk's on Linux; none for rows that an " \
              "earlier run left in the cache"  # fmt: skip


def _gb(size: float) -> str:
    return f"{size / GIB:,.2f} GB"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
