"""Classify images with a trained model, as a stream."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError, option
from conformer_vision.inference.conformal import sets
from conformer_vision.inference.conversion.choice import RuntimeChoice, RuntimeName
from conformer_vision.inference.conversion.formats import Precision
from conformer_vision.inference.decisions import is_present
from conformer_vision.inference.inputs import ImageInput, NamedImage, as_several, named_images
from conformer_vision.inference.prediction_html import prediction_html, predictions_html
from conformer_vision.inference.runtimes import FUSED
from conformer_vision.inference.trained_model import InputSize, TrainedModel
from conformer_vision.inference.views import Views, parse_views
from conformer_vision.models.variants import SHIPPED
from conformer_vision.preprocessing import read_through
from conformer_vision.runs import find_model
from conformer_vision.spec import ModelSpec, Preprocessing

TOP_K = 5
"""Classes per image of a model of one label, where no number is given."""


class Guess(NamedTuple):
    """A class and the probability that a head gives it."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The result for one image: classes by decreasing probability, or an error."""

    name: str
    """Path of the file, or the name of an image without one."""
    labels: tuple[str, ...]
    """The top-k classes, or more if the conformal set is larger; empty with an error. Of a model of several
    labels per image the classes that are present, perhaps none, unless ``top_k`` was given."""
    probabilities: tuple[float, ...]
    """Their probabilities at the model's temperature: among all classes, or of several labels per image each
    by itself."""
    error: str | None = None
    """Why there is no result, in one line."""
    conv: Guess | None = None
    """First choice of a Conformer's convolution head; None for other models."""
    trans: Guess | None = None
    """First choice of its transformer head."""
    unsure: str | None = None
    """Why the answer may be wrong, or the image show none of the classes; None for a sure answer, and for a
    model without thresholds."""
    conformal_set: tuple[str, ...] | None = None
    """The classes that hold the true one with the probability asked for; None if it was not asked for."""
    present: tuple[str, ...] | None = None
    """The classes whose probability reaches the model's threshold of the class, the most probable first; None
    for a model of one label per image, and with an error."""

    def _repr_html_(self) -> str:
        """Show the prediction in a notebook."""
        return prediction_html(self)


class Predictions(list[Prediction]):
    """A list of predictions, which shows itself in notebooks."""

    def _repr_html_(self) -> str:
        return predictions_html(self)


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as a network takes it, made by `Predictor.read`."""

    name: str
    values: NDArray[np.float32]
    """(C, H, W), normalised."""
    preprocessing: Preprocessing
    """What made the values; another model may need another."""


class Predictor:
    """A trained model that classifies images; several threads may use one predictor.

    Args:
        model: A run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights;
            defaults to the bundled weights (docs/weights.md).
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, or another torch device.
        batch_size: Images per forward pass.
        input_size: Pixels of the square input, or (height, width), instead of the model's own.
        arch: timm's name of a checkpoint's architecture, where its content does not tell; see `load`.
        reject: Whether to say which answers are unsure, if the model has thresholds (docs/unsure.md).
        coverage: Share of images like the validation images that gets a sure answer, instead of the model's.
        conformal: Error rate of sets of classes, in (0, 1); None for no sets.
        tta: Test-time augmentation: ``flip``, ``scales``, ``flip+scales``, ``scales=0.8,1,1.25`` or `Views`.
        runtime: ``torch``, ``onnx`` or ``openvino``; ``auto`` takes the fastest that is installed where that
            pays (docs/predict.md). The answers are the same up to rounding.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``, as far as the runtime has it; float32 by default,
            and of an exported file its own.

    Raises:
        UserError: No such model or device, a damaged file, a size that the model cannot take, a coverage or
            error rate for which the model has no thresholds, or a runtime or precision that is not there.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        input_size: InputSize | None = None,
        arch: str | None = None,
        reject: bool = True,
        coverage: float | None = None,
        conformal: float | None = None,
        tta: str | Views | None = None,
        runtime: RuntimeName = "auto",
        precision: Precision | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be 1 or more")
        source = find_model(SHIPPED if model is None else model, arch=arch)
        self._exported = source.exported
        choice = RuntimeChoice(runtime, precision)
        self._trained = TrainedModel(
            source, device=device, input_size=input_size, views=parse_views(tta), choice=choice
        )
        if coverage is not None and not reject:
            raise UserError(f"{option('coverage', coverage)} is for rejecting answers, which is turned off")
        self._judge = self._trained.judge(coverage=coverage) if reject else None
        self._sets: Callable[[Tensor], Tensor] | None = None
        if conformal is not None:
            self._sets = partial(sets, rule=self._trained.set_rule(conformal), error_rate=conformal)
        self._batch_size = batch_size
        if choice.is_asked_for:  # before any image is read
            self._trained.prepare(None, batch_size=batch_size)
        self._readers = min(4, os.cpu_count() or 1)

    @property
    def notes(self) -> list[str]:
        """What a reader of the answers should know, in lines: the cost of test-time augmentation."""
        return self._trained.notes

    @property
    def model(self) -> str:
        """The file that the model comes from, or the name of published weights."""
        return str(self._trained.path)

    @property
    def explainable(self) -> bool:
        """Whether the model is one network, inside which `explain` can look."""
        return not self._exported and self._trained.spec.members == 1

    @property
    def multilabel(self) -> bool:
        """Whether an image has any number of the classes."""
        return self._trained.spec.multilabel

    @property
    def spec(self) -> ModelSpec:
        """What network it is, and how its input is made; the input size is the one in use."""
        return self._trained.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Readable names of the classes, in the order of the model's outputs."""
        return self._trained.spec.labels

    def __call__(self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int | None = None) -> Predictions:
        """Return the results of `predict` as a list."""
        return Predictions(self.predict(inputs, top_k=top_k))

    def predict(
        self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int | None = None
    ) -> Iterator[Prediction]:
        """Yield the results in the order of the images, while later images are being read.

        At most two batches of images are held in memory, and the names of all images of a folder.

        Args:
            inputs: One or many of: the path of a file or folder (all images in and below it, in natural
                order), the bytes of a file, a file opened with ``"rb"``, a PIL image, an array (H, W, C) or
                (H, W) of 8 bits. What is in memory may be changed once the next image is asked for.
            top_k: Number of classes per image; all classes if the model has fewer. By default 5, and of a
                model of several labels per image those that are present.

        Raises:
            UserError: ``top_k`` below 1, or a folder without images: at once if ``inputs`` is one image, a
                list or a tuple, otherwise when the folder is reached. A missing, broken or oversized image
                raises nothing; its `Prediction` has an ``error``.
        """
        number_of_classes = self._number_of_classes(top_k)
        inputs, number = as_several(inputs), None
        images = named_images(inputs)
        if isinstance(inputs, (list, tuple)):  # names only: find mistakes before any work
            listed = list(images)
            number = len(listed)
            self._trained.check_batch(min(self._batch_size, number))
            images = iter(listed)
        self._trained.prepare(number, batch_size=self._batch_size)
        return self._stream(images, number_of_classes)

    def read(self, image: ImageInput, *, name: str | None = None) -> Prepared:
        """Decode one image and transform it to the model's input, for `answer`.

        Args:
            image: As in `predict`, but no folder.
            name: What its `Prediction` and an error call it; as in `predict` by default.

        Raises:
            BrokenImageError: It is missing, broken or too large; the line names it.
            UserError: A folder, a URL, or an input of another type.
        """
        if isinstance(image, (str, os.PathLike)) and os.path.isdir(image):
            raise UserError(f"{image} is a folder; give it to predict")
        named = next(named_images([image]))
        return self._read(named if name is None else replace(named, name=name))

    def answer(self, images: Sequence[Prepared], *, top_k: int | None = None) -> list[Prediction]:
        """Classify images that `read` prepared, in one forward pass and in their order.

        Args:
            images: Any number of them.
            top_k: As in `predict`.

        Raises:
            UserError: ``top_k`` below 1, images that were prepared for another input, or more of them than
                fit into memory.
        """
        number = self._number_of_classes(top_k)
        wanted = self._trained.spec.preprocessing
        for image in images:
            if image.preprocessing != wanted:
                raise UserError(f"{image.name} was prepared for another model; read it with this predictor")
        if not images:
            return []
        self._trained.check_batch(len(images))
        self._trained.prepare(None, batch_size=self._batch_size)
        return list(self._infer(images, number))

    def _number_of_classes(self, top_k: int | None) -> int:
        """Return how many classes an answer has, 0 for those that are present."""
        if top_k is None:
            top_k = 0 if self._trained.spec.multilabel else TOP_K
        elif top_k < 1:
            raise UserError(f"top_k {top_k}: must be 1 or more")
        return min(top_k, len(self.classes))

    def _stream(self, images: Iterator[NamedImage], top_k: int) -> Iterator[Prediction]:
        pending: deque[tuple[str, Future[Prepared | str]]] = deque()
        pool = ThreadPoolExecutor(self._readers, thread_name_prefix="read-images")
        try:
            for image in images:
                pending.append((image.name, self._submit(pool, image)))
                if len(pending) == 2 * self._batch_size:
                    yield from self._answer([pending.popleft() for _ in range(self._batch_size)], top_k)
            while pending:
                batch = [pending.popleft() for _ in range(min(self._batch_size, len(pending)))]
                yield from self._answer(batch, top_k)
        finally:  # also if the caller stops early
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, image: NamedImage) -> Future[Prepared | str]:
        try:
            return pool.submit(self._try_to_read, image.held())  # the caller may change its object later
        except BrokenImageError as error:
            done: Future[Prepared | str] = Future()
            done.set_result(str(error))
            return done

    def _try_to_read(self, image: NamedImage) -> Prepared | str:
        """Return the model's input, or the line that says why there is none."""
        try:
            return self._read(image)
        except BrokenImageError as error:
            return str(error)

    def _read(self, image: NamedImage) -> Prepared:
        values = read_through(self._trained.transform, image.open).numpy()
        return Prepared(image.name, values, self._trained.spec.preprocessing)

    def _answer(self, batch: list[tuple[str, Future[Prepared | str]]], top_k: int) -> Iterator[Prediction]:
        read = [(name, future.result()) for name, future in batch]
        whole = [result for _, result in read if isinstance(result, Prepared)]
        answers = iter(self._infer(whole, top_k) if whole else ())
        for name, result in read:
            yield Prediction(name, (), (), error=result) if isinstance(result, str) else next(answers)

    def _infer(self, images: Sequence[Prepared], top_k: int) -> Iterator[Prediction]:
        """Compute the answers to the images of a batch; all at once what can be."""
        outputs = self._trained.outputs(torch.from_numpy(np.stack([image.values for image in images])))
        heads = {head: values.cpu() for head, values in self._trained.probabilities(outputs.logits).items()}
        fused, several = heads[FUSED], self._trained.spec.multilabel
        finite = torch.stack([values.isfinite().all(dim=1) for values in heads.values()]).all(dim=0).tolist()
        none: list[Any] = [None] * len(images)
        unsure = none if self._judge is None else self._judge(outputs)
        members = none if self._sets is None else self._sets(fused).tolist()
        present = is_present(fused, self._trained.spec).tolist() if several else none
        # Of sets, and of what is present, the classes are named in their order, however many there are.
        ranked = fused.topk(len(self.classes) if several or self._sets is not None else top_k)
        order, probabilities = ranked.indices.tolist(), ranked.values.tolist()
        branches = {head: self._guesses(values) for head, values in heads.items() if head != FUSED}
        for row, name in enumerate(image.name for image in images):
            if not finite[row]:
                yield Prediction(
                    name, (), (), error=f"{name}: the model's output is not finite; train it again"
                )
                continue
            own_set, shown = (
                None if chosen is None else tuple(self.classes[k] for k in order[row] if chosen[k])
                for chosen in (members[row], present[row])
            )
            places = list(range(max(top_k, len(own_set or ()))))
            if top_k == 0:  # what is present, which need not be the most probable: each has its own threshold
                places = [place for place, k in enumerate(order[row]) if present[row][k]]
            own = {head: guesses[row] for head, guesses in branches.items()}
            yield Prediction(
                name,
                tuple(self.classes[order[row][place]] for place in places),
                tuple(probabilities[row][place] for place in places),
                unsure=unsure[row],
                conformal_set=own_set,
                present=shown,
                conv=own.get("conv"),
                trans=own.get("trans"),
            )

    def _guesses(self, probabilities: Tensor) -> list[Guess]:
        """Return the first choices of a head with probabilities (B, K)."""
        best = probabilities.max(dim=1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Guess(self.classes[k], probability) for k, probability in pairs]
