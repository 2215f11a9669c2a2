"""Explain images with a trained model: for each, its answers and where the evidence for them lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError, nearest, some_names
from conformer_vision.explain.methods import METHODS, HeatMapOptions, compute_heat_maps
from conformer_vision.geometry import Box, seen_part
from conformer_vision.inference.runtimes.network import heads, resolve_device
from conformer_vision.inference.runtimes.weights import to_array
from conformer_vision.models.variants import SHIPPED
from conformer_vision.output_stride import with_output_stride
from conformer_vision.preprocessing import Reader, read_through
from conformer_vision.runs import find_model, fold_name
from conformer_vision.runtime.base import FUSED, Array
from conformer_vision.runtime.decisions import head_probabilities, is_present
from conformer_vision.runtime.inputs import ImageInput, named_images
from conformer_vision.runtime.model import InputSize
from conformer_vision.spec import Preprocessing
from conformer_vision.tensors import evaluation_pipeline
from conformer_vision.weights import load_model

UNIT = 32
"""The edges of a whole image's input are multiples of it, so that no patch lies across an edge."""
MOST_ANSWERS = 5
"""Most probable classes that an explanation names."""
MOST_ELONGATED = 6
"""Largest ratio of the edges of a whole image's input; longer images are squeezed to it."""


_NOWHERE = Box(0, 0, 0, 0)
_NO_MAPS = torch.empty(0)


class ClassAnswer(NamedTuple):
    """What the heads say of a class."""

    label: str
    number: int
    """Its place among the outputs of the model; two classes may share a label."""
    probabilities: dict[str, float]
    """By head: ``fused``, and ``conv`` and ``trans`` of a Conformer."""


class Shown(NamedTuple):
    """An image, how the network is shown it, and what it answers; or an error."""

    name: str
    image: Image.Image | None
    seen: Box
    batch: Tensor
    """(1, C, H, W)."""
    answers: dict[str, Array]
    """Probabilities (K,) by head."""
    error: str | None = None
    present: frozenset[int] = frozenset()
    """Numbers of the classes that are present, of a model of several labels per image."""

    def best(self, most: int) -> list[int]:
        """Return the numbers of the most probable classes, best first, and of all that are present."""
        ordered: list[int] = np.argsort(-self.answers[FUSED], kind="stable").tolist()
        return [k for place, k in enumerate(ordered) if place < most or k in self.present]


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image: what the model answers, and where the evidence lies; or an error."""

    name: str
    """Path of the file, or the name of an image without one."""
    image: Image.Image | None = None
    """The image itself, upright, RGB; None with an error."""
    seen: Box = _NOWHERE
    """The part of it that the network was shown, in pixels."""
    top: tuple[ClassAnswer, ...] = ()
    """The most probable classes, best first."""
    classes: tuple[ClassAnswer, ...] = ()
    """The classes that are explained."""
    maps: Tensor = _NO_MAPS
    """(T, h, w): the heat maps of these classes over what the network was shown, at its input's size."""
    method: str = ""
    error: str | None = None
    """Why there is no explanation, in one line."""

    def heat_map(self, label: str | None = None) -> NDArray[np.float32]:
        """Return the heat map (H, W) of a class at the size of the image; zero where nothing was shown.

        Args:
            label: One of the classes explained; the first by default.

        Raises:
            UserError: The class was not explained, or the image could not be read.
        """
        return self._placed(self.maps, label)

    def evidence(self, label: str | None = None) -> NDArray[np.float32]:
        """Return the heat map (H, W) of a class on a scale from 0 to 1, to draw or to cut at a threshold.

        1 is the strongest evidence in this image for this class. 0 is none, or, where a method's unit has no
        zero, the weakest.

        Args:
            label: As for `heat_map`.

        Raises:
            UserError: As for `heat_map`.
        """
        return self._placed(relative(self.maps, signed=METHODS[self.method].signed), label)

    def _placed(self, maps: Tensor, label: str | None) -> NDArray[np.float32]:
        if self.image is None:
            raise UserError(f"{self.error}, so it has no heat map")
        labels = [answer.label for answer in self.classes]
        if label is not None and label not in labels:
            raise UserError(f"class {label!r} was not explained; these were: {', '.join(labels)}")
        return placed(maps[labels.index(label) if label is not None else 0], self.seen, self.image.size)


def relative(maps: Tensor, *, signed: bool) -> Tensor:
    """Scale maps (..., h, w) to [0, 1] each: from zero where it means no evidence, else from their lowest."""
    lowest = 0.0 if signed else maps.amin((-2, -1), keepdim=True)
    above = (maps - lowest).nan_to_num(0, 0, 0).clamp(min=0)
    return above / above.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(above.dtype).tiny)


def placed(heat_map: Tensor, seen: Box, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a heat map (h, w) of the part of an image that was shown as one (H, W) of the whole image."""
    width, height = size
    rows = _sampling(heat_map.shape[0], seen.top, seen.bottom, height)
    columns = _sampling(heat_map.shape[1], seen.left, seen.right, width)
    full: NDArray[np.float32] = (rows @ heat_map.float().cpu().numpy() @ columns.T).astype(np.float32)
    return full


def _sampling(cells: int, start: float, end: float, pixels: int) -> NDArray[np.float32]:
    """Return the weights (pixels, cells) that place cells between two edges of an axis, linearly."""
    at = (np.arange(pixels) + 0.5 - start) / (end - start) * cells - 0.5
    shown = (at >= -0.5) & (at <= cells - 0.5)
    at = at.clip(0, cells - 1)
    before = np.floor(at).astype(int)
    weights = np.zeros((pixels, cells), dtype=np.float32)
    rows = np.arange(pixels)
    weights[rows, before] = 1 - (at - before)
    weights[rows, np.minimum(before + 1, cells - 1)] += at - before
    weights[~shown] = 0
    return weights


class Explainer:
    """A trained model that says where it looks.

    Args:
        model: A run folder, weights, a checkpoint, or the name of published weights; the bundled weights by
            default.
        device: ``auto`` (CUDA where there is one) or a torch device.
        input_size: Pixels of the square input, or (height, width), instead of the model's own.
        whole: Show the network the whole image, in its own proportions. By default it is shown what
            `Predictor` shows it, which is cropped where the model's preprocessing crops.
        output_stride: Largest reduction of the feature map, 16 or 8, for a finer one from the same weights.
        arch: timm's name of a checkpoint's architecture, where its content does not tell.

    Raises:
        UserError: No such model, an exported file, which has no gradients and no inner values, or an output
            stride that the model cannot take or has already.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        input_size: InputSize | None = None,
        whole: bool = False,
        output_stride: int | None = None,
        arch: str | None = None,
    ) -> None:
        source = find_model(SHIPPED if model is None else model, arch=arch)
        if source.exported:
            raise UserError(
                f"{source.path} is an export, which hides what is inside; give the run folder or its weights"
            )
        self.device = resolve_device(device)
        network, self.spec = load_model(source)
        if self.spec.members > 1:
            fold = source.path.parent / fold_name(0)
            one = f"such as {fold}" if fold.is_dir() else "whose run folder you give"
            raise UserError(
                f"{source.path} is an ensemble of {self.spec.members} networks, which look at an image each "
                f"in their own way; explain one of them, {one}"
            )
        if output_stride is not None:
            network, self.spec = with_output_stride(network, self.spec, output_stride)
        if input_size is not None:
            height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
            self.spec = replace(self.spec, input_size=(self.spec.in_chans, height, width))
        self.model = network.to(self.device)
        self.path = source.path
        self.whole = whole

    def explain(
        self,
        inputs: ImageInput | Iterable[ImageInput],
        *,
        classes: Sequence[str] | None = None,
        top_k: int = 1,
        options: HeatMapOptions | None = None,
    ) -> Iterator[Explanation]:
        """Yield the explanations in the order of the images.

        Args:
            inputs: As for `Predictor`: paths of files or folders, and images of every kind.
            classes: Labels of the classes to explain; by default the ``top_k`` most probable of each image.
            top_k: Number of classes per image.
            options: How the heat maps are made; by default ``cam``.

        Raises:
            UserError: A class that the model does not have, and what `heat_maps` refuses. A broken image
                raises nothing; its `Explanation` has an ``error``.
        """
        if top_k < 1:
            raise UserError(f"top_k {top_k}: must be 1 or more")
        numbers = None if classes is None else self.class_numbers(classes)
        for shown in self.show(inputs):
            chosen = numbers if numbers is not None or shown.image is None else shown.best(top_k)
            yield self.explanation(shown, chosen or [], options or HeatMapOptions())

    def explanation(
        self,
        shown: Shown,
        numbers: Sequence[int],
        options: HeatMapOptions,
    ) -> Explanation:
        """Explain one image.

        Args:
            shown: From `show`; an image that could not be read has an explanation with its error.
            numbers: Numbers of the classes to explain.
            options: How the heat maps are made.
        """
        if shown.image is None:
            return Explanation(shown.name, error=shown.error)
        found = compute_heat_maps(self.model, shown.batch, numbers, options)
        return Explanation(
            shown.name,
            image=shown.image,
            seen=shown.seen,
            top=tuple(self.answer(number, shown) for number in shown.best(MOST_ANSWERS)),
            classes=tuple(self.answer(number, shown) for number in numbers),
            maps=found.maps[0].float().cpu(),
            method=options.method,
        )

    def show(self, inputs: ImageInput | Iterable[ImageInput]) -> Iterator[Shown]:
        """Yield the images as the network is shown them, with its answers."""
        for named in named_images(inputs):
            try:
                named = named.held()
                image = named.open()
                batch, seen = self.prepare(image, named.open)
            except BrokenImageError as error:
                yield Shown(named.name, None, _NOWHERE, _NO_MAPS, {}, error=str(error))
                continue
            yield self.shown(named.name, image, batch, seen)

    def shown(self, name: str, image: Image.Image, batch: Tensor, seen: Box) -> Shown:
        """Return an image with the answers of the network, which is shown what `prepare` returned of it."""
        answers, present = self.probabilities(batch), frozenset[int]()
        if self.spec.multilabel:
            present = frozenset(np.flatnonzero(is_present(answers[FUSED], self.spec)).tolist())
        return Shown(name, image, seen, batch, answers, present=present)

    def class_numbers(self, labels: Sequence[str]) -> list[int]:
        """Return the numbers of classes.

        Raises:
            UserError: The model has no such class, or the list is empty.
        """
        if not labels:
            raise UserError("no class is named; give one or more, or leave them out")
        known = {
            name: number
            for names in (self.spec.labels, self.spec.classes)
            for number, name in enumerate(names)
        }
        for label in labels:
            if label not in known:
                raise UserError(
                    f"{self.path} has no class {label!r}; it has {some_names(self.spec.labels)}"
                    f"{nearest(label, known)}"
                )
        return [known[label] for label in labels]

    def prepare(self, image: Image.Image, read: Reader | None = None) -> tuple[Tensor, Box]:
        """Return the network's input (1, C, H, W) and the part of the image that it shows.

        Args:
            image: The image in full.
            read: Reads it again: a large JPEG is then shown to the network exactly as `Predictor` shows it.
        """
        preprocessing = self.spec.preprocessing
        if self.whole:
            preprocessing = _of_whole(preprocessing, image.size)
        pipeline = evaluation_pipeline(preprocessing)
        reduced = pipeline.plan(image.size).kept.reduction > 1
        batch = read_through(pipeline, read) if read is not None and reduced else pipeline(image)
        return batch[None].to(self.device), seen_part(preprocessing, image.size)

    @torch.no_grad()
    def probabilities(self, batch: Tensor) -> dict[str, Array]:
        """Compute the probabilities of the first image by head, each (K,), as `Predictor` does."""
        logits = {head: to_array(values[:1]) for head, values in heads(self.model, batch).items()}
        return {head: values[0] for head, values in head_probabilities(logits, self.spec).items()}

    def answer(self, number: int, shown: Shown) -> ClassAnswer:
        """Return what the heads say of a class."""
        shares = {head: values[number].item() for head, values in shown.answers.items()}
        return ClassAnswer(self.spec.labels[number], number, shares)


def _of_whole(preprocessing: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """Return the preprocessing that shows a whole image of width and height `size` in its own proportions.

    The shorter edge is that of the model's input.
    """
    channels, height, width = preprocessing.input_size
    short = min(height, width)
    scale = short / min(size)
    edges = [min(max(round(edge * scale / UNIT), 1) * UNIT, MOST_ELONGATED * short) for edge in size]
    return replace(preprocessing, input_size=(channels, edges[1], edges[0]), crop_pct=1.0, crop_mode="squash")


def explain(
    model: str | Path | None,
    inputs: ImageInput | Iterable[ImageInput],
    *,
    classes: Sequence[str] | None = None,
    top_k: int = 1,
    method: str = "cam",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    blocks: Sequence[int] | None = None,
    whole: bool = False,
    device: str | torch.device = "auto",
) -> list[Explanation]:
    """Explain images with a trained model.

    Args:
        model: As for `Explainer`.
        inputs: As for `Explainer.explain`, like all arguments but the last two.
        classes: Labels of the classes to explain; by default the most probable, and of a model of several
            labels per image all that are present.
        top_k: Number of classes per image without ``classes``.
        method: A name of `METHODS`.
        scales: See `heat_maps`.
        flip: See `heat_maps`.
        blocks: See `heat_maps`.
        whole: See `Explainer`.
        device: See `Explainer`.

    Raises:
        UserError: As `Explainer` and its `explain`.
    """
    explainer = Explainer(model, device=device, whole=whole)
    options = HeatMapOptions.of(method, scales=scales, flip=flip, blocks=blocks)
    return list(explainer.explain(inputs, classes=classes, top_k=top_k, options=options))
