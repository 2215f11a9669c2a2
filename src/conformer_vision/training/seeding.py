"""The random numbers of one training step."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_step(seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seeds what a step draws from: MixUp from NumPy, stochastic depth and dropout from torch.

    A run that goes on in the middle of an epoch thereby draws what it would have drawn.

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
