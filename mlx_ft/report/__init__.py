"""Runs compared: what they differ in, which is best, and whether that is more than luck.

`collect` reads run folders, sweeps and MLflow; `analyse` says what follows; `table` and `page` show
it; `write` puts it into a folder. Without MLX; MLflow only where it is asked.
"""
