"""The random numbers of one training step."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

Step = tuple[int, int, int, int]
"""Seed of the run, process, epoch and batch."""


class StepSeeds(Callback):
    """Seeds every training step from the run's seed, the process, the epoch and the batch.

    MixUp draws from NumPy, stochastic depth and dropout draw from torch. A run that resumes in the middle of
    an epoch thereby draws what it would have drawn; lightning restores no random state.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step: Step = (seed, 0, 0, 0)
        """The step under way."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.step = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        self.again(self.step)

    def again(self, step: Step) -> None:
        """Put the generators of Python, NumPy and torch back to where a step began."""
        first, second = np.random.SeedSequence(step).generate_state(2).tolist()
        random.seed(first)
        np.random.seed(first)
        torch.manual_seed((first << 32) + second)
