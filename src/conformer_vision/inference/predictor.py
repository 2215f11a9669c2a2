"""Classifying images with a trained model, as a stream."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError
from conformer_vision.inference.inputs import ImageInput, NamedImage, named_images
from conformer_vision.inference.runtimes import FUSED
from conformer_vision.inference.trained_model import InputSize, TrainedModel
from conformer_vision.models.variants import SHIPPED


class Guess(NamedTuple):
    """A class and the probability a head gives it."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: classes by falling probability, or an error."""

    name: str
    """Path of the file, or the name given to an image without one."""
    labels: tuple[str, ...]
    """The top-k classes; empty with an error."""
    probabilities: tuple[float, ...]
    """Their probabilities among all classes, at the temperature that the model was calibrated to."""
    error: str | None = None
    """One line that says why there is no answer."""
    conv: Guess | None = None
    """First choice of a Conformer's convolution head; None for other models."""
    trans: Guess | None = None
    """First choice of its transformer head."""


class Predictor:
    """Classifies images with a trained model.

    Args:
        run: run folder, .safetensors file, exported file, or the name of a model of timm with published
            weights; where not given, the weights that come with the package (docs/weights.md).
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, or another of torch's.
        batch_size: images per forward pass.
        input_size: pixels of the square input, or (height, width), in place of the model's own.

    Raises:
        UserError: what `load_model` refuses, no such device, a size that the model cannot take.
    """

    def __init__(
        self,
        run: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        input_size: InputSize | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be 1 or more")
        self._trained = TrainedModel(SHIPPED if run is None else run, device=device, input_size=input_size)
        self._batch_size = batch_size
        self._readers = min(4, os.cpu_count() or 1)

    @property
    def model(self) -> str:
        """The file that the model comes from, or the name of published weights."""
        return str(self._trained.path)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the classes are called, in the order of the model's outputs."""
        return self._trained.spec.labels

    def __call__(self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int = 5) -> list[Prediction]:
        """`predict`, all answers at once."""
        return list(self.predict(inputs, top_k=top_k))

    def predict(self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int = 5) -> Iterator[Prediction]:
        """Answers for images, in the order given, while later ones are being read.

        At most two batches of images are held (of a folder, the names of all), so millions will do.

        Args:
            inputs: one or many of: a path of a file or of a folder (the images in and below it, in
                natural order), the bytes of a file, a PIL image.
            top_k: classes per image; all of them where the model has fewer.

        Raises:
            UserError: ``top_k`` below 1, or a folder without images; at once where ``inputs`` is a
                path, list or tuple, else when it is reached. A missing, broken or oversized image raises
                nothing: its `Prediction` has an ``error``.
        """
        if top_k < 1:
            raise UserError(f"top_k {top_k}: must be 1 or more")
        images = named_images(inputs)
        if isinstance(inputs, (str, os.PathLike, list, tuple)):  # names alone: mistakes show before any work
            images = iter(list(images))
        return self._stream(images, min(top_k, len(self.classes)))

    def _stream(self, images: Iterator[NamedImage], top_k: int) -> Iterator[Prediction]:
        pending: deque[tuple[str, Future[Tensor | str]]] = deque()
        pool = ThreadPoolExecutor(self._readers, thread_name_prefix="read-images")
        try:
            for image in images:
                pending.append((image.name, self._submit(pool, image)))
                if len(pending) == 2 * self._batch_size:
                    yield from self._answer([pending.popleft() for _ in range(self._batch_size)], top_k)
            while pending:
                batch = [pending.popleft() for _ in range(min(self._batch_size, len(pending)))]
                yield from self._answer(batch, top_k)
        finally:  # also where the caller stops early
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, image: NamedImage) -> Future[Tensor | str]:
        if not isinstance(image.source, Image.Image):
            return pool.submit(self._read, image)
        # The caller's own object: it may be given twice or changed later, so it is read here and now.
        done: Future[Tensor | str] = Future()
        done.set_result(self._read(image))
        return done

    def _read(self, image: NamedImage) -> Tensor | str:
        """The model's input (C, H, W), or the line that says why there is none."""
        try:
            return self._trained.transform(image.open())
        except BrokenImageError as error:
            return str(error)

    def _answer(self, batch: list[tuple[str, Future[Tensor | str]]], top_k: int) -> Iterator[Prediction]:
        read = [(name, future.result()) for name, future in batch]
        tensors = [result for _, result in read if isinstance(result, Tensor)]
        answers = iter(self._classify(torch.stack(tensors), top_k) if tensors else ())
        for name, result in read:
            if isinstance(result, str):
                yield Prediction(name, (), (), error=result)
            elif (answer := next(answers)) is None:
                yield Prediction(
                    name, (), (), error=f"{name}: the model's output is not finite; train it again"
                )
            else:
                labels, probabilities, first = answer
                yield Prediction(
                    name, labels, probabilities, conv=first.get("conv"), trans=first.get("trans")
                )

    def _classify(self, images: Tensor, top_k: int) -> Iterator[_Answer | None]:
        """One answer per image of (B, C, H, W); None where the output is not finite."""
        heads = {name: values.cpu() for name, values in self._trained.probabilities(images).items()}
        values, indices = heads[FUSED].topk(top_k, dim=1)
        first = {name: probabilities.max(dim=1) for name, probabilities in heads.items() if name != FUSED}
        finite = torch.stack([p.isfinite().all(dim=1) for p in heads.values()]).all(dim=0)
        for i in range(len(images)):
            if not finite[i]:
                yield None
                continue
            yield (
                tuple(self.classes[k] for k in indices[i].tolist()),
                tuple(values[i].tolist()),
                {
                    name: Guess(self.classes[int(best.indices[i])], float(best.values[i]))
                    for name, best in first.items()
                },
            )


_Answer = tuple[tuple[str, ...], tuple[float, ...], dict[str, Guess]]
