"""The sweeper's shell. Hydra imports it at every start, so it imports nothing of ours."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class MlxFtSweeper(Sweeper):  # type: ignore[misc]
    """Runs a grid of the swept values, or a search in them, under one parent run."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what `sweep` needs."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials of these `key=value` arguments; returns the exit code."""
        from mlx_ft.sweeper.sweep import sweep

        return sweep(arguments, self.config, self.hydra_context, self.task_function)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="mlx_ft",
    node={"_target_": "hydra_plugins.mlx_ft_sweeper.plugin.MlxFtSweeper"},
    provider="mlx-ft",
)
