"""What lies ahead of a run: its memory and its hours, by its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_ft import memory, memory_plan, runtime
from mlx_ft.config.schema import Config
from mlx_ft.data.batch import Batches
from mlx_ft.data.prepare import prepare
from mlx_ft.errors import ModelError
from mlx_ft.memory_plan import Job, Speed
from mlx_ft.memory_watch import Budget
from mlx_ft.models import architecture
from mlx_ft.models.load import locate
from mlx_ft.models.tokenizer import deferred_tokenizer, fetch_tokenizer, is_here
from mlx_ft.trainer import plan

ROWS, TOKENS, TARGETS = 1000, 300, 0.5  # assumed, where the rows cannot be read as tokens
MAC_DEVICE = "metal"


@dataclass(frozen=True)
class Work:
    """The job's rows. tokens: of the whole training; length: of a row; longest: None if assumed.

    targets: share of the tokens that carry loss. about: where all this comes from. first: its
    micro-batches in the first epoch.
    """

    rows: int
    epochs: float
    steps: int
    tokens: float
    length: float
    longest: int | None
    targets: float
    about: str
    first: int


@dataclass(frozen=True)
class Outlook:
    """A job with its work, and the machine that it is for. packed: the base is quantized."""

    job: Job
    work: Work
    room: Budget
    speed: Speed
    device: str
    packed: bool

    @property
    def operations(self) -> float:
        """Floating-point ones of the whole training."""
        return self.job.operations(self.work.tokens, self.work.length, self.work.targets)

    @property
    def seconds(self) -> float:
        """Of the training with its reads, without what is before and after it."""
        return self.operations / self.speed.flops + self.reads / memory_plan.READING

    @property
    def reads(self) -> int:
        """Bytes that `train.offload_frozen` reads in the first epoch, if no row is remembered."""
        return self.job.reads(self.work.first)

    @property
    def needed(self) -> int:
        """Bytes at the longest row, if rows are known, or else at the longest allowed."""
        config = self.job.config
        longest = self.work.longest or int(config.memory_profile.max_seq_length)
        return self.job.peak(longest) + memory_plan.beside(config)


def outlook(
    asked: Config,
    *,
    numbers: Path | None = None,
    rows: int | None = None,
    tokens: int | None = None,
) -> Outlook:
    """Of the run that `asked` would be. MLX may be imported by now (`runtime.prepare`).

    numbers: the model's config.json, if it is not to be found by its name. rows, tokens: to be
    assumed instead of the data's. Raises UserError kinds.
    """
    mac = asked.memory_profile.name in memory_plan.MACS
    device = MAC_DEVICE if mac else runtime.select_device(asked.device)
    config = memory.resolve(asked, device)
    found = architecture.find(config.model, numbers)
    job = memory_plan.plan(config, found)
    room = memory_plan.room(config, device)
    length = config.memory_profile.max_seq_length
    work = _work(config, rows, tokens)
    fitted = memory_plan.fitted(config, asked, job.estimate, work.longest or length, room.size)
    if fitted is not config:
        job, work = replace(job, config=fitted), _work(fitted, rows, tokens)
    speed = memory_plan.speed(fitted, device)
    return Outlook(job, work, room, speed, device, "quantization" in found)


def _work(config: Config, rows: int | None, tokens: int | None) -> Work:
    """From the data where they can be encoded here and now, otherwise by assumption."""
    paths = config.data.path if isinstance(config.data.path, list) else [config.data.path]
    remote = any("hub:" in str(path) for path in paths)
    cache_dir = Path(config.paths.cache_dir).expanduser()
    if rows is None and tokens is None and not remote and is_here(config.model, cache_dir):
        return _counted(config)
    return _assumed(config, rows or ROWS, tokens or TOKENS)


def _counted(config: Config) -> Work:
    profile, cache_dir = config.memory_profile, Path(config.paths.cache_dir).expanduser()
    try:  # known rows need none of it, and transformers takes its time
        tokenizer: Any = deferred_tokenizer(locate(config.model, cache_dir))
    except ModelError:  # its weights are not here
        tokenizer = fetch_tokenizer(config.model, cache_dir)
    dataset = prepare(config.data, tokenizer, profile.max_seq_length, config.seed, cache_dir)
    lengths, weights = dataset.train.lengths, dataset.weights
    batches = Batches(
        dataset.train, profile.micro_batch_size, config.seed, pad_id=0, weights=weights
    )
    planned = plan(config.train, len(batches), profile.grad_accumulation_steps)
    epoch = float(weights @ lengths)
    return Work(
        len(lengths), planned.epochs, planned.steps, epoch * planned.epochs,
        float(lengths.mean()), int(lengths.max()),
        float(dataset.train.target_counts.sum() / lengths.sum()),
        f"the {len(lengths):,} training rows of your data, {lengths.mean():,.0f} tokens each",
        min(planned.micro_steps, len(batches)),
    )  # fmt: skip


def _assumed(config: Config, rows: int, tokens: int) -> Work:
    profile = config.memory_profile
    batches = -(-rows // profile.micro_batch_size)
    planned = plan(config.train, batches, profile.grad_accumulation_steps)
    length = min(tokens, profile.max_seq_length)
    about = f"{rows:,} rows of {length} tokens, half of them targets (assumed: --rows, --tokens)"
    return Work(
        rows, planned.epochs, planned.steps, planned.epochs * rows * length, length, None,
        TARGETS, about, min(planned.micro_steps, batches),
    )  # fmt: skip
