"""The launchers' shell. Hydra imports it at every start, so it imports nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

TARGET = "hydra_plugins.mlx_ft_launchers.plugin.WorkersLauncher"
# How each is set unless the command line says otherwise: `hydra.launcher.n_jobs=4`.
SETTINGS: dict[str, dict[str, Any]] = {
    "joblib": {"n_jobs": 2},
    "submitit_local": {"n_jobs": 2, "timeout_min": 1440},
    "submitit_slurm": {
        "n_jobs": 16, "timeout_min": 1440, "slurm_partition": None, "cpus_per_task": None,
        "gpus_per_node": None, "mem_gb": None, "slurm_additional_parameters": {},
    },
    "ray": {"n_jobs": 2, "address": None, "num_cpus": None, "num_gpus": None},
}  # fmt: skip


class WorkersLauncher(Launcher):  # type: ignore[misc]
    """Runs trials in processes of their own, several at once."""

    def __init__(self, engine: str, n_jobs: int, **settings: Any) -> None:
        self.name, self.n_jobs, self.settings = engine, n_jobs, settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what `launch` needs. Raises ConfigError for settings that are wrong."""
        from mlx_ft.sweeper.engines import engine_of

        folder = str(config.hydra.sweep.dir)
        self.engine = engine_of(self.name, self.n_jobs, self.settings, folder)
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a trial for each list of arguments; the answers are in their order."""
        from mlx_ft.sweeper.launch import launch

        return launch(
            self.engine, self.config, self.hydra_context, self.task_function, job_overrides,
            initial_job_idx,
        )  # fmt: skip


for name, settings in SETTINGS.items():
    ConfigStore.instance().store(
        group="hydra/launcher",
        name=name,
        node={"_target_": TARGET, "engine": name, **settings},
        provider="mlx-ft",
    )
