"""Whether a training job fits into memory beside the model that answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from mlx_ft.config import Config
from mlx_ft.runtime import GIB

logger = logging.getLogger(__name__)

SPARE = 0.05  # of all memory: for what nobody can foresee


@dataclass(frozen=True)
class Plan:
    """Bytes. needed: by the job's process at its longest row; free: as things are now."""

    needed: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether the job can run while the model stays."""
        return self.needed <= self.free

    @property
    def said(self) -> str:
        """For the log."""
        return f"{self.needed / GIB:.2f} GB needed, {self.free / GIB:.2f} GB free"


def plan(config: Config, limit: int | None) -> Plan:
    """For the run that `config` would be. limit: bytes for serving and training together; None:
    what the machine has.

    Encodes the rows as the run will, which then finds them in the cache. Raises UserError kinds.
    """
    from mlx_ft import memory, memory_plan, runtime
    from mlx_ft.memory_reading import Reader

    device = runtime.select_device(config.device)
    reading = Reader(device)()
    free = reading.available - int(SPARE * reading.total)
    if reading.device_total is not None:  # what a GPU has, less what is on it
        free = min(free, reading.device_total - reading.mlx_active - reading.mlx_cache)
    if limit is not None:
        free = min(free, limit - reading.rss)
    resolved = memory.resolve(config, device)
    needed = _peak(resolved) + memory_plan.beside(resolved)
    return Plan(needed, max(0, free))


def _peak(config: Config) -> int:
    """MLX's own, in the job's process."""
    from mlx_ft import memory_plan
    from mlx_ft.data.prepare import prepare
    from mlx_ft.models import architecture
    from mlx_ft.models.load import locate
    from mlx_ft.models.tokenizer import deferred_tokenizer

    cache_dir = Path(config.paths.cache_dir).expanduser()
    located = locate(config.model, cache_dir)
    job = memory_plan.plan(config, located.config or architecture.find(config.model))
    size = config.memory_profile.max_seq_length
    dataset = prepare(config.data, deferred_tokenizer(located), size, config.seed, cache_dir)
    return job.peak(int(dataset.train.lengths.max()))
