"""The random numbers of one training step."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class StepSeeds(Callback):
    """Seeds every training step from the run's seed, the process, the epoch and the batch.

    MixUp draws from NumPy, stochastic depth and dropout draw from torch. A run that resumes in the middle of
    an epoch thereby draws what it would have drawn; lightning restores no random state.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._draw: tuple[int, int, int, int] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._draw = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        self.again()

    def again(self) -> None:
        """Put the generators back to where the current step began."""
        if self._draw is not None:
            seed_step(*self._draw)


def seed_step(seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed the generators of Python, NumPy and torch for one step.

    Args:
        seed: of the run.
        rank: of the process.
        epoch: from 0.
        batch: number of the batch in the epoch, from 0.
    """
    first, second = np.random.SeedSequence((seed, rank, epoch, batch)).generate_state(2).tolist()
    random.seed(first)
    np.random.seed(first)
    torch.manual_seed((first << 32) + second)
