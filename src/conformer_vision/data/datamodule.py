"""Images for one's own ``lightning.Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import timm
from timm.data import resolve_data_config

from conformer_vision.errors import UserError, nearest
from conformer_vision.errors import option as name_of_option
from conformer_vision.spec import ModelSpec, Preprocessing

from .augment import AugmentConfig
from .exclude import exclude_listed
from .loader import ImageLoader, evaluation_loader, training_loader
from .opening import describe, open_images
from .order import Sampling, Share, check_sampling, images_per_batch
from .splits import Splitting
from .stream import ImageStream
from .transforms import build_transform
from .unlabelled import JoinedSource, open_unlabelled

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from .base import ImageSource


class ImageDataModule(lightning.LightningDataModule):
    """Training and validation images of a set, as batches for a ``lightning.Trainer``.

    A batch is a `loader.Batch`: ``(images, labels, indices, broken)`` with images (B, C, H, W),
    normalised, and labels (B,). A broken image in training is replaced by the next one; in
    validation its label is -100, torch's ``ignore_index``. Order and augmentation depend on the seed, the
    epoch and the batch alone, so a trainer that resumes from a checkpoint draws what it would have
    drawn. Every process reads its share: with several of them, give the trainer
    ``use_distributed_sampler=False``.

    Args:
        data: as in `open_images`.
        preprocessing: the input that the model takes: its `ModelSpec`, its name in timm, or what
            ``timm.data.resolve_model_data_config`` returns.
        batch_size: images per step of the optimizer: over all processes and accumulated batches.
        workers: processes that read images; 0 reads in this one.
        splitting: how to cut a set without a validation split of its own.
        augment: augmentation of training images.
        seed: of the order and the augmentation.
        sampling: ``shuffle``, or ``balanced`` to draw all classes equally often.
        aug_repeats: times that an epoch shows an image.
        epoch_images: images that make an epoch of a stream, which may not know its length.
        exclude: CSV of images to leave out; see `exclude`.
        data_dir: where named sets are kept.
        unlabelled: images to train on as well, with the label -100; see `open_unlabelled`.

    Raises:
        UserError: preprocessing that says nothing. Later, with `setup`: as `open_images`, fewer than two
            classes, no image to validate on, or an option that does not suit the data.
    """

    def __init__(
        self,
        data: str | Path | Dataset[Any],
        preprocessing: ModelSpec | Mapping[str, Any] | str,
        *,
        batch_size: int = 64,
        workers: int = 0,
        splitting: Splitting = Splitting(),  # noqa: B008  # immutable
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008  # immutable
        seed: int = 0,
        sampling: Sampling = "shuffle",
        aug_repeats: int = 1,
        epoch_images: int | None = None,
        exclude: str | Path | None = None,
        data_dir: str | Path | None = None,
        unlabelled: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.preprocessing = _preprocessing(preprocessing)
        self.batch_size = batch_size
        self.workers = workers
        self.splitting = splitting
        self.augment = augment
        self.seed = seed
        self.sampling: Sampling = sampling
        self.aug_repeats = aug_repeats
        self.epoch_images = epoch_images
        self.exclude = exclude
        self.data_dir = data_dir
        self.unlabelled = unlabelled
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        """As in `ImageLoader`."""
        self.reads_on: Callable[[], bool] = lambda: False
        """As in `ImageLoader`."""
        self._images: tuple[ImageSource | ImageStream, ImageSource | ImageStream] | None = None

    @property
    def train_images(self) -> ImageSource | ImageStream:
        """The training images."""
        return self._opened()[0]

    @cached_property
    def drawn_images(self) -> ImageSource | ImageStream:
        """What an epoch shows: the training images, and those without a label."""
        train = self.train_images
        if self.unlabelled is None:
            return train
        if isinstance(train, ImageStream):
            raise UserError(f"unlabelled cannot be used with the stream {describe(self.data)}; leave it out")
        if self.sampling == "balanced":
            raise UserError("sampling balanced is for labelled images; leave it or unlabelled out")
        return JoinedSource(train, open_unlabelled(self.unlabelled, data_dir=self.data_dir))

    @property
    def val_images(self) -> ImageSource | ImageStream:
        """The validation images."""
        return self._opened()[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""
        return self.train_images.classes

    def setup(self, stage: str = "fit") -> None:
        """Open the images, unless they are open."""
        self._opened()

    def _opened(self) -> tuple[ImageSource | ImageStream, ImageSource | ImageStream]:
        if self._images is not None:
            return self._images
        train = open_images(self.data, "train", self.splitting, data_dir=self.data_dir)
        val = open_images(
            self.data,
            "val",
            self.splitting,
            classes=train.classes,
            multilabel=train.multilabel,
            data_dir=self.data_dir,
        )
        name = describe(self.data)
        if isinstance(train, ImageStream) or isinstance(val, ImageStream):
            for option, used in (
                ("exclude", self.exclude is not None),
                ("sampling balanced", self.sampling == "balanced"),
                ("aug_repeats", self.aug_repeats > 1),
            ):
                if used:
                    raise UserError(f"{option} cannot be used with the stream {name}; leave it out")
        else:
            if self.epoch_images is not None:
                raise UserError(f"epoch_images is for streams; {name} has {len(train)} training images")
            if self.exclude is not None:
                train, val = exclude_listed(train, val, self.exclude)
            if not len(val):
                remedy = f"raise {name_of_option('val_fraction')} or add images"
                raise UserError(f"{name} leaves no image to validate on; {remedy}")
        check_sampling(self.sampling, train)
        self._images = train, val
        return self._images

    def train_dataloader(self) -> ImageLoader:
        """Augmented batches, in an order of their own in every epoch; see `loader.training_loader`."""
        loader = training_loader(
            self.drawn_images,
            build_transform(self.preprocessing, self.augment.for_source(self.train_images)),
            batch_size=self.batch_size,
            workers=self.workers,
            seed=self.seed,
            share=self._share(),
            accumulate=self._accumulate(),
            sampling=self.sampling,
            repeats=self.aug_repeats,
            epoch_images=self.epoch_images,
        )
        loader.waiting, loader.reads_on = self.waiting, self.reads_on
        trainer = self.trainer
        if trainer is not None:
            batches = trainer.fit_loop.epoch_loop.batch_progress.current
            # lightning itself repositions no loader, neither when it resumes nor at the end of an epoch.
            loader.position = lambda: (trainer.current_epoch, batches.ready)
        return loader

    def val_dataloader(self) -> ImageLoader:
        """Every validation image once over all processes; see `loader.evaluation_loader`."""
        share = self._share()
        loader = evaluation_loader(
            self.val_images,
            build_transform(self.preprocessing),
            batch_size=images_per_batch(self.batch_size, share.world_size, self._accumulate()),
            workers=self.workers,
            share=share,
        )
        loader.waiting, loader.reads_on = self.waiting, self.reads_on
        return loader

    def _accumulate(self) -> int:
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def _share(self) -> Share:
        trainer = self.trainer
        if trainer is None:
            return Share()
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "ImageDataModule shares images among processes itself; "
                "give Trainer(use_distributed_sampler=False)"
            )
        return Share(trainer.global_rank, trainer.world_size)


def _preprocessing(given: ModelSpec | Mapping[str, Any] | str) -> Preprocessing:
    if isinstance(given, ModelSpec):
        return given.preprocessing
    values: Mapping[str, Any]
    if isinstance(given, str):
        if not timm.is_model(given):
            raise UserError(f"model {given!r} is unknown{nearest(given, timm.list_models())}")
        cfg = timm.get_pretrained_cfg(given)
        values = resolve_data_config(pretrained_cfg={} if cfg is None else cfg.to_dict())
    else:
        values = given
    names = [each.name for each in fields(Preprocessing)]
    if missing := [name for name in names if name not in values]:
        raise UserError(
            f"preprocessing lacks {', '.join(missing)}; give what timm.data.resolve_model_data_config returns"
        )
    return Preprocessing(**{name: values[name] for name in names})
