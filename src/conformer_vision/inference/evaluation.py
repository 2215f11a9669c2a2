"""Accuracy of a trained model on labelled images, for each head in one pass."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from conformer_vision.data import ImageSource, ImageStream, Splitting
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.data.splits import Split
from conformer_vision.errors import UserError
from conformer_vision.inference.calibration import BINS, binned_probabilities
from conformer_vision.inference.confusion import Confusion
from conformer_vision.inference.labelled import Data, LabelledImages, read_run_data
from conformer_vision.inference.runtimes import FUSED
from conformer_vision.inference.trained_model import InputSize, TrainedModel
from conformer_vision.runs import find_model


@dataclass(frozen=True)
class Answers:
    """The logits of every head for a batch of images, without the broken ones."""

    logits: dict[str, Tensor]
    """Head -> (B, K) float32, on the model's device; all finite."""
    labels: Tensor
    """(B,) int64, true classes, on the model's device."""
    indices: Tensor
    """(B,) int64, on the CPU: numbers of the images in their source; -1 for a stream."""
    order: Tensor
    """(B,) int64, on the CPU: numbers of the images in the pass from 0, counting broken ones."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; shares are in [0, 1].

    The keys of ``top1``, ``top5`` and ``loss`` are the heads: ``conv``, ``trans`` and ``fused`` (the
    model's prediction), or ``fused`` alone for a network with one head.
    """

    samples: int
    """Number of images, without those that could not be read."""
    top1: dict[str, float]
    """Share of images whose class has the largest logit."""
    top5: dict[str, float] | None
    """Share whose class is among the five largest; None with fewer than five classes."""
    loss: dict[str, float]
    """Mean cross-entropy of the logits as they are, in nats, without label smoothing."""
    nll: float
    """Mean cross-entropy of the prediction at the model's temperature, in nats."""
    ece: float
    """Expected calibration error of the prediction at the model's temperature (15 bins), in [0, 1]."""
    per_class: dict[str, float | None]
    """Top-1 of the prediction among the images of each class; None for a class without images."""
    confusion: Confusion
    """Counts of the prediction: true class -> predicted class -> images. Pairs without images are left out,
    so that it grows with the images and not with the square of the classes."""
    classes: tuple[str, ...]
    """Names of the model's outputs."""
    seconds: float
    """Time of the pass, including the reading of images but not the loading of the model."""
    images_per_second: float
    """Images in that time."""
    broken: list[str]
    """One line, with the name and the reason, for each image that could not be read."""

    def to_json(self) -> str:
        """Return all fields as one JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)


def evaluate(
    model: str | Path,
    data: Data,
    *,
    split: Split = "val",
    splitting: Splitting | None = None,
    data_dir: str | Path | None = None,
    exclude: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "auto",
    input_size: InputSize | None = None,
    arch: str | None = None,
) -> Evaluation:
    """Evaluate a trained model on labelled images, without augmentation.

    Args:
        model: A run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights.
        data: A set of images as training takes it; its classes are matched to the model's by name.
        split: Part of the set; ``all`` for one that is a test set as a whole.
        splitting: How a set without validation images of its own is cut. Defaults to the run's own
            (``config.yaml``), so that the images it was trained on stay out.
        data_dir: Where named sets are kept; defaults to the run's own.
        exclude: List of images to leave out. The run's own list is not applied.
        batch_size: Images per forward pass.
        workers: Processes that read images; 0 reads them in this one.
        device: ``auto`` or a torch device.
        input_size: Pixels of the square input, or (height, width), instead of the model's own.
        arch: timm's name of a checkpoint's architecture, where its content does not tell; see `load`.

    Raises:
        UserError: No such model or data, an input size that the model cannot take, no image that can be read,
            or a model whose output is not finite. Single broken images are left out and named in the result.
    """
    trained = TrainedModel(find_model(model, arch=arch), device=device, input_size=input_size)
    run = read_run_data(trained.path)
    images = LabelledImages(
        data, split, splitting or run.splitting, data_dir=data_dir or run.data_dir, exclude=exclude
    )
    source = images.open(trained.spec.classes)
    return evaluate_images(trained, source, batch_size=batch_size, workers=workers)


def evaluate_images(
    trained: TrainedModel,
    source: ImageSource | ImageStream,
    *,
    batch_size: int,
    workers: int,
    each: Callable[[Answers], object] | None = None,
) -> Evaluation:
    """Evaluate a model on the images of an open source.

    Args:
        trained: The model.
        source: The images.
        batch_size: Images per forward pass.
        workers: Processes that read images; 0 reads them in this one.
        each: Receives the logits of every batch.

    Raises:
        UserError: A model with a single class or an output that is not finite, an invalid batch size or
            number of workers, or no image that can be read.
    """
    classes = trained.spec.classes
    if len(classes) < 2:
        raise UserError(f"{trained.path} has a single class ({classes[0]}); there is nothing to evaluate")
    metrics = _Metrics(trained)
    broken: list[str] = []
    seen = read = 0
    start = time.perf_counter()
    images = batch_size if isinstance(source, ImageStream) else min(batch_size, len(source))
    trained.check_batch(images, read_ahead=2 * workers)
    for batch in evaluation_loader(source, trained.transform, batch_size=batch_size, workers=workers):
        broken += batch.broken
        kept = (batch.labels >= 0).nonzero().flatten()
        if len(kept):
            logits = trained.runtime(batch.images[kept])
            if not all(bool(values.isfinite().all()) for values in logits.values()):
                raise UserError(f"the output of the model {trained.path} is not finite; train it again")
            labels = batch.labels[kept].to(trained.device)
            metrics.update(logits, labels)
            if each is not None:
                each(Answers(logits, labels, batch.indices[kept], kept + seen))
        seen += len(batch.labels)
        read += len(kept)
    if not read:
        raise UserError(f"none of the {seen} images can be read; the first: {broken[0] if broken else '-'}")
    return metrics.compute(start, broken=broken)


class _Metrics:
    """The metrics of every head, fed batch by batch on the device that computes the logits."""

    def __init__(self, trained: TrainedModel) -> None:
        self._names = trained.spec.classes
        self._classes = len(self._names)
        self._temperature = trained.spec.temperature
        self._device = trained.device
        self._heads: dict[str, MetricCollection] = defaultdict(self._new_metrics)
        self._losses: dict[str, MeanMetric] = defaultdict(lambda: MeanMetric().to(self._device))
        self._nll = MeanMetric().to(self._device)
        self._ece = MulticlassCalibrationError(self._classes, n_bins=BINS).to(self._device)
        self._pairs: Counter[tuple[int, int]] = Counter()
        """Images by the numbers of their true and their predicted class."""

    def _new_metrics(self) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "top1": MulticlassAccuracy(self._classes, average="micro")
        }
        if self._classes >= 5:
            metrics["top5"] = MulticlassAccuracy(self._classes, average="micro", top_k=5)
        return MetricCollection(metrics, compute_groups=False).to(self._device)

    def update(self, heads: dict[str, Tensor], labels: Tensor) -> None:
        for name, logits in heads.items():
            self._heads[name].update(logits, labels)
            self._losses[name].update(cross_entropy(logits, labels), weight=len(labels))
        scaled = heads[FUSED] / self._temperature
        self._nll.update(cross_entropy(scaled, labels), weight=len(labels))
        self._ece.update(binned_probabilities(scaled), labels)
        self._pairs.update(zip(labels.tolist(), heads[FUSED].argmax(dim=1).tolist(), strict=True))

    def compute(self, start: float, *, broken: list[str]) -> Evaluation:
        seconds = time.perf_counter() - start
        results = {name: metrics.compute() for name, metrics in self._heads.items()}
        samples, totals = self._pairs.total(), Counter[int]()
        confusion: Confusion = defaultdict(dict)
        for (label, predicted), count in sorted(self._pairs.items()):
            confusion[self._names[label]][self._names[predicted]] = count
            totals[label] += count
        return Evaluation(
            samples=samples,
            top1={name: float(result["top1"]) for name, result in results.items()},
            top5={name: float(result["top5"]) for name, result in results.items()}
            if self._classes >= 5
            else None,
            loss={name: float(metric.compute()) for name, metric in self._losses.items()},
            nll=float(self._nll.compute()),
            ece=float(self._ece.compute()),
            per_class={
                name: self._pairs[i, i] / totals[i] if totals[i] else None
                for i, name in enumerate(self._names)
            },
            confusion=dict(confusion),
            classes=self._names,
            seconds=seconds,
            images_per_second=samples / seconds,
            broken=broken,
        )
