"""The learning-rate range test (Smith 2017, section 3.3), by lightning's tuner."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import lightning
from lightning.pytorch.tuner import Tuner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import UserError
from ..files import atomic_path
from .config import TrainConfig
from .module import ClassifierModule
from .parts import prepare
from .precision import where_open
from .processes import count_processes
from .trainer import build_trainer, quiet_lightning

MIN_LR, MAX_LR = 1e-6, 1.0


@dataclass(frozen=True)
class LearningRates:
    """The result of the test."""

    lrs: list[float]
    """Learning rates, rising exponentially; one per step."""
    losses: list[float]
    """The smoothed loss at each."""
    suggestion: float
    """A tenth of the one with the lowest loss."""
    diverges_at: float | None
    """Where the loss stopped falling for good; None if it did not."""


def find_lr(config: TrainConfig, *, steps: int = 100) -> LearningRates:
    """Train a few steps with a rising learning rate, and keep nothing of it.

    Args:
        config: as for `train`; its learning rate and schedule have no effect.
        steps: optimizer steps, 20 or more.

    Raises:
        UserError: as `train`; also several processes, too few steps, or a loss that never falls.
    """
    if steps < 20:
        raise UserError(f"steps {steps}: must be 20 or more, or the curve says nothing")
    if math.prod(count_processes(config.hardware)) > 1:
        raise UserError("lr-find is for one process; start it without torchrun and devices")
    if config.data.batch_size == "auto":
        raise UserError("batch_size auto: lr-find needs the number; train prints the one it finds")
    config = replace(config, hardware=where_open(config.hardware))
    with quiet_lightning(), tempfile.TemporaryDirectory() as folder:
        parts = prepare(config)
        config, data = parts.config, parts.data
        trainer = build_trainer(
            config.hardware,
            epochs=steps,  # the tuner ends after so many steps, and every epoch has one
            accumulate=config.data.accumulate,
            clip_grad=config.optimizer.clip_grad,
            folder=folder,  # the tuner keeps the state of the start there, to go back to it
        )
        data.trainer = trainer
        return _search(trainer, parts.module, data.train_dataloader(), steps)


def draw_lr(found: LearningRates, path: Path) -> None:
    """Draw the loss over the learning rate to a PNG file, with the suggestion marked."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.semilogx(found.lrs, found.losses)
    at = min(range(len(found.lrs)), key=lambda i: abs(math.log(found.lrs[i] / found.suggestion)))
    axes.plot(
        [found.lrs[at]], [found.losses[at]], "o", color="tab:red", label=f"suggested: {found.suggestion:.1e}"
    )
    lowest, highest = min(found.losses), max(found.losses[: max(len(found.losses) // 2, 1)])
    axes.set_ylim(lowest - 0.1 * (highest - lowest) - 1e-6, highest + 0.5 * (highest - lowest) + 1e-6)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _search(
    trainer: lightning.Trainer, module: ClassifierModule, loader: object, steps: int
) -> LearningRates:
    module.lr = MIN_LR  # type: ignore[assignment]  # the tuner wants the attribute, and leaves it alone
    # Its progress bar is for a terminal.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
        finder = Tuner(trainer).lr_find(
            module, loader, min_lr=MIN_LR, max_lr=MAX_LR, num_training=steps, update_attr=False
        )
    if finder is None:
        return read_curve([], [])
    losses = _unbiased(finder.results["loss"])
    # After the first loss that is not finite the weights are lost.
    count = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    return read_curve(finder.results["lr"][:count], losses[:count])


def read_curve(lrs: list[float], losses: list[float]) -> LearningRates:
    """Suggest a tenth of the learning rate with the lowest loss; the steepest descent is mostly noise.

    Args:
        lrs: rising.
        losses: smoothed, one each.

    Raises:
        UserError: the loss is never lower than at the start.
    """
    best = min(range(len(losses)), key=losses.__getitem__, default=0)
    if len(losses) < 10 or losses[best] > 0.99 * losses[0]:
        raise UserError("the loss hardly fell, so no learning rate can be suggested; give more steps")
    stopped = best < len(losses) - 1 and losses[-1] > 1.5 * losses[best]
    return LearningRates(lrs, losses, lrs[best] / 10, lrs[-1] if stopped else None)


def _unbiased(losses: Sequence[float], *, beta: float = 0.98) -> list[float]:
    """Divide lightning's running mean by its true sum of weights.

    lightning counts one step too many, which halves the first losses.
    """
    return [
        loss * (1 - beta ** (count + 1)) / (1 - beta**count) for count, loss in enumerate(losses, start=1)
    ]
