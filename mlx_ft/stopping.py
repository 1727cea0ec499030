"""When a training is validated, and whether it ends before its plan: by patience, or as hopeless.

What is hopeless somebody else decides, such as a sweep that sees the other trials, too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from mlx_ft.config.schema import Config
from mlx_ft.state import Progress

logger = logging.getLogger(__name__)

FEW_STEPS = 6
PRUNED_VALIDATIONS = 8  # of a run that may be pruned: the sooner it is judged, the more is saved

Prune = Callable[[int, float], str | None]
"""Asked at a step with its validation loss; the reason to stop there, None to go on."""


class Stopping:
    """pruned: why the training was stopped as hopeless, if it was."""

    def __init__(self, config: Config, prune: Prune | None) -> None:
        self.config = config
        self.prune = prune
        self.pruned: str | None = None

    def interval(self, steps: int) -> int:
        """Steps between validations of so many; 0: none before the end.

        `auto`: two in all, or enough for the patience to run out or the run to be pruned.
        """
        if self.config.eval.every != "auto":
            return int(self.config.eval.every)
        patience = self.config.train.early_stopping_patience
        if patience is None and self.prune is None and steps < FEW_STEPS:
            return 0  # halfway would be next to the end
        count = 2 if patience is None else 3 * (patience + 1)
        return math.ceil(steps / max(count, PRUNED_VALIDATIONS if self.prune else 0))

    def stops(self, progress: Progress, *, last: bool) -> bool:
        """Whether the training ends here, where it was validated. last: its plan does, too."""
        if self._out_of_patience(progress):
            return True
        if not last and self.prune is not None:
            loss = math.nan if progress.last_loss is None else progress.last_loss
            self.pruned = self.prune(progress.step, loss)
        if self.pruned is not None:
            logger.info("pruned at step %d: %s", progress.step, self.pruned)
        return self.pruned is not None

    def _out_of_patience(self, progress: Progress) -> bool:
        patience = self.config.train.early_stopping_patience
        if patience is None or progress.evaluations_without_gain < patience:
            return False
        logger.info(
            "early stopping at step %d: no gain in %d validations (best %.4f at step %d)",
            progress.step,
            progress.evaluations_without_gain,
            progress.best_loss,
            progress.best_step,
        )
        return True
