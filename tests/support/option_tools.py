"""What the tests of the options of a training share."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from conformer_vision.data import ImageDataModule
from conformer_vision.data.handover import Batch
from conformer_vision.data.loader import ImageLoader
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.network import build_network, build_preprocessing
from conformer_vision.training.parts import build_data, build_module
from conformer_vision.training.precision import where_open
from conformer_vision.training.schedule import Schedule
from conformer_vision.training.start import settle

VIT: dict[str, Any] = {"model": "vit_tiny_patch16_224", "model_kwargs": {"depth": 1, "embed_dim": 48}}
"""A network without BatchNorm, so that without a learning rate nothing changes."""


def shows(*names: str) -> Callable[[Any], Any]:
    """Marks a test as the one that shows these options' effects; test_options.py reads the marks."""
    assert names
    return lambda test: test


def rows_of(run: Path) -> list[dict[str, float]]:
    """The metrics of a run, one row per epoch."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether the weights are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def opened(config: TrainConfig) -> ImageDataModule:
    """The images of a run."""
    return build_data(config.data, config.regularization, build_preprocessing(config.model))


def loaders(config: TrainConfig) -> tuple[ImageLoader, ImageLoader]:
    """Training and validation batches of a run."""
    data = opened(config)
    trainer: Any = lightning.Trainer(
        accumulate_grad_batches=config.data.accumulate, logger=False, enable_checkpointing=False
    )
    data.trainer = trainer
    return data.train_dataloader(), data.val_dataloader()


def first_batch(config: TrainConfig, part: int) -> Batch:
    return next(iter(loaders(config)[part]))


def module(config: TrainConfig, *, steps_per_epoch: int = 10, num_classes: int = 3) -> ClassifierModule:
    """The module of a run, with as much of a trainer as a single step needs."""
    config = settle(config, download=False).config
    assert config.optimizer.lr is not None
    torch.manual_seed(0)
    network = build_network(config.model, config.hardware, tuple(map(str, range(num_classes))))
    schedule = Schedule(config.schedule, lr=config.optimizer.lr)
    hardware = where_open(config.hardware)
    classifier = build_module(network, schedule, config.optimizer, config.regularization, hardware, images=2)
    steps = steps_per_epoch * config.schedule.epochs
    trainer: Any = SimpleNamespace(
        estimated_stepping_batches=steps, global_step=0, current_epoch=0, world_size=1
    )
    classifier.trainer = trainer
    return classifier


def batch(images: Tensor, labels: Tensor) -> Batch:
    return Batch(images, labels, torch.arange(len(labels)), [])


def group_rates(config: TrainConfig, *, steps_per_epoch: int = 10) -> list[list[float]]:
    """The learning rate of every parameter group at every step of a run."""
    classifier = module(config, steps_per_epoch=steps_per_epoch)
    parts: Any = classifier.configure_optimizers()
    seen = []
    steps = steps_per_epoch * config.schedule.epochs
    for _ in range(min(steps, config.schedule.max_steps or steps)):
        seen.append([group["lr"] for group in parts["optimizer"].param_groups])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    return seen


def rates(config: TrainConfig, *, steps_per_epoch: int = 10) -> list[float]:
    """The learning rate of every step of a run."""
    return [groups[0] for groups in group_rates(config, steps_per_epoch=steps_per_epoch)]


class Killed(BaseException):
    """Ends a run where it stands, as SIGKILL would: nothing is written after it."""


def killed_after(batches: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begins a run that is killed before it trains on that batch."""
    step, seen = ClassifierModule.training_step, 0

    def counted(self: ClassifierModule, batch: Any, batch_idx: int) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == batches:
            raise Killed
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassifierModule, "training_step", counted)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.undo()


def untimed(run: Path) -> list[list[str]]:
    """The metrics without those of time and memory."""
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    timed = {"seconds", "images_per_second", "waiting", "peak_memory_mb"}
    kept = [i for i, name in enumerate(lines[0]) if name not in timed]
    return [[line[i] for i in kept] for line in lines]
