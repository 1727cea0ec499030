"""A process that computes its share of another one's training: it writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlx_ft import memory_guard, optim, resume, trainer
from mlx_ft.accept import accept
from mlx_ft.config.schema import Config
from mlx_ft.console import configure_logging
from mlx_ft.data import batch as batching
from mlx_ft.data.arrays import pad_id
from mlx_ft.session import RunResult
from mlx_ft.state import TrainState
from mlx_ft.step import Compute
from mlx_ft.team import Team

logger = logging.getLogger(__name__)


class Follower:
    """One that is ready to be called by its leader. Raises UserError kinds as the run does."""

    def __init__(
        self, config: Config, public: Mapping[str, Any], team: Team, stack: ExitStack
    ) -> None:
        configure_logging("error")  # what there is to say, the leader says
        self.team = team
        self.accepted = accept(config, public)
        if self.accepted.forward.frozen is not None:
            stack.callback(self.accepted.forward.frozen.close)

    def run(self) -> RunResult:
        """Serve until the leader has done.

        Raises TeamError when it is gone, ConfigError when it runs something else.
        """
        accepted, config = self.accepted, self.accepted.config
        self.team.agree(resume.fingerprint(accepted))
        batches = batching.Batches(
            accepted.dataset.train,
            config.memory_profile.micro_batch_size,
            config.seed,
            pad_id=pad_id(accepted.dataset.known, accepted.vocabulary),
            weights=accepted.dataset.weights,
        )
        trainer.follow(
            TrainState(accepted.loaded.model, optim.build_optimizer(config.optimizer)),
            batches,
            config.optimizer,
            config.train,
            seed=config.seed,
            compute=Compute.of(config),
            forward=accepted.forward,
            guard=memory_guard.build(
                config,
                accepted.loaded,
                accepted.adapter,
                accepted.device,
                accepted.forward,
                short=accepted.short,
            ),
            team=self.team,
        )
        return RunResult("FINISHED", None, Path(), None)
