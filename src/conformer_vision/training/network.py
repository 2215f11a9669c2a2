"""The network of a run, and the spec that its weights are kept with."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.data import resolve_data_config, resolve_model_data_config
from torch import nn

from ..data import ImageSource
from ..data.order import images_per_batch
from ..data.stream import ImageStream
from ..errors import UserError, first_line, nearest
from ..memory import check_batch
from ..models import VARIANTS, Conformer, ConformerConfig
from ..models.checkpoints import load_checkpoint
from ..models.freezing import freeze
from ..spec import ModelSpec
from . import memory
from .groups import DataConfig, HardwareConfig, ModelConfig
from .memory import largest_batch, training_step
from .processes import count_processes
from .schedule import progressive_size

_CONFORMER_OPTIONS = {field.name for field in fields(ConformerConfig)}


class Network(NamedTuple):
    """A network, and how to build it again and feed it."""

    model: nn.Module
    spec: ModelSpec


def build_network(
    config: ModelConfig, hardware: HardwareConfig, classes: tuple[str, ...], *, multilabel: bool = False
) -> Network:
    """Build the network with its initial weights, and its spec.

    `multilabel` says whether an image has any number of the classes.

    Raises:
        UserError: as `build_model`, or the network cannot take the input size or recompute activations.
    """
    model = build_model(config, len(classes))
    kwargs = config.model_kwargs | _fixed_size(config)
    spec = ModelSpec(
        model=config.name,
        model_kwargs={name: value for name, value in kwargs.items() if not name.endswith("_rate")},
        classes=classes,
        multilabel=multilabel,
        **build_preprocessing(config),
    )
    check_size(model, spec, name="input_size", size=spec.input_size[1:])
    _apply_hardware(hardware, model)
    return Network(model, spec)


def build_preprocessing(config: ModelConfig) -> dict[str, Any]:
    """Return how the model's input is prepared, as `ModelSpec` and `ImageDataModule` take it.

    Raises:
        UserError: the model is unknown.
    """
    if not timm.is_model(config.name):
        raise UserError(f"model {config.name!r} is unknown{nearest(config.name, timm.list_models())}")
    cfg = timm.get_pretrained_cfg(config.name)
    data = resolve_data_config(pretrained_cfg={} if cfg is None else cfg.to_dict())
    height, width = config.image_size or data["input_size"][1:]
    mean, std = data["mean"], data["std"]
    if config.in_chans == 1:  # grayscale: the mean over the colors
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    # A small image is used whole: the border that a photo can lose may hold what it shows.
    crop_pct = config.crop_pct or (1.0 if max(height, width) <= 64 else data["crop_pct"])
    return {
        "input_size": (config.in_chans, height, width),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": data["interpolation"],
        "crop_pct": crop_pct,
        "crop_mode": data["crop_mode"],
    }


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Build the network with its initial weights, drawn from torch's generator or loaded.

    Raises:
        UserError: an option that the model does not take, or weights that do not fit.
    """
    name = config.name
    options = dict(config.model_kwargs)
    for rate in ("drop_path_rate", "conv_drop_path_rate"):
        if getattr(config, rate) is not None:
            options[rate] = getattr(config, rate)
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=bool(config.pretrained),
            num_classes=num_classes,
            in_chans=config.in_chans,
            **options,
            **_fixed_size(config),
        )
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        unknown = next((option for option in options if f"'{option}'" in str(error)), None)
        if isinstance(error, TypeError) and unknown is not None:
            known = sorted(_CONFORMER_OPTIONS) if name in VARIANTS else []
            raise UserError(f"model {name} takes no {unknown}{nearest(unknown, known)}") from error
        raise UserError(f"model {name}: {first_line(error)}") from error
    if config.checkpoint is not None:
        load_checkpoint(model, config.checkpoint, reset_head=config.reset_head)
    _freeze(config, model)
    return model


def _freeze(config: ModelConfig, model: nn.Module) -> None:
    blocks = config.freeze_blocks
    if not (blocks or config.freeze_branch):
        return
    if not isinstance(model, Conformer):
        option = "freeze_blocks" if blocks else "freeze_branch"
        raise UserError(f"{option} is for Conformers; model {config.model} is none")
    if blocks > len(model.blocks):
        raise UserError(f"freeze_blocks {blocks}: the model has {len(model.blocks)} blocks")
    freeze(model, blocks=blocks, branch=config.freeze_branch)


def _apply_hardware(config: HardwareConfig, model: nn.Module) -> None:
    """Set memory format and recomputation of the network; what it computes stays the same."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    how = config.grad_checkpointing
    if how == "off":
        return
    if how == "cheap" and not isinstance(model, Conformer):
        raise UserError("grad_checkpointing cheap is for Conformers; this model has full")
    try:
        model.set_grad_checkpointing(how if isinstance(model, Conformer) else True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UserError("grad_checkpointing: this model has none; leave it out") from error


def find_batch_size(
    network: Network, images: ImageSource | ImageStream, config: DataConfig, hardware: HardwareConfig
) -> int:
    """Find the largest batch that fits into memory and is no larger than the set.

    The number of images per pass is a power of two; the network is left as it was.

    Raises:
        UserError: not even two images fit.
    """
    device = device_of(hardware)
    probe = network.model if device.type == "cpu" else deepcopy(network.model).to(device)
    most = config.epoch_images or 4096 if isinstance(images, ImageStream) else len(images)
    size = largest_batch(
        probe,
        network.spec.input_size,
        precision=hardware.precision,
        device=device,
        most=max(most // config.accumulate, 1),
    )
    return size * config.accumulate


def check_memory(network: Network, config: DataConfig, hardware: HardwareConfig, *, batch_size: int) -> None:
    """Check that a training step fits into main memory, where the system would end the run without a word.

    Raises:
        UserError: it does not fit.
    """
    if device_of(hardware).type != "cpu":  # a GPU has memory of its own, and errors
        return
    here, machines = count_processes(hardware)
    images = images_per_batch(batch_size, here * machines, config.accumulate)
    check_batch(
        lambda: network.model,
        partial(training_step, precision=hardware.precision),
        (images, *network.spec.input_size),
        processes=here,
        batches=2 + 2 * config.workers,  # every worker reads two ahead
        reserve=memory.RESERVE + config.workers * memory.PER_WORKER,
        total=batch_size,
    )


def device_of(hardware: HardwareConfig) -> torch.device:
    """Return the kind of device that a run computes on."""
    if hardware.device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    mps = hardware.device == "mps" or (hardware.device == "auto" and torch.backends.mps.is_available())
    return torch.device("mps" if mps else "cpu")


def check_size(model: nn.Module, spec: ModelSpec, *, name: str, size: tuple[int, int]) -> None:
    """Check that the network takes images of a size (height, width), by one.

    Raises:
        UserError: it does not; the message calls the size `name`.
    """
    height, width = size
    check_batch(lambda: model, _predict, (1, spec.in_chans, height, width), name=name)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, spec.in_chans, height, width))
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        own = resolve_model_data_config(model)["input_size"][1:]
        raise UserError(
            f"{name} {height}x{width}: {spec.model} cannot take it ({first_line(error)}); "
            f"its own size is {own[0]}x{own[1]}"
        ) from error
    finally:
        model.train(training)


def _predict(model: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        model.eval()(images)


def check_progressive(network: Network, start: int) -> None:
    """Check the smallest size of a run whose input grows from `start`.

    Raises:
        UserError: it is not smaller than the input, or the network does not take it.
    """
    model, spec = network
    full = spec.input_size[1:]
    if start >= min(full):
        raise UserError(f"progressive_from {start}: must be below input_size, {full[0]}x{full[1]}")
    check_size(model, spec, name="progressive_from", size=progressive_size(start, full, 0.0))


def check_single(network: Network) -> None:
    """Check that the network can be trained on single images.

    Raises:
        UserError: BatchNorm sees one value per channel, from which no statistics can be taken.
    """
    model, spec = network
    try:
        with torch.no_grad():
            deepcopy(model).train()(torch.zeros(1, *spec.input_size))
    except ValueError as error:
        raise UserError(
            f"batch_size 1: {spec.model} cannot be trained on single images of this size; give 2 or more"
        ) from error


def _fixed_size(config: ModelConfig) -> dict[str, Any]:
    """The argument by which timm's models with position embeddings learn the size; others take any."""
    cfg = timm.get_pretrained_cfg(config.name, allow_unregistered=True)
    fixed = cfg is not None and cfg.fixed_input_size
    return {"img_size": list(config.image_size)} if fixed and config.image_size else {}
