"""The learning-rate range test (Smith 2017, section 3.3), by lightning's tuner."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import lightning
from lightning.pytorch.tuner import Tuner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data.order import Share
from ..errors import UserError
from ..files import atomic_path
from .build import build_loaders, build_model, build_spec, check_optimizer, open_images
from .config import TrainConfig
from .guard import NotFinite
from .module import ClassifierModule
from .run import quiet_lightning
from .schedule import Clock
from .trainer import build_trainer, count_processes

MIN_LR, MAX_LR = 1e-6, 1.0


@dataclass(frozen=True)
class LearningRates:
    """What the test saw."""

    lrs: list[float]
    """Learning rates, rising exponentially; one per step."""
    losses: list[float]
    """The smoothed loss at each."""
    suggestion: float
    """A tenth of that with the lowest loss."""
    diverges_at: float | None
    """Where it stopped falling for good; None where it did not."""


def find_lr(config: TrainConfig, *, steps: int = 100) -> LearningRates:
    """Trains for some steps with a rising learning rate, and keeps nothing of it.

    Args:
        config: as for `train`; its learning rate and schedule are not used.
        steps: optimiser steps, 20 or more.

    Raises:
        UserError: what `train` refuses; several processes; too few steps; a loss that never falls.
    """
    if steps < 20:
        raise UserError(f"steps {steps}: must be 20 or more, or the curve says nothing")
    if math.prod(count_processes(config)) > 1:
        raise UserError("lr-find is for one process; start it without torchrun and devices")
    if config.data.batch_size == "auto":
        raise UserError("batch_size auto: lr-find needs the number; train prints the one it finds")
    with quiet_lightning(), tempfile.TemporaryDirectory() as folder:
        lightning.seed_everything(config.data.seed, workers=True, verbose=False)
        train, val = open_images(config)
        model = build_model(config, len(train.classes))
        spec = build_spec(config, model, train.classes)
        check_optimizer(config, model)
        trainer = build_trainer(config, Path(folder), callbacks=[])
        loaders = build_loaders(config, train, val, spec, share=Share())
        module = ClassifierModule(
            model,
            config,
            num_classes=len(train.classes),
            steps_per_epoch=len(loaders[0]) // config.data.accumulate,
            clock=Clock(),
        )
        return _search(trainer, module, loaders[0], steps)


def draw_lr(found: LearningRates, path: Path) -> None:
    """Draws the loss over the learning rate, the suggestion marked, to a PNG file."""
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
    with _silenced():
        try:
            finder = Tuner(trainer).lr_find(
                module, loader, min_lr=MIN_LR, max_lr=MAX_LR, num_training=steps, update_attr=False
            )
        except NotFinite:
            raise UserError(
                "the loss was not finite before lightning's test could stop; give clip_grad, or precision 32"
            ) from None
    lrs, losses = _known(finder.results["lr"], _unbiased(finder.results["loss"])) if finder else ([], [])
    return read_curve(lrs, losses)


def read_curve(lrs: list[float], losses: list[float]) -> LearningRates:
    """A tenth of the learning rate at which the loss is lowest; where it falls most steeply is mostly noise.

    Args:
        lrs: rising.
        losses: smoothed, one each.

    Raises:
        UserError: the loss is never lower than at the beginning.
    """
    best = min(range(len(losses)), key=losses.__getitem__, default=0)
    if len(losses) < 10 or losses[best] > 0.99 * losses[0]:
        raise UserError("the loss hardly fell, so no learning rate can be suggested; give more steps")
    stopped = best < len(losses) - 1 and losses[-1] > 1.5 * losses[best]
    return LearningRates(lrs, losses, lrs[best] / 10, lrs[-1] if stopped else None)


def _unbiased(losses: Sequence[float], *, beta: float = 0.98) -> list[float]:
    """lightning's running mean divided by its true sum of weights.

    lightning counts a step too many, which makes the first losses half of what they were.
    """
    return [
        loss * (1 - beta ** (count + 1)) / (1 - beta**count) for count, loss in enumerate(losses, start=1)
    ]


def _known(lrs: Sequence[float], losses: Sequence[float]) -> tuple[list[float], list[float]]:
    pairs = [(lr, loss) for lr, loss in zip(lrs, losses, strict=False) if math.isfinite(loss)]
    return [lr for lr, _ in pairs], [loss for _, loss in pairs]


@contextmanager
def _silenced() -> Iterator[None]:
    """Without the tuner's own progress bar."""
    with redirect_stderr(StringIO()):
        yield
