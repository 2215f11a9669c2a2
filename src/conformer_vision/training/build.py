"""From a configuration to a network, its spec and its data: everything that can be wrong is found here."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from ..data import ImageSource, build_transform, opening
from ..data.exclude import exclude, read_exclusions
from ..data.loader import ImageLoader, evaluation_loader, training_loader
from ..data.order import Share, images_per_batch
from ..data.stream import ImageStream
from ..errors import UserError, first_line, some_names
from ..models import VARIANTS, Conformer, ConformerConfig
from ..models.checkpoints import load_checkpoint
from ..parsing import nearest
from ..spec import ModelSpec
from .config import TrainConfig
from .memory import largest_batch, training_step
from .module import build_optimizer
from .schedule import progressive_size

_CONFORMER_OPTIONS = {field.name for field in fields(ConformerConfig)}


Data = ImageSource | ImageStream


def open_images(config: TrainConfig) -> tuple[Data, Data]:
    """Training and validation images.

    Raises:
        UserError: what `opening.open_images` or an exclusion list refuse, no image to validate on, or
            options that streams do not have.
    """
    data = config.data
    split = partial(opening.open_images, data.data, splitting=data.splitting, data_dir=data.data_dir)
    train = split(split="train")
    val = split(split="val", classes=train.classes)
    if len(train.classes) < 2:
        raise UserError(
            f"{config.data.data} has a single class ({train.classes[0]}); training needs two or more"
        )
    if isinstance(train, ImageStream) or isinstance(val, ImageStream):
        _check_stream_options(config)
        return train, val
    if config.data.epoch_images is not None:
        raise UserError(f"epoch_images is for streams; {config.data.data} has {len(train)} training images")
    if config.data.exclude is not None:
        train, val = _without_excluded(train, val, config.data.exclude)
    if not len(val):
        raise UserError(
            f"{config.data.data} leaves no image to validate on; raise val_fraction or add images"
        )
    return train, val


def _check_stream_options(config: TrainConfig) -> None:
    for name, used in (
        ("exclude", config.data.exclude is not None),
        ("sampling balanced", config.data.sampling == "balanced"),
        ("aug_repeats", config.data.aug_repeats > 1),
    ):
        if used:
            raise UserError(f"{name} cannot be used with the stream {config.data.data}; leave it out")


def _without_excluded(train: ImageSource, val: ImageSource, path: str) -> tuple[ImageSource, ImageSource]:
    names = read_exclusions(path)
    kept_train, kept_val = exclude(train, names), exclude(val, names, every_class=False)
    if unknown := kept_train.unmatched & kept_val.unmatched:
        raise UserError(
            f"{path} names images that the data does not have: {some_names(sorted(unknown), most=3)}; "
            "write the list anew with conformer-vision check --fix"
        )
    return kept_train, kept_val


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The network with its initial weights, drawn from torch's generator or loaded.

    Raises:
        UserError: an unknown model, an option that it does not take, weights that do not fit.
    """
    if not timm.is_model(config.model.model):
        raise UserError(
            f"model {config.model.model!r} is unknown{nearest(config.model.model, timm.list_models())}"
        )
    options = dict(config.model.model_kwargs)
    for name in ("drop_path_rate", "conv_drop_path_rate"):
        if getattr(config.model, name) is not None:
            options[name] = getattr(config.model, name)
    try:
        model: nn.Module = timm.create_model(
            config.model.model,
            pretrained=config.model.pretrained,
            num_classes=num_classes,
            in_chans=config.model.in_chans,
            **options,
            **_fixed_size(config),
        )
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        unknown = next((name for name in options if f"'{name}'" in str(error)), None)
        if isinstance(error, TypeError) and unknown is not None:
            known = sorted(_CONFORMER_OPTIONS) if config.model.model in VARIANTS else []
            raise UserError(
                f"model {config.model.model} takes no {unknown}{nearest(unknown, known)}"
            ) from error
        raise UserError(f"model {config.model.model}: {first_line(error)}") from error
    if config.model.checkpoint is not None:
        load_checkpoint(model, config.model.checkpoint, reset_head=config.model.reset_head)
    _check_options(config, model)
    return model


def _check_options(config: TrainConfig, model: nn.Module) -> None:
    """Options of training that not every model has."""
    if config.model.freeze_blocks or config.model.freeze_branch:
        name = "freeze_blocks" if config.model.freeze_blocks else "freeze_branch"
        if not isinstance(model, Conformer):
            raise UserError(f"{name} is for Conformers; model {config.model.model} is none")
        if config.model.freeze_blocks > len(model.blocks):
            raise UserError(
                f"freeze_blocks {config.model.freeze_blocks}: the model has {len(model.blocks)} blocks"
            )
    for name, used in (
        ("conv_loss_share", config.regularization.conv_loss_share != 0.5),
        ("mutual_distillation", config.regularization.mutual_distillation > 0),
    ):
        if used and not isinstance(model, Conformer):
            raise UserError(f"{name} is for the two heads of a Conformer; model {config.model.model} has one")
    if config.hardware.grad_checkpointing != "off":
        try:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError) as error:
            raise UserError(
                f"grad_checkpointing: model {config.model.model} has none; leave it out"
            ) from error


def build_spec(config: TrainConfig, model: nn.Module, classes: tuple[str, ...]) -> ModelSpec:
    """What a user of the trained weights needs: how to build the network and prepare its input.

    Raises:
        UserError: the network cannot take the input size.
    """
    data = resolve_model_data_config(model)
    height, width = config.model.image_size or data["input_size"][1:]
    mean, std = data["mean"], data["std"]
    if config.model.in_chans == 1:  # grey images: the mean of what the colours had
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    # A small image is used whole: the border that a photo can lose may hold what it shows.
    crop_pct = config.model.crop_pct or (1.0 if max(height, width) <= 64 else data["crop_pct"])
    kwargs = config.model.model_kwargs | _fixed_size(config)
    spec = ModelSpec(
        model=config.model.model,
        model_kwargs={name: value for name, value in kwargs.items() if not name.endswith("_rate")},
        classes=classes,
        input_size=(config.model.in_chans, height, width),
        mean=tuple(mean),
        std=tuple(std),
        interpolation=data["interpolation"],
        crop_pct=crop_pct,
        crop_mode=data["crop_mode"],
    )
    _check_size(model, spec)
    if config.schedule.progressive_from is not None:
        _check_progressive(model, spec, config)
    if config.data.batch_size != "auto" and config.data.batch_size <= config.data.accumulate:
        _check_single(model, spec)
    return spec


def build_loaders(
    config: TrainConfig, train: Data, val: Data, spec: ModelSpec, *, share: Share
) -> tuple[ImageLoader, ImageLoader]:
    """Batches of augmented training images, and of the validation images as evaluation sees them.

    Args:
        config: of the run, with a batch size.
        train: training images.
        val: validation images.
        spec: of the model.
        share: this process.

    Raises:
        UserError: a batch that cannot be shared out or mixed, or is larger than the set.
    """
    size = config.data.images_per_step
    each = images_per_batch(size, share.world_size, config.data.accumulate)
    if each % 2 and (config.regularization.mixup or config.regularization.cutmix):
        raise UserError(
            f"batch_size {size}: mixup and cutmix need an even number of images per pass, not {each}"
        )
    augmented = build_transform(**spec.preprocessing, augment=config.regularization.augment.for_source(train))
    plain = build_transform(**spec.preprocessing, augment=None)
    return (
        training_loader(
            train,
            augmented,
            batch_size=size,
            workers=config.data.workers,
            seed=config.data.seed,
            share=share,
            accumulate=config.data.accumulate,
            sampling=config.data.sampling,
            repeats=config.data.aug_repeats,
            epoch_images=config.data.epoch_images,
        ),
        evaluation_loader(val, plain, batch_size=each, workers=config.data.workers, share=share),
    )


def find_batch_size(config: TrainConfig, model: nn.Module, spec: ModelSpec, *, most: int) -> int:
    """The largest number of images per pass that fits into memory, a power of two.

    Args:
        config: of the run.
        model: is left as it was.
        spec: for the input's size.
        most: no more than this.

    Raises:
        UserError: not even two images fit.
    """
    cuda = config.hardware.device in ("auto", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "mps" if config.hardware.device == "mps" else "cpu")
    probe = deepcopy(model).to(device).train()
    step = training_step(
        probe, image_shape=spec.input_size, precision=config.hardware.precision, device=device
    )
    return largest_batch(step, device, most=most)


def check_optimizer(config: TrainConfig, model: nn.Module) -> None:
    """Make the optimiser once, so that a mistake shows before training.

    Raises:
        UserError: timm has no such optimiser, or it cannot be used here.
    """
    try:
        build_optimizer(model, config)
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        hint = nearest(config.optimizer.optimizer, [str(name) for name in timm.optim.list_optimizers()])
        raise UserError(f"optimizer {config.optimizer.optimizer!r}: {first_line(error)}{hint}") from error


def resolved(config: TrainConfig, source: Data, spec: ModelSpec) -> TrainConfig:
    """The configuration with everything decided that was left to the model or the data.

    The run folder is left out: the same recipe gives another run another folder.
    """
    return config.with_options(
        output=None,
        auto_resume=False,
        input_size=spec.input_size[1:],
        crop_pct=spec.crop_pct,
        augment=config.regularization.augment.for_source(source),
    )


def _fixed_size(config: TrainConfig) -> dict[str, Any]:
    """The argument by which timm's models with position embeddings learn the size; others take any."""
    cfg = timm.get_pretrained_cfg(config.model.model, allow_unregistered=True)
    fixed = cfg is not None and cfg.fixed_input_size
    return {"img_size": list(config.model.image_size)} if fixed and config.model.image_size else {}


def _check_size(model: nn.Module, spec: ModelSpec, *, name: str = "input_size") -> None:
    """One image through the network, without changing it."""
    height, width = spec.input_size[1:]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *spec.input_size))
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        own = resolve_model_data_config(model)["input_size"][1:]
        raise UserError(
            f"{name} {height}x{width}: {spec.model} cannot take it ({first_line(error)}); "
            f"its own size is {own[0]}x{own[1]}"
        ) from error
    finally:
        model.train(training)


def _check_progressive(model: nn.Module, spec: ModelSpec, config: TrainConfig) -> None:
    """The sizes that a run goes through, smallest first."""
    start, full = int(config.schedule.progressive_from or 0), spec.input_size[1:]
    if start >= min(full):
        raise UserError(f"progressive_from {start}: must be below input_size, {full[0]}x{full[1]}")
    height, width = progressive_size(start, full, 0.0)
    _check_size(model, replace(spec, input_size=(spec.in_chans, height, width)), name="progressive_from")


def _check_single(model: nn.Module, spec: ModelSpec) -> None:
    """BatchNorm cannot be trained where one image leaves one value per channel."""
    try:
        with torch.no_grad():
            deepcopy(model).train()(torch.zeros(1, *spec.input_size))
    except ValueError as error:
        raise UserError(
            f"batch_size 1: {spec.model} cannot be trained on single images of this size; give 2 or more"
        ) from error
