"""What a training job may be told, and the overrides of `train` that become of it.

Only these: whatever a request holds, no other key, no interpolation, no `_target_` and no path
gets from it to a command line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mlx_ft.config import quoted
from mlx_ft.serve.bases import Base, composed
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.job import Job
from mlx_ft.serve.names import made
from mlx_ft.serve.rows import ROWS, digest
from mlx_ft.serve.schemas import Closed
from mlx_ft.serve.server import Server
from mlx_ft.serve.state import absent

VALID = "valid.jsonl"
MODULE = re.compile(r"all-linear|[A-Za-z][A-Za-z0-9_.]*")  # q_proj, self_attn.q_proj, attention
EPOCHS = 3.0  # unless told, as OpenAI's `auto` often is


class Lora(Closed):
    """The adapter, by the names of PEFT."""

    r: int = Field(16, ge=1, le=512)
    lora_alpha: float = Field(32.0, gt=0, le=10**6)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: (
        Annotated[str, Field(max_length=100)]
        | Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=50)]
        | None
    ) = None
    use_rslora: bool = False
    num_layers: int | None = Field(None, ge=1, le=1000, description="The last ones; not PEFT's.")
    bias: Literal["none"] = "none"
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"

    def overrides(self) -> list[str]:
        """Raises Refused."""
        found = [f"lora.rank={self.r}", f"lora.alpha={self.lora_alpha!r}",
                 f"lora.dropout={self.lora_dropout!r}"]  # fmt: skip
        if self.use_rslora:
            found.append("lora.scaling=rslora")
        if self.num_layers is not None:
            found.append(f"lora.num_layers={self.num_layers}")
        if self.target_modules is None:
            return found
        given = self.target_modules
        modules = [given] if isinstance(given, str) else given
        if wrong := [name for name in modules if not MODULE.fullmatch(name)]:
            raise Refused(
                f"target_modules: found {wrong[0]!r}; expected names such as q_proj",
                param="lora_config.target_modules", code="invalid_value",
            )  # fmt: skip
        return [*found, f"lora.target_modules=[{','.join(map(quoted, modules))}]"]


class Training(Closed):
    """How to train, by the names that trainers commonly have."""

    num_epochs: float | None = Field(None, gt=0, le=10_000)
    max_steps: int | None = Field(None, ge=1, le=10**7)
    batch_size: int | None = Field(None, ge=1, le=1024)
    gradient_accumulation_steps: int | None = Field(None, ge=1, le=1024)
    learning_rate: float | None = Field(None, gt=0, le=10)
    weight_decay: float | None = Field(None, ge=0, le=10)
    warmup_ratio: float | None = Field(None, ge=0, le=1)
    max_seq_length: int | None = Field(None, ge=8, le=1 << 20)
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    save_steps: int | None = Field(None, ge=1, le=10**6)
    seed: int = Field(42, ge=0, le=2**32 - 1)

    def overrides(self) -> list[str]:
        """A number of steps wins over a number of epochs."""
        found = [f"data.valid_fraction={self.validation_fraction!r}", f"seed={self.seed}"]
        if self.max_steps is not None:
            found.append(f"train.max_steps={self.max_steps}")
        else:
            found += [f"train.epochs={self.num_epochs or EPOCHS!r}", "train.max_steps=null"]
        profile = {
            "memory_profile.micro_batch_size": self.batch_size,
            "memory_profile.grad_accumulation_steps": self.gradient_accumulation_steps,
            "memory_profile.max_seq_length": self.max_seq_length,
            "checkpoint.every": self.save_steps,
        }
        if self.batch_size is not None and self.gradient_accumulation_steps is None:
            profile["memory_profile.grad_accumulation_steps"] = 1
        rates = {
            "optimizer.learning_rate": self.learning_rate,
            "optimizer.weight_decay": self.weight_decay,
            "optimizer.warmup_ratio": self.warmup_ratio,
        }
        given = {**profile, **rates}
        return found + [f"{key}={value!r}" for key, value in given.items() if value is not None]


@dataclass(frozen=True)
class Order:
    """A job that is asked for. rows, valid: JSON Lines; asked: what is shown of it again."""

    base: Base
    adapter: str
    dataset: str
    rows: bytes
    valid: bytes | None = None
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    asked: dict[str, Any] = field(default_factory=dict)
    key: str | None = None  # of idempotency

    def place(self, here: Server) -> tuple[Job, bool]:
        """Queue it: (the job, whether it is a new one).

        Raises Refused, BadName, ConfigError, Conflict, Full.
        """
        here.shelf.free_name(self.adapter)
        if not here.bases.is_here(self.base):
            raise absent(self.base)
        job_id = made("job")
        folder = here.store.home / "jobs" / job_id
        overrides = [
            *self.base.overrides, "data=custom", *self._data(folder),
            *self.lora.overrides(), *self.training.overrides(),
            f"tracking.run_name={quoted(self.adapter)}",
            f"paths.cache_dir={quoted(str(here.settings.cache_dir))}", *here.settings.tracking,
        ]  # fmt: skip
        composed(*overrides)  # whatever the schema alone does not know is told now
        asked = {**self.asked, "rows": digest(self.rows), "adapter": self.adapter,
                 "valid": None if self.valid is None else digest(self.valid)}  # fmt: skip
        job = Job(job_id, self.adapter, self.base.name, self.dataset, overrides, asked,
                  idempotency_key=self.key)  # fmt: skip
        files = {ROWS: self.rows, **({} if self.valid is None else {VALID: self.valid})}
        found = here.jobs.add(job, files)
        return found, found is job

    def _data(self, folder: Path) -> Sequence[str]:
        paths = {"data.path": folder / ROWS}
        if self.valid is not None:
            paths["data.valid_path"] = folder / VALID
        return [f"{key}={quoted(str(path))}" for key, path in paths.items()]
