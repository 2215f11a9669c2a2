"""Boxes and masks from heat maps: the largest connected part that holds a share of the strongest evidence.

Shapes: H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conformer_vision.errors import UserError, option
from conformer_vision.explain.coco import PixelBox, RunLengths, TrueBoxes, match_files, read_true_boxes
from conformer_vision.explain.explainer import Explainer, Explanation, placed, relative
from conformer_vision.explain.methods import METHODS, HeatMapOptions, method_of, one_branch_method
from conformer_vision.extras import require
from conformer_vision.models import Conformer
from conformer_vision.runtime.base import FUSED
from conformer_vision.runtime.inputs import ImageInput, as_several, named_images

THRESHOLDS = tuple(number / 50 for number in range(1, 50))
"""Thresholds that fitting tries."""


@dataclass(frozen=True)
class Region:
    """Where a class is in an image."""

    label: str
    number: int
    """Place of the class among the outputs of the model."""
    score: float
    """Probability of the class in the whole image, of the fused prediction."""
    box: PixelBox
    area: int
    """Pixels of the mask."""
    mask: RunLengths


@dataclass(frozen=True)
class Localization:
    """The regions of one image, by class in the order asked for; or an error.

    A class without any evidence has no region.
    """

    name: str
    """Path of the file, or the name of an image without one."""
    width: int = 0
    height: int = 0
    regions: tuple[Region, ...] = ()
    error: str | None = None
    """Why there is none, in one line."""


class Fit(NamedTuple):
    """A threshold that was fitted on labelled boxes."""

    threshold: float
    mean_iou: float
    """Of the boxes with those labelled, at this threshold; the largest of all `THRESHOLDS`."""
    boxes: int
    """Pairs of an image and a class that it was fitted on."""
    images: int
    skipped: tuple[str, ...]
    """A line for each labelled image that could not be used."""


class Localizations(NamedTuple):
    """What `localize` returns."""

    images: list[Localization]
    threshold: float
    fit: Fit | None
    """How the threshold was found, where labelled boxes were given."""


class Part(NamedTuple):
    """A connected part of a mask."""

    mask: NDArray[np.bool_]
    """(H, W)."""
    box: PixelBox
    area: int


def largest_part(evidence: NDArray[np.float32], threshold: float) -> Part | None:
    """Return the largest part of evidence (H, W) that is connected, also by corners, and reaches a threshold.

    None if there is no evidence at all. Of equal parts the upper one is returned.
    """
    ndimage = require("scipy.ndimage")
    above = (evidence >= threshold) & (evidence > 0)
    numbers, parts = ndimage.label(above, structure=np.ones((3, 3)))
    if not parts:
        return None
    areas = np.bincount(numbers.ravel())
    areas[0] = 0  # outside
    number = int(areas.argmax())
    rows, columns = ndimage.find_objects(numbers, max_label=number)[number - 1]
    box = PixelBox(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
    return Part(numbers == number, box, int(areas[number]))


def ious_at_thresholds(evidence: NDArray[np.float32], boxes: Sequence[PixelBox]) -> list[float]:
    """Return the IoU of the largest part with the best of some boxes, at each of `THRESHOLDS`."""
    parts = [largest_part(evidence, threshold) for threshold in THRESHOLDS]
    return [0.0 if part is None else max(part.box.iou(box) for box in boxes) for part in parts]


@dataclass(frozen=True)
class Localizer:
    """Finds where classes are.

    Args:
        explainer: The model; shows it whole images where it was made so.
        options: How the heat maps are made.
        threshold: Share of the strongest evidence in an image that a pixel needs, in (0, 1).

    Raises:
        UserError: A threshold outside (0, 1).
    """

    explainer: Explainer
    options: HeatMapOptions
    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold {self.threshold}: must lie between 0 and 1")

    def localize(
        self,
        inputs: ImageInput | Iterable[ImageInput],
        *,
        classes: Sequence[str] | None = None,
        top_k: int = 1,
    ) -> Iterator[Localization]:
        """Yield the regions in the order of the images, one image in memory at a time.

        Args:
            inputs: As for `Predictor`: paths of files or folders, and images of every kind.
            classes: Labels of the classes to find in every image; by default its ``top_k`` most probable.
            top_k: Number of classes per image.

        Raises:
            UserError: As `Explainer.explain`.
        """
        for explanation in self._explain(inputs, classes=classes, top_k=top_k):
            yield self._localization(explanation)

    def fit(self, truths: Iterable[tuple[str, TrueBoxes]]) -> tuple[Localizer, Fit]:
        """Return the same with the threshold that gives the largest mean IoU on labelled images.

        A class with several boxes in an image counts once, with the box that suits best: only one is found.

        Args:
            truths: Paths of images, and what is labelled there.

        Raises:
            UserError: The model has not a labelled class, the size of an image is not the labelled one, or
                no image can be read.
        """
        rows, skipped, images = [], [], 0
        for path, truth in truths:
            labels = list(truth.boxes)
            (explanation,) = self._explain(path, classes=labels, top_k=1)
            if explanation.image is None:
                skipped.append(str(explanation.error))
                continue
            if truth.size is not None and tuple(truth.size) != explanation.image.size:
                wide, high = explanation.image.size
                raise UserError(
                    f"{path} has {wide}x{high} pixels, but is labelled as {truth.size[0]}x{truth.size[1]}"
                )
            images += 1
            for place, label in enumerate(labels):
                rows.append(ious_at_thresholds(_evidence(explanation, place), truth.boxes[label]))
        if not rows:
            raise UserError(f"none of the labelled images can be read: {skipped[0]}")
        means = np.array(rows).mean(axis=0)
        best = int(means.argmax())
        fit = Fit(THRESHOLDS[best], float(means[best]), len(rows), images, tuple(skipped))
        return replace(self, threshold=fit.threshold), fit

    def _explain(
        self, inputs: ImageInput | Iterable[ImageInput], *, classes: Sequence[str] | None, top_k: int
    ) -> Iterator[Explanation]:
        return self.explainer.explain(inputs, classes=classes, top_k=top_k, options=self.options)

    def _localization(self, explanation: Explanation) -> Localization:
        name = explanation.name
        if explanation.image is None:
            return Localization(name, error=explanation.error)
        scores = [answer.probabilities[FUSED] for answer in explanation.classes]
        if not np.isfinite(scores).all() or not explanation.maps.isfinite().all():
            return Localization(name, error=f"{name}: the model's output is not finite; train it again")
        regions = []
        for place, answer in enumerate(explanation.classes):
            part = largest_part(_evidence(explanation, place), self.threshold)
            if part is not None:
                mask = RunLengths.of(part.mask)
                regions.append(Region(answer.label, answer.number, scores[place], part.box, part.area, mask))
        return Localization(name, *explanation.image.size, tuple(regions))


def _evidence(explanation: Explanation, place: int) -> NDArray[np.float32]:
    """Return the evidence (H, W) for a class by its place: labels need not be distinct."""
    assert explanation.image is not None
    maps = relative(explanation.maps[place], signed=METHODS[explanation.method].signed)
    return placed(maps, explanation.seen, explanation.image.size)


def localize(
    model: str | Path | None,
    inputs: ImageInput | Iterable[ImageInput],
    *,
    classes: Sequence[str] | None = None,
    top_k: int = 1,
    method: str | None = None,
    threshold: float | None = None,
    truth: str | Path | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    blocks: Sequence[int] | None = None,
    whole: bool = True,
    device: str = "auto",
) -> Localizations:
    """Find where classes are in images: a box and a mask for each.

    Args:
        model: As for `Explainer`.
        inputs: As for `Predictor`: paths of files or folders, and images of every kind.
        classes: Labels of the classes to find in every image; by default its ``top_k`` most probable.
        top_k: Number of classes per image.
        method: A name of `METHODS`; that of `default_method` by default.
        threshold: Share of the strongest evidence in an image that a pixel needs, in (0, 1); the method's own
            by default.
        truth: COCO file with the boxes of some of the images, on which the threshold is fitted instead.
        scales: See `heat_maps`.
        flip: See `heat_maps`.
        blocks: See `heat_maps`.
        whole: See `Explainer`; here images are shown whole by default.
        device: ``auto`` (CUDA where there is one) or a torch device.

    Raises:
        UserError: As `Explainer.explain`, `read_true_boxes` and `Localizer.fit`, or both a threshold and
            labelled boxes.
    """
    inputs = list(as_several(inputs))  # it is gone through twice where there are labelled boxes
    explainer = Explainer(model, device=device, whole=whole)
    localizer, fit = make_localizer(
        explainer,
        HeatMapOptions.of(method or default_method(explainer), scales=scales, flip=flip, blocks=blocks),
        threshold=threshold,
        truth=truth,
        names=[image.name for image in named_images(inputs)],
    )
    found = list(localizer.localize(inputs, classes=classes, top_k=top_k))
    return Localizations(found, localizer.threshold, fit)


def default_method(explainer: Explainer) -> str:
    """Return the method that localises best: gradient-rollout for a Conformer (docs/results.md).

    Other networks get their `one_branch_method`.
    """
    if isinstance(explainer.model, Conformer):
        return "gradient-rollout"
    blank, _ = explainer.prepare(Image.new("RGB", explainer.spec.input_size[:0:-1]))
    return one_branch_method(explainer.model, blank)


def make_localizer(
    explainer: Explainer,
    options: HeatMapOptions,
    *,
    threshold: float | None,
    truth: str | Path | None,
    names: Iterable[str],
) -> tuple[Localizer, Fit | None]:
    """Return a localizer with a threshold that is given, fitted or the method's own.

    Args:
        explainer: The model.
        options: How the heat maps are made.
        threshold: The threshold, if it is given.
        truth: COCO file with the boxes to fit it on, if there is one.
        names: Paths of the images, among which are those of the file.

    Raises:
        UserError: Both a threshold and a file, no such method; and as `Localizer.fit`.
    """
    if threshold is not None and truth is not None:
        raise UserError(f"the threshold is fitted on {truth}; leave out {option('threshold', threshold)}")
    default = method_of(options.method).threshold
    localizer = Localizer(explainer, options, default if threshold is None else threshold)
    return (localizer, None) if truth is None else localizer.fit(match_files(read_true_boxes(truth), names))
