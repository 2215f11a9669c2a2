"""Accuracy of a trained model on labelled images, for each head in one pass."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from conformer_vision.data import ImageSource, Splitting, open_images, require_source
from conformer_vision.data.exclude import exclude as without
from conformer_vision.data.exclude import read_exclusions
from conformer_vision.data.streams.base import ImageStream
from conformer_vision.errors import UserError
from conformer_vision.inference.answers import answers
from conformer_vision.inference.calibration import ExpectedCalibrationError
from conformer_vision.inference.confusion import save_confusion_matrix
from conformer_vision.inference.networks import FUSED
from conformer_vision.inference.runtime import InputSize, TrainedModel
from conformer_vision.runs import CONFIG_FILE, read_run_config


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; shares are in [0, 1].

    The keys of ``top1``, ``top5`` and ``loss`` are the heads: ``conv``, ``trans`` and ``fused`` (the
    model's prediction), or ``fused`` alone for a network with one head.
    """

    samples: int
    """Number of images, those that could not be read left out."""
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
    confusion: list[list[int]]
    """Counts of the prediction; row: true class, column: predicted class."""
    classes: tuple[str, ...]
    """Names of the rows and columns."""
    seconds: float
    """Time of the pass, reading of the images included, loading of the model not."""
    images_per_second: float
    """Images in that time."""
    broken: list[str]
    """One line, with the name and the reason, for each image that could not be read."""

    def to_json(self) -> str:
        """One JSON object of all fields."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: Literal["train", "val", "all"] = "val",
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "auto",
    input_size: InputSize | None = None,
    val_fraction: float | None = None,
    seed: int | None = None,
    folds: int | None = None,
    fold: int | None = None,
    data_dir: str | None = None,
    exclude: str | Path | None = None,
    confusion_matrix: Path | None = None,
) -> Evaluation:
    """Measures a trained model on a part of a labelled source, without augmentation.

    Args:
        run: run folder, .safetensors file, exported file, or the name of a model of timm with published
            weights.
        data: a source as `open_images` takes it; its classes are matched to the model's
            by name.
        split: the part of the source; ``all`` for a source that is a test set as a whole.
        batch_size: images per forward pass.
        workers: processes that read images; 0 reads them in this one.
        device: ``auto`` or a torch device.
        input_size: pixels of the square input, or (height, width), in place of the model's own.
        val_fraction: share held out, for a source without a split of its own. Where not given, the
            run's own (config.yaml), so that images it was trained on stay out; else 0.1.
        seed: seed of that split; where not given, likewise the run's own, else 0.
        folds: number of folds the source is cut into; where not given, likewise the run's own.
        fold: the fold held out, from 0; where not given, likewise the run's own, else 0.
        data_dir: where sets given by name lie; where not given, likewise the run's own.
        exclude: list of images to leave out (`data.exclude`). The run's own list is not applied.
        confusion_matrix: PNG to write.

    Raises:
        UserError: what `load_model` or `open_images` refuse, an input size that the model cannot take, no
            image that can be read, a model whose output is not finite. Single broken images are left
            out and named in the result.
    """
    trained = TrainedModel(run, device=device, input_size=input_size)
    classes = trained.spec.classes
    check_classes(trained)
    given: dict[str, Any] = {"val_fraction": val_fraction, "seed": seed, "folds": folds, "fold": fold}
    own = data_of_run(trained.path)
    source = open_labelled(
        data,
        split,
        replace(own.splitting, **{name: value for name, value in given.items() if value is not None}),
        classes=classes,
        data_dir=own.data_dir if data_dir is None else data_dir,
        exclude=exclude,
    )
    broken: list[str] = []
    start = time.perf_counter()
    meter = Meter(trained)
    for part in answers(trained, source, batch_size=batch_size, workers=workers, broken=broken):
        meter.update(part.logits, part.labels)
    evaluation = meter.evaluation(classes, start, broken=broken)
    if confusion_matrix is not None:
        save_confusion_matrix(evaluation.confusion, classes, confusion_matrix)
    return evaluation


def check_classes(trained: TrainedModel) -> None:
    """Refuses a model with one class.

    Raises:
        UserError: it has one.
    """
    if len(trained.spec.classes) < 2:
        only = trained.spec.classes[0]
        raise UserError(f"{trained.path} has a single class ({only}); there is nothing to measure")


def open_labelled(
    data: str | Path,
    split: Literal["train", "val", "all"],
    splitting: Splitting,
    *,
    classes: Sequence[str],
    data_dir: str | None,
    exclude: str | Path | None = None,
) -> ImageSource | ImageStream:
    """`open_images` without the images of a list.

    Raises:
        UserError: as `open_images` and `read_exclusions`, or a list for a stream.
    """
    images = open_images(data, split, splitting, classes=classes, data_dir=data_dir)
    if exclude is None:
        return images
    source = require_source(images, name=f"exclude {exclude}: {data}")
    return without(source, read_exclusions(exclude), every_class=False)


@dataclass(frozen=True)
class RunData:
    """The data that a run was trained on.

    Attributes:
        data: what its config names; None without a config.
        splitting: how it is cut; training's default without a config.
        data_dir: where sets with a name are kept.
    """

    data: str | None = None
    splitting: Splitting = Splitting()  # noqa: RUF009  # immutable
    data_dir: str | None = None


def data_of_run(run: Path) -> RunData:
    """The data that the config beside the weights names.

    Args:
        run: run folder, or a file in it.

    Raises:
        UserError: a config that cannot be read.
    """
    defaults = {"data": None, "val_fraction": 0.1, "seed": 0, "folds": None, "fold": 0, "data_dir": None}
    kinds = {"data": str | None, "val_fraction": float, "seed": int, "folds": int | None, "fold": int}
    kinds["data_dir"] = str | None
    config = (run if run.is_dir() else run.parent) / CONFIG_FILE
    found = read_run_config(config.parent) if run.exists() and config.is_file() else {}
    values: dict[str, Any] = {name: found.get(name, default) for name, default in defaults.items()}
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise UserError(f"{config}: {name} {values[name]!r} cannot be; give {name}, or mend it")
    splitting = Splitting(*(values[name] for name in ("val_fraction", "seed", "folds", "fold")))
    return RunData(values["data"], splitting, values["data_dir"])


class Meter:
    """Metrics of every head, kept on the device that computes the logits.

    Args:
        trained: the model whose answers come in.
    """

    def __init__(self, trained: TrainedModel) -> None:
        self._classes = len(trained.spec.classes)
        self._temperature = trained.spec.temperature
        self._device = trained.device
        self._heads: dict[str, MetricCollection] = {}
        self._losses: dict[str, MeanMetric] = {}
        self._nll = MeanMetric().to(self._device)
        self._ece = ExpectedCalibrationError(self._classes, temperature=self._temperature).to(self._device)
        self._confusion = MulticlassConfusionMatrix(self._classes).to(self._device)

    def _new_metrics(self) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "top1": MulticlassAccuracy(self._classes, average="micro")
        }
        if self._classes >= 5:
            metrics["top5"] = MulticlassAccuracy(self._classes, average="micro", top_k=5)
        return MetricCollection(metrics, compute_groups=False).to(self._device)

    def update(self, heads: dict[str, Tensor], labels: Tensor) -> None:
        """Takes in the logits (B, K) of every head and the true classes (B,), on the model's device."""
        for name, logits in heads.items():
            if name not in self._heads:
                self._heads[name] = self._new_metrics()
                self._losses[name] = MeanMetric().to(self._device)
            self._heads[name].update(logits, labels)
            self._losses[name].update(cross_entropy(logits, labels), weight=len(labels))
        fused = heads[FUSED]
        self._nll.update(cross_entropy(fused / self._temperature, labels), weight=len(labels))
        self._ece.update(fused, labels)
        self._confusion.update(fused, labels)

    def evaluation(self, classes: Sequence[str], start: float, *, broken: Sequence[str]) -> Evaluation:
        """The result of at least one `update`.

        Args:
            classes: names of the K classes.
            start: reading of ``time.perf_counter`` before the pass.
            broken: one line for each image that could not be read.
        """
        confusion: list[list[int]] = self._confusion.compute().tolist()
        seconds = time.perf_counter() - start
        results = {name: metrics.compute() for name, metrics in self._heads.items()}
        samples = sum(map(sum, confusion))
        return Evaluation(
            samples=samples,
            top1={name: float(result["top1"]) for name, result in results.items()},
            top5={name: float(result["top5"]) for name, result in results.items()}
            if len(classes) >= 5
            else None,
            loss={name: float(metric.compute()) for name, metric in self._losses.items()},
            nll=float(self._nll.compute()),
            ece=float(self._ece.compute()),
            per_class={
                name: row[i] / sum(row) if sum(row) else None
                for i, (name, row) in enumerate(zip(classes, confusion, strict=True))
            },
            confusion=confusion,
            classes=tuple(classes),
            seconds=seconds,
            images_per_second=samples / seconds,
            broken=list(broken),
        )
