"""Fine-tune language models with MLX as experiments: configured, repeatable, compared."""

from mlx_ft.api import Comparison, Evaluation, Tuned, compare, evaluate, generate, load, train
from mlx_ft.errors import (
    AdapterError,
    ConfigError,
    DataError,
    Interrupted,
    MlxFtError,
    ModelError,
    OutputError,
    TrainingError,
    UserError,
)

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "Comparison",
    "ConfigError",
    "DataError",
    "Evaluation",
    "Interrupted",
    "MlxFtError",
    "ModelError",
    "OutputError",
    "TrainingError",
    "Tuned",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "generate",
    "load",
    "train",
]
