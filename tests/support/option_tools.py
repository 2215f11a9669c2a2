"""What the tests of the options of a training share."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from conformer_vision.data.loader import Batch, ImageLoader
from conformer_vision.data.order import Share
from conformer_vision.training import TrainConfig
from conformer_vision.training.images import build_loaders, open_images
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.network import apply_hardware, build_network
from conformer_vision.training.run import build_module, build_schedule


def shows(*names: str) -> Callable[[Any], Any]:
    """Marks a test as the one that shows these options' effects; test_options.py reads the marks."""
    assert names
    return lambda test: test


def loaders(config: TrainConfig, share: Share = Share()) -> tuple[ImageLoader, ImageLoader]:  # noqa: B008
    images = open_images(config.data)
    spec = build_network(config.model, images.classes).spec
    return build_loaders(config.data, config.regularization, images, spec, share=share)


def first_batch(config: TrainConfig, part: int) -> Batch:
    return next(iter(loaders(config)[part]))


def module(config: TrainConfig, *, steps_per_epoch: int = 10, num_classes: int = 3) -> ClassifierModule:
    """The module of a run, with as much of a trainer as a single step needs."""
    torch.manual_seed(0)
    network = build_network(config.model, tuple(map(str, range(num_classes))))
    apply_hardware(config.hardware, network.model)
    classifier = build_module(config, network, build_schedule(config, network))
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
