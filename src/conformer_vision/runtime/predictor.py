"""Classify images as a stream, or in two steps: read one, answer several."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from conformer_vision.data.images import BrokenImageError
from conformer_vision.errors import UserError, option
from conformer_vision.preprocessing import read_through
from conformer_vision.runs import find_model
from conformer_vision.spec import ModelSpec, Preprocessing

from .answers import Answering, Prediction, Predictions
from .base import Array, Floats
from .conformal import sets
from .inputs import ImageInput, NamedImage, as_several, named_images
from .model import AnsweringModel, InputSize
from .opening import open_export
from .views import Views, parse_views

TOP_K = 5
"""Classes per image of a model of one label, where no number is given."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as a network takes it, made by `Predictor.read`."""

    name: str
    values: Floats
    """(C, H, W), normalised."""
    preprocessing: Preprocessing
    """What made the values; another model may need another."""


class BasePredictor:
    """A model that classifies images; several threads may use one predictor.

    Args:
        trained: The model.
        batch_size: Images per forward pass.
        reject: Whether to say which answers are unsure, if the model has thresholds.
        coverage: Share of images like the validation images that gets a sure answer, instead of the model's.
        conformal: Error rate of sets of classes, in (0, 1); None for no sets.

    Raises:
        UserError: A batch size below 1, or a coverage or error rate for which the model has no thresholds.
    """

    def __init__(
        self,
        trained: AnsweringModel,
        *,
        batch_size: int,
        reject: bool,
        coverage: float | None,
        conformal: float | None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be 1 or more")
        if coverage is not None and not reject:
            raise UserError(f"{option('coverage', coverage)} is for rejecting answers, which is turned off")
        judge = trained.judge(coverage=coverage) if reject else None
        choose: Callable[[Array], Array] | None = None
        if conformal is not None:
            choose = partial(sets, rule=trained.set_rule(conformal), error_rate=conformal)
        self._trained = trained
        self._answering = Answering(trained.spec, judge, choose)
        self._batch_size = batch_size
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
        return self._trained.explainable

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
        values = read_through(self._trained.transform, image.open)
        return Prepared(image.name, values, self._trained.spec.preprocessing)

    def _answer(self, batch: list[tuple[str, Future[Prepared | str]]], top_k: int) -> Iterator[Prediction]:
        read = [(name, future.result()) for name, future in batch]
        whole = [result for _, result in read if isinstance(result, Prepared)]
        answers = iter(self._infer(whole, top_k) if whole else ())
        for name, result in read:
            yield Prediction(name, (), (), error=result) if isinstance(result, str) else next(answers)

    def _infer(self, images: Sequence[Prepared], top_k: int) -> Iterator[Prediction]:
        outputs = self._trained.outputs(np.stack([image.values for image in images]))
        return self._answering([image.name for image in images], outputs, top_k=top_k)


class Predictor(BasePredictor):
    """An exported file that classifies images, without PyTorch; several threads may use one predictor.

    Args:
        model: An ONNX or OpenVINO file that `export` wrote.
        device: ``auto`` (CUDA with onnxruntime-gpu), ``cpu`` or ``cuda``.
        batch_size: Images per forward pass.
        input_size: Pixels of the square input, or (height, width), instead of the model's own.
        reject: Whether to say which answers are unsure, if the model has thresholds (docs/unsure.md).
        coverage: Share of images like the validation images that gets a sure answer, instead of the model's.
        conformal: Error rate of sets of classes, in (0, 1); None for no sets.
        tta: Test-time augmentation: ``flip``, ``scales``, ``flip+scales``, ``scales=0.8,1,1.25`` or `Views`.

    Raises:
        UserError: No such file, a model of another kind, a damaged file, a missing library, a size that the
            model cannot take, or a coverage or error rate for which it has no thresholds.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 32,
        input_size: InputSize | None = None,
        reject: bool = True,
        coverage: float | None = None,
        conformal: float | None = None,
        tta: str | Views | None = None,
    ) -> None:
        source = find_model(model)
        if not source.exported:
            raise UserError(
                f"{source.path} is no exported file; conformer_vision.Predictor takes it, with PyTorch"
            )
        opened = open_export(source, device=device)
        trained = AnsweringModel(source.path, opened, input_size=input_size, views=parse_views(tta))
        super().__init__(
            trained, batch_size=batch_size, reject=reject, coverage=coverage, conformal=conformal
        )
