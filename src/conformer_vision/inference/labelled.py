"""The labelled images that a model is evaluated on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from conformer_vision.data import (
    ImageSource,
    ImageStream,
    Splitting,
    fingerprint,
    open_images,
    require_source,
)
from conformer_vision.data.exclude import exclude as without
from conformer_vision.data.exclude import read_exclusions
from conformer_vision.data.folds import read_folds
from conformer_vision.data.groups import leak_line, shared_groups
from conformer_vision.data.opening import describe
from conformer_vision.data.splits import Split
from conformer_vision.errors import UserError, option
from conformer_vision.runs import read_results, read_run_values, run_folder_of
from conformer_vision.spec import ModelSpec

_log = logging.getLogger(__name__)

Data = str | Path | Dataset[Any]
"""A set of labelled images, as `open_images` takes it."""

_KINDS: dict[str, Any] = {
    "data": str | None,
    "val_fraction": float,
    "seed": int,
    "folds": int | None,
    "fold": int | str,
    "group": str | None,
    "label_column": str | None,
    "label_separator": str | None,
    "data_dir": str | None,
}


@dataclass(frozen=True)
class LabelledImages:
    """A split of a set of labelled images."""

    data: Data
    split: Split = "val"
    splitting: Splitting = Splitting()  # noqa: RUF009  # immutable
    """How a set without validation images of its own is split."""
    data_dir: str | Path | None = None
    """Where named sets are kept."""
    exclude: str | Path | None = None
    """List of images to leave out (docs/check.md)."""

    def open(self, spec: ModelSpec) -> ImageSource | ImageStream:
        """Open the images, with labels matched by name to a model's classes.

        Args:
            spec: Of the model. If it gives an image any number of labels, images of one label each will do.

        Raises:
            UserError: As `open_images` and `read_exclusions`, or a list of exclusions for a stream.
        """
        images = open_images(
            self.data,
            self.split,
            self.splitting,
            classes=spec.classes,
            multilabel=spec.multilabel,
            data_dir=self.data_dir,
        )
        self._warn_of_shared_groups(images, spec.classes)
        if self.exclude is None:
            return images
        source = require_source(images, name=f"exclude {self.exclude}: {describe(self.data)}")
        return without(source, read_exclusions(self.exclude), every_class=False)

    def _warn_of_shared_groups(self, images: ImageSource | ImageStream, classes: Sequence[str]) -> None:
        """Log groups of which the set's own splits have images on both sides."""
        if self.split != "val" or images.is_cut or not isinstance(images, ImageSource) or not images.groups:
            return
        with suppress(UserError):  # the set need not have training images
            train = open_images(self.data, "train", self.splitting, classes=classes, data_dir=self.data_dir)
            assert isinstance(train, ImageSource)
            if shared := shared_groups(train, images):
                _log.warning("%s: %s", describe(self.data), leak_line(shared))


def warn_of_cut(images: LabelledImages, source: ImageSource | ImageStream, *, model: Path) -> None:
    """Log that the images are a held-out share of a set, unless they are what the model's run held out.

    Whoever gives a test set expects all of it to be evaluated.

    Args:
        images: What was opened.
        source: What came of it.
        model: Weights, perhaps of a run.
    """
    if images.split != "val" or not isinstance(source, ImageSource) or not source.is_cut:
        return
    if fingerprint(source) != (read_results(model.parent) or {}).get("val_fingerprint"):
        cut = images.splitting
        share = "one fold" if cut.folds else f"{option('val_fraction')} ({cut.val_fraction:g})"
        _log.warning(
            "%s has no split of its own: these are the %s images that %s holds out; %s takes every image",
            describe(images.data),
            f"{len(source):,}",
            share,
            option("split", "all"),
        )


@dataclass(frozen=True)
class RunData:
    """The data that a run was trained on; training's defaults without a configuration."""

    data: str | None = None
    splitting: Splitting = Splitting()  # noqa: RUF009  # immutable
    data_dir: str | None = None
    all_folds: bool = False
    """Whether it trained a network for every fold; the splitting then holds out the first one."""


def read_run_data(run: str | Path) -> RunData:
    """Read what data a run was trained on from the ``config.yaml`` beside its weights.

    Args:
        run: A run folder, a file in it, or anything else, which has no configuration.

    Raises:
        UserError: The configuration cannot be read.
    """
    if (folder := run_folder_of(run)) is None:
        return RunData()
    values = read_run_values(folder, _KINDS)
    data, data_dir = values.pop("data", None), values.pop("data_dir", None)
    if all_folds := values.get("fold") == "all":
        del values["fold"]
    return RunData(data, Splitting(**values, recorded=read_folds(folder)), data_dir, all_folds)
