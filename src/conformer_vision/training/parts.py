"""The parts of a run: data, network, loss and module, as a configuration asks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import lightning
from torch import Tensor, nn
from torch.optim import Optimizer

from ..console import say
from ..data import ImageDataModule, ImageSource
from ..data.folds import deal_folds
from ..data.order import images_per_batch
from ..errors import UserError
from ..models.pointwise import use_pointwise
from ..runs import LAST_CHECKPOINT
from .class_weights import class_weights
from .config import TrainConfig
from .groups import DataConfig, HardwareConfig, OptimizerConfig, Precision, RegularizationConfig
from .linear import choose_linear
from .module import ClassifierModule
from .network import (
    Network,
    build_network,
    build_preprocessing,
    check_memory,
    check_progressive,
    check_single,
    device_of,
    find_batch_size,
)
from .optimization import build_loss, build_mixup, build_optimizer
from .precision import FLOAT32, Choice, SharedPrecision, choose_precision, where_open
from .processes import count_processes, is_first
from .progress import opening_lines
from .schedule import Schedule
from .stages import check_stages
from .start import settle
from .task import task_for
from .teacher import Distillation, build_distillation


class Parts(NamedTuple):
    """A run before it has a trainer."""

    config: TrainConfig
    """With everything decided that `start.settle` decides."""
    weights: str
    """As in `Start`."""
    data: ImageDataModule
    network: Network
    schedule: Schedule
    module: ClassifierModule
    shared: SharedPrecision | None
    """Where several processes must follow the first one's choice of the precision."""


def prepare(
    config: TrainConfig, *, restored: bool = False, recorded: Mapping[str, int] | None = None
) -> Parts:
    """Build the data, the network and the module of a run.

    Args:
        config: of the run.
        restored: whether a checkpoint will replace the initial weights; the file that they came from may be
            gone by now.
        recorded: the folds of groups, where the run has recorded them.

    Raises:
        UserError: a wrong value, file or combination.
    """
    processes = math.prod(count_processes(config.hardware))
    config, weights, note = settle(config, download=processes == 1)
    lightning.seed_everything(config.data.seed, workers=True, verbose=False)
    data = build_data(
        config.data,
        config.regularization,
        build_preprocessing(config.model),
        recorded=recorded,
        unlabelled=config.distillation.unlabelled,
    )
    initial = config.model
    if restored:
        initial = replace(initial, pretrained=False, checkpoint=None, reset_head=False)
    network = build_network(initial, config.hardware, data.classes, multilabel=data.train_images.multilabel)
    if is_first():
        shown, note = (f"the state in {LAST_CHECKPOINT}", "") if restored else (weights, note)
        for line in opening_lines(data, network, weights=shown, note=note):
            say(line)
    distillation = build_distillation(config, network.spec, download=processes == 1)
    if distillation is not None and is_first():
        say(distillation.teacher.describe())
    sized = where_open(config.hardware)  # float32 takes the most memory
    if config.data.batch_size == "auto":
        if processes > 1:
            raise UserError("batch_size auto is for one process; find it with one, then give batch_size")
        data.batch_size = find_batch_size(network, data.drawn_images, config.data, sized)
        say(f"batch_size: {data.batch_size}")
    images = images_per_batch(data.batch_size, processes, config.data.accumulate)
    check_memory(network, config.data, sized, batch_size=data.batch_size)
    if images == 1 and not config.hardware.sync_bn:
        check_single(network)
    if config.schedule.progressive_from is not None:
        check_progressive(network, config.schedule.progressive_from)
    check_stages(network.model, config.schedule)
    assert config.optimizer.lr is not None
    schedule = Schedule(config.schedule, lr=config.optimizer.lr)
    shared = None
    if config.hardware.precision == "auto":
        choice = _choose(config, network, data, images=images) if is_first() else Choice(FLOAT32)
        if choice.line is not None:
            say(choice.line)
        schedule.clock.add(choice.seconds)
        config = replace(config, hardware=where_open(config.hardware, choice.precision))
        if processes > 1:
            shared = SharedPrecision(choice.precision, optimizer=partial(_optimizer, config.optimizer))
    device = device_of(config.hardware)
    linear = choose_linear(network.model, config.hardware, device=device, processes=processes)
    if linear != config.hardware.linear:
        config = replace(config, hardware=replace(config.hardware, linear=linear))
        if linear == "convolution":
            say("linear: convolution, which is faster here than matrix products")
    if linear == "convolution":
        use_pointwise(network.model)
    module = build_module(
        network,
        schedule,
        config.optimizer,
        config.regularization,
        config.hardware,
        images=images,
        weights=class_weights(config.regularization.class_weights, data.train_images),
        distillation=distillation,
        val_groups=data.val_images.groups if isinstance(data.val_images, ImageSource) else None,
    )
    return Parts(config, weights, data, network, schedule, module, shared)


def _choose(config: TrainConfig, network: Network, data: ImageDataModule, *, images: int) -> Choice:
    """Choose the precision of a run whose passes have so many images."""
    drawn = data.drawn_images
    number = (
        len(drawn) if isinstance(drawn, ImageSource) else config.data.epoch_images or drawn.length or math.inf
    )
    steps = min(config.schedule.epochs * (number // data.batch_size), config.schedule.max_steps or math.inf)
    return choose_precision(
        network.model,
        network.spec.input_size,
        images=images,
        steps=steps,
        device=device_of(config.hardware),
        optimizer=partial(_optimizer, config.optimizer),
        channels_last=config.hardware.channels_last,
    )


def _optimizer(config: OptimizerConfig, model: nn.Module, precision: Precision) -> Optimizer:
    return build_optimizer(model, config, precision=precision)


def build_data(
    config: DataConfig,
    regularization: RegularizationConfig,
    preprocessing: dict[str, Any],
    *,
    recorded: Mapping[str, int] | None = None,
    unlabelled: str | None = None,
) -> ImageDataModule:
    """Open the images of a run; `recorded` are the folds of groups that it has recorded.

    `unlabelled` are further images, as in `DistillationConfig`.

    Raises:
        UserError: the data or the exclusion list is refused, or an option does not suit the data.
    """
    if recorded is None:
        recorded = deal_folds(config.data, config.splitting, data_dir=config.data_dir)
    data = ImageDataModule(
        config.data,
        preprocessing,
        batch_size=1 if isinstance(config.batch_size, str) else config.batch_size,
        workers=config.workers,
        splitting=replace(config.splitting, recorded=recorded),
        augment=regularization.augment,
        seed=config.seed,
        sampling=config.sampling,
        aug_repeats=config.aug_repeats,
        epoch_images=config.epoch_images,
        exclude=config.exclude,
        data_dir=config.data_dir,
        unlabelled=unlabelled,
    )
    data.setup()
    return data


def build_module(
    network: Network,
    schedule: Schedule,
    optimizer: OptimizerConfig,
    regularization: RegularizationConfig,
    hardware: HardwareConfig,
    *,
    images: int,
    weights: Tensor | None = None,
    distillation: Distillation | None = None,
    val_groups: Sequence[str] | None = None,
) -> ClassifierModule:
    """Make the module of a run; `images` is their number per forward pass of one process.

    `weights` are those of the classes in the loss, (K,). For `val_groups` see `ClassifierModule`.

    Raises:
        UserError: the loss, the optimizer or the mixing does not suit the network or the batch.
    """
    model, spec = network
    classes, task = len(spec.classes), task_for(spec.multilabel)
    regularization = task.decide(regularization)
    make_optimizer = partial(build_optimizer, config=optimizer, precision=hardware.precision)
    make_optimizer(model)  # a mistake shows before training
    if hardware.compile:
        model.compile()
    return ClassifierModule(
        model,
        build_loss(regularization, model, task, weights=weights),
        optimizer=make_optimizer,
        scheduler=schedule.scheduler,
        num_classes=classes,
        multilabel=spec.multilabel,
        val_groups=val_groups,
        mixup=build_mixup(regularization, task, classes, images=images),
        resize=schedule.resize if schedule.config.progressive_from is not None else None,
        distillation=distillation,
        channels_last=hardware.channels_last,
    )
