"""Classify images with a trained model, as a stream."""

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
from conformer_vision.runs import find_model


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
    """The top-k classes; empty with an error."""
    probabilities: tuple[float, ...]
    """Their probabilities among all classes, at the model's temperature."""
    error: str | None = None
    """Why there is no result, in one line."""
    conv: Guess | None = None
    """First choice of a Conformer's convolution head; None for other models."""
    trans: Guess | None = None
    """First choice of its transformer head."""


class Predictor:
    """A trained model that classifies images; several threads may use one predictor.

    Args:
        model: A run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights;
            defaults to the bundled weights (docs/weights.md).
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, or another torch device.
        batch_size: Images per forward pass.
        input_size: Pixels of the square input, or (height, width), instead of the model's own.
        arch: timm's name of a checkpoint's architecture, where its content does not tell; see `load`.

    Raises:
        UserError: No such model or device, a damaged file, or a size that the model cannot take.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        input_size: InputSize | None = None,
        arch: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be 1 or more")
        source = find_model(SHIPPED if model is None else model, arch=arch)
        self._exported = source.exported
        self._trained = TrainedModel(source, device=device, input_size=input_size)
        self._batch_size = batch_size
        self._readers = min(4, os.cpu_count() or 1)

    @property
    def model(self) -> str:
        """The file that the model comes from, or the name of published weights."""
        return str(self._trained.path)

    @property
    def exported(self) -> bool:
        """Whether the model is an exported file, whose inside cannot be looked at."""
        return self._exported

    @property
    def classes(self) -> tuple[str, ...]:
        """Readable names of the classes, in the order of the model's outputs."""
        return self._trained.spec.labels

    def __call__(self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int = 5) -> list[Prediction]:
        """Return the results of `predict` as a list."""
        return list(self.predict(inputs, top_k=top_k))

    def predict(self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int = 5) -> Iterator[Prediction]:
        """Yield the results in the order of the images, while later images are being read.

        At most two batches of images are held in memory, and the names of all images of a folder.

        Args:
            inputs: One or many of: the path of a file or folder (all images in and below it, in natural
                order), the bytes of a file, a PIL image.
            top_k: Number of classes per image; all classes if the model has fewer.

        Raises:
            UserError: ``top_k`` below 1, or a folder without images: at once if ``inputs`` is a path, list or
                tuple, otherwise when the folder is reached. A missing, broken or oversized image raises
                nothing; its `Prediction` has an ``error``.
        """
        if top_k < 1:
            raise UserError(f"top_k {top_k}: must be 1 or more")
        images = named_images(inputs)
        if isinstance(inputs, (str, os.PathLike, list, tuple)):  # names only: find mistakes before any work
            listed = list(images)
            self._trained.check_batch(min(self._batch_size, len(listed)))
            images = iter(listed)
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
        finally:  # also if the caller stops early
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, image: NamedImage) -> Future[Tensor | str]:
        if not isinstance(image.source, Image.Image):
            return pool.submit(self._read, image)
        # The caller may pass its object twice or change it later, so read it now.
        done: Future[Tensor | str] = Future()
        done.set_result(self._read(image))
        return done

    def _read(self, image: NamedImage) -> Tensor | str:
        """Return the model's input (C, H, W), or the line that says why there is none."""
        try:
            return self._trained.transform(image.open())
        except BrokenImageError as error:
            return str(error)

    def _answer(self, batch: list[tuple[str, Future[Tensor | str]]], top_k: int) -> Iterator[Prediction]:
        read = [(name, future.result()) for name, future in batch]
        images = [result for _, result in read if isinstance(result, Tensor)]
        heads = self._trained.probabilities(torch.stack(images)) if images else {}
        heads = {head: values.cpu() for head, values in heads.items()}
        rows = iter(range(len(images)))
        for name, result in read:
            if isinstance(result, str):
                yield Prediction(name, (), (), error=result)
                continue
            row = next(rows)
            yield self._prediction(name, {head: values[row] for head, values in heads.items()}, top_k)

    def _prediction(self, name: str, heads: dict[str, Tensor], top_k: int) -> Prediction:
        """Return the result for the probabilities (K,) of every head."""
        if not all(bool(values.isfinite().all()) for values in heads.values()):
            return Prediction(name, (), (), error=f"{name}: the model's output is not finite; train it again")
        best = heads[FUSED].topk(top_k)
        labels = tuple(self.classes[k] for k in best.indices.tolist())
        branches = {
            head: Guess(self.classes[int(values.argmax())], values.max().item())
            for head, values in heads.items()
            if head != FUSED
        }
        return Prediction(
            name,
            labels,
            tuple(best.values.tolist()),
            conv=branches.get("conv"),
            trans=branches.get("trans"),
        )
