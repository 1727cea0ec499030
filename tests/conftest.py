"""Prepares the process as a run does: the BLAS must be in place before MLX is imported."""

from mlx_ft import runtime

runtime.prepare()
