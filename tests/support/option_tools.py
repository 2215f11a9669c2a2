"""What the tests of the options of a training share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conformer_vision.data.loader import Batch, ImageLoader
from conformer_vision.data.order import Share
from conformer_vision.training import TrainConfig
from conformer_vision.training.build import build_loaders, build_model, build_spec, open_images
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.schedule import Clock


def shows(*names: str) -> Callable[[Any], Any]:
    """Marks a test as the one that shows these options' effects; test_options.py reads the marks."""
    assert names
    return lambda test: test


def loaders(config: TrainConfig, share: Share = Share()) -> tuple[ImageLoader, ImageLoader]:  # noqa: B008
    sources = open_images(config)
    spec = build_spec(config, build_model(config, len(sources[0].classes)), sources[0].classes)
    return build_loaders(config, *sources, spec, share=share)


def first_batch(config: TrainConfig, part: int) -> Batch:
    return next(iter(loaders(config)[part]))


def module(config: TrainConfig, *, steps_per_epoch: int = 10, num_classes: int = 3) -> ClassifierModule:
    torch.manual_seed(0)
    model = build_model(config, num_classes)
    return ClassifierModule(
        model,
        config,
        num_classes=num_classes,
        steps_per_epoch=steps_per_epoch,
        clock=Clock(now=lambda: 0.0),
    )


def batch(images: Tensor, labels: Tensor) -> Batch:
    return Batch(images, labels, torch.arange(len(labels)), [])


def group_rates(config: TrainConfig, *, steps_per_epoch: int = 10) -> list[list[float]]:
    """The learning rate of every parameter group at every step of a run."""
    classifier = module(config, steps_per_epoch=steps_per_epoch)
    parts: Any = classifier.configure_optimizers()
    seen = []
    for _ in range(classifier.total_steps):
        seen.append([group["lr"] for group in parts["optimizer"].param_groups])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    return seen


def rates(config: TrainConfig, *, steps_per_epoch: int = 10) -> list[float]:
    """The learning rate of every step of a run."""
    return [groups[0] for groups in group_rates(config, steps_per_epoch=steps_per_epoch)]
