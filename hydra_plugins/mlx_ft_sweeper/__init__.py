"""Hydra finds plugins only in this namespace; the sweeper itself is mlx_ft.sweeper."""
