"""The schema of a run: plain dataclasses, each field with its meaning and range.

The YAML files in `conf/` hold the values; the defaults here are those of the group's default
file. `docs/configuration.md` is generated from both. OmegaConf 2.3 knows neither `Literal` nor
unions of containers, so a field that takes "auto or a number" is `Any` here and is checked by
`check.py` against the `kind` in its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_ft.config.option import option
from mlx_ft.config.schema_data import DataConfig
from mlx_ft.config.schema_sweep import SweepConfig
from mlx_ft.config.schema_train import CheckpointConfig, TrainConfig


@dataclass
class ModelConfig:
    """The base model."""

    path: str = option(
        "embedded",
        "Where the model is: `embedded` (SmolLM2-135M-Instruct, shipped as a Python package), "
        "a local folder, a `.gguf` file, or a repository on the Hugging Face Hub.",
    )
    revision: str | None = option(None, "Branch, tag or commit of a hub repository.")
    quantize: Any = option(
        None,
        "Quantize an unquantized base at load (QLoRA): `{bits: 4, group_size: 64, mode: affine}`. "
        "Follows the memory profile unless set.",
        kind="mapping|null|'auto'",
    )
    dequantize: Any = option(
        "auto",
        "Turn a quantized base into plain floats at load: `auto` does so on the CPU, where "
        "quantized products are slow.",
        kind="bool|'auto'",
    )


@dataclass
class LoraConfig:
    """The low-rank adapter (Hu et al. 2021)."""

    rank: int = option(16, "Rank r of the update.", minimum=1, maximum=4096)
    alpha: float = option(32.0, "Numerator of the scale.", above=0, maximum=10**6)
    dropout: float = option(0.0, "Probability of zeroing an adapter input.", minimum=0.0, below=1.0)
    scaling: str = option(
        "standard",
        "`standard`: alpha / r; `rslora`: alpha / sqrt(r) (Kalajdzievski 2023).",
        choices=("standard", "rslora"),
    )
    target_modules: Any = option(
        "all-linear",
        "Which projections get an adapter: `all-linear`, `attention`, `mlp`, or a list of module "
        "names such as `[q_proj, v_proj]`.",
        kind="str|list",
    )
    num_layers: Any = option(
        "all",
        "How many layers, counted from the last: `all` or a number (all, where there are fewer).",
        kind="int|'all'",
        minimum=1,
    )
    init_from: str | None = option(
        None,
        "Folder of an adapter to begin with, or of the run that made it; `null`: a new one. Rank, "
        "scale, projections and layers have to be its own, the optimizer begins anew.",
    )


@dataclass
class OptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    name: str = option(
        "adamw",
        "Update rule.",
        choices=("adamw", "adam", "adafactor", "lion", "muon", "sgd"),
    )
    learning_rate: float = option(2e-4, "Peak learning rate.", above=0, maximum=10)
    weight_decay: float = option(
        0.0,
        "Decoupled weight decay (adamw, lion, adafactor), L2 penalty (muon, sgd); adam has none.",
        minimum=0,
        maximum=10,
    )
    beta1: float = option(0.9, "Decay of the first moment (adam, adamw, lion).", minimum=0, below=1)
    beta2: float = option(
        0.999, "Decay of the second moment (adam, adamw, lion).", minimum=0, below=1
    )
    eps: float = option(1e-8, "Added to the denominator (adam, adamw).", above=0, maximum=1)
    momentum: float = option(0.9, "Momentum (sgd, muon).", minimum=0, below=1)
    schedule: str = option(
        "cosine",
        "Shape after the warm-up: `cosine` or `linear` decay, `constant`, or `wsd` "
        "(warmup-stable-decay: constant, then a linear decay at the end).",
        choices=("cosine", "linear", "constant", "wsd"),
    )
    warmup_steps: int | None = option(
        None, "Steps of linear warm-up; `null` takes `warmup_ratio`.", minimum=0
    )
    warmup_ratio: float = option(0.05, "Warm-up as a share of all steps.", minimum=0, maximum=1)
    min_lr_ratio: float = option(
        0.1, "Final learning rate as a share of the peak.", minimum=0, maximum=1
    )
    decay_ratio: float = option(
        0.2, "`wsd` only: share of all steps spent decaying.", minimum=0, maximum=1
    )
    max_grad_norm: float | None = option(
        1.0, "Clip the gradient's global L2 norm to this; `null` never clips.", above=0
    )


@dataclass
class MemoryProfileConfig:
    """What fits into the machine. The only place for batch size and sequence length."""

    name: str = option("auto", "Short name of the profile.")
    micro_batch_size: Any = option(
        "auto", "Rows in one gradient computation.", kind="int|'auto'", minimum=1, maximum=10**6
    )
    grad_accumulation_steps: Any = option(
        "auto", "Micro-batches in one optimizer step.", kind="int|'auto'", minimum=1, maximum=10**6
    )
    max_seq_length: Any = option(
        "auto", "Longest row in tokens.", kind="int|'auto'", minimum=2, maximum=10**9
    )
    grad_checkpoint: Any = option(
        "auto",
        "Recompute activations in the backward pass: slower, much less memory. A number: those of "
        "so many adapted layers, the lowest first.",
        kind="bool|int|'auto'",
        minimum=1,
        maximum=10**6,
    )
    compute_dtype: str = option(
        "auto",
        "Type of the base weights and activations; the adapter is always float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantize: Any = option(
        None,
        "Quantization of the base that `model.quantize` follows; `auto`: what suits the machine.",
        kind="mapping|null|'auto'",
    )
    cache_limit_gb: float | None = option(
        None, "Upper bound of MLX's buffer cache; `null`: MLX's own.", minimum=0, maximum=10**6
    )
    wired_limit_gb: float | None = option(
        None, "Memory kept resident by macOS; `null`: Metal's advice.", minimum=0, maximum=10**6
    )
    memory_limit_gb: float | None = option(
        None, "Memory that a run should stay under; `null`: no limit.", minimum=0.01, maximum=10**6
    )


@dataclass
class EvalConfig:
    """Validation while training, and the task metric before and after."""

    every: Any = option(
        "auto",
        "Steps between two validations; `auto`: halfway (not in runs of fewer than six steps) and "
        "at the end; 0: only before and after.",
        kind="int|'auto'",
        minimum=0,
    )
    batch_size: int = option(16, "Rows in one validation pass.", minimum=1)
    max_rows: int | None = option(None, "Validation rows used; `null`: all.", minimum=1)
    before: bool = option(True, "Also judge the base model, before training.")
    task_rows: int | None = option(
        None, "Test rows judged by the task metric; `null`: all.", minimum=1
    )
    generation_batch_size: int = option(50, "Answers generated at once.", minimum=1)
    max_tokens: Any = option(
        "auto",
        "Longest answer in tokens; `auto`: a quarter more than the longest expected answer.",
        kind="int|'auto'",
        minimum=1,
        maximum=10**6,
    )
    samples: int = option(3, "Answers shown side by side at the end.", minimum=0)


@dataclass
class TrackingConfig:
    """Where runs are remembered."""

    backend: str = option("mlflow", "`mlflow` or `none`.", choices=("mlflow", "none"))
    uri: str | None = option(
        None, "MLflow tracking URI; `null`: `mlflow.db` in `paths.tracking_dir`."
    )
    experiment_name: str = option("mlx-ft", "MLflow experiment.")
    run_name: str | None = option(None, "Name of the run; `null`: made from what is trained.")
    tags: dict[str, str] = option({}, "Tags of the run, e.g. `{owner: me}`.")
    webhook: str | None = option(
        None,
        "Address that is told when a run ends, however it ends, by a JSON POST (docs/tracking.md). "
        "One that is secret goes into an environment variable: `${oc.env:MLX_FT_WEBHOOK,null}`.",
    )


@dataclass
class PathsConfig:
    """Where things are written."""

    output_dir: str = option("outputs", "Run folders.")
    tracking_dir: str = option("mlruns", "MLflow's database and artifacts.")
    cache_dir: str = option("~/.cache/mlx-ft", "Converted models and compiled helpers.")


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    memory_profile: MemoryProfileConfig = field(default_factory=MemoryProfileConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = option(42, "Seed of everything random in a run.", minimum=0, maximum=2**32 - 1)
    device: str = option(
        "auto", "`auto`: Metal or CUDA where there is one.", choices=("auto", "cpu", "gpu")
    )
    threads: int | None = option(
        None, "CPU threads for matrix products; `null`: all cores.", minimum=1, maximum=1024
    )
    log_level: str = option(
        "info", "Least severe message shown.", choices=("debug", "info", "warning", "error")
    )
