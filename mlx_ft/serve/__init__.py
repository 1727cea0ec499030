"""`mlx-ft serve`: answers, adapters and training jobs over HTTP."""
