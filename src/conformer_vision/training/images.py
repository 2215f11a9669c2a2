"""Training and validation images, and the batches of them, as a configuration asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from ..data import ImageSource, build_transform, opening
from ..data.exclude import exclude_listed
from ..data.loader import ImageLoader, evaluation_loader, training_loader
from ..data.opening import describe
from ..data.order import Share, images_per_batch
from ..data.stream import ImageStream
from ..errors import UserError
from ..spec import ModelSpec
from .groups import DataConfig, RegularizationConfig


@dataclass(frozen=True)
class Images:
    """The two splits of a run."""

    train: ImageSource | ImageStream
    val: ImageSource | ImageStream

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, two or more."""
        return self.train.classes

    @property
    def count(self) -> int | None:
        """Images in all; None where a stream does not know."""
        if isinstance(self.train, ImageStream) or isinstance(self.val, ImageStream):
            return None
        return len(self.train) + len(self.val)

    def name(self, index: int) -> str:
        """Name of a training image; empty in a stream."""
        return "" if isinstance(self.train, ImageStream) else self.train.name(index)


def open_images(config: DataConfig) -> Images:
    """Open the training and validation images.

    Raises:
        UserError: the data or the exclusion list is refused, there is no image to validate on, or an option
            does not suit a stream.
    """
    splitting, data_dir, name = config.splitting, config.data_dir, describe(config.data)
    train = opening.open_images(config.data, "train", splitting, data_dir=data_dir)
    val = opening.open_images(config.data, "val", splitting, classes=train.classes, data_dir=data_dir)
    if len(train.classes) < 2:
        raise UserError(f"{name} has a single class ({train.classes[0]}); training needs two or more")
    if isinstance(train, ImageStream) or isinstance(val, ImageStream):
        _check_stream_options(config)
        return Images(train, val)
    if config.epoch_images is not None:
        raise UserError(f"epoch_images is for streams; {name} has {len(train)} training images")
    if config.exclude is not None:
        train, val = exclude_listed(train, val, config.exclude)
    if not len(val):
        raise UserError(f"{name} leaves no image to validate on; raise val_fraction or add images")
    return Images(train, val)


def build_loaders(
    config: DataConfig, regularization: RegularizationConfig, images: Images, spec: ModelSpec, *, share: Share
) -> tuple[ImageLoader, ImageLoader]:
    """Make batches of augmented training images, and of validation images as evaluation sees them.

    Args:
        config: with a number for the batch size.
        regularization: augmentation and mixing.
        images: the two splits.
        spec: of the model.
        share: this process.

    Raises:
        UserError: a batch that cannot be shared out or mixed, or is larger than the set.
    """
    size = config.images_per_step
    each = images_per_batch(size, share.world_size, config.accumulate)
    if each % 2 and (regularization.mixup or regularization.cutmix):
        raise UserError(
            f"batch_size {size}: mixup and cutmix need an even number of images per pass, not {each}"
        )
    augment = regularization.augment.for_source(images.train)
    return (
        training_loader(
            images.train,
            build_transform(**spec.preprocessing, augment=augment),
            batch_size=size,
            workers=config.workers,
            seed=config.seed,
            share=share,
            accumulate=config.accumulate,
            sampling=config.sampling,
            repeats=config.aug_repeats,
            epoch_images=config.epoch_images,
        ),
        evaluation_loader(
            images.val,
            build_transform(**spec.preprocessing, augment=None),
            batch_size=each,
            workers=config.workers,
            share=share,
        ),
    )


def _check_stream_options(config: DataConfig) -> None:
    for name, used in (
        ("exclude", config.exclude is not None),
        ("sampling balanced", config.sampling == "balanced"),
        ("aug_repeats", config.aug_repeats > 1),
    ):
        if used:
            raise UserError(f"{name} cannot be used with the stream {describe(config.data)}; leave it out")
