"""Hydra finds plugins only in this namespace; the launchers themselves are mlx_ft.sweeper's."""
