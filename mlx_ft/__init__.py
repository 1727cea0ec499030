"""Fine-tune language models with MLX as experiments: configured, repeatable, compared."""

__version__ = "0.1.0"
