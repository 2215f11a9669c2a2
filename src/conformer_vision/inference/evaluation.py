"""Accuracy of a trained model on labelled pictures, for each head in one pass."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from conformer_vision.data import build_loader, open_source
from conformer_vision.errors import UserError
from conformer_vision.inference.confusion import save_confusion_matrix
from conformer_vision.inference.runtime import FUSED, TrainedModel


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; shares are in [0, 1].

    The keys of ``top1``, ``top5`` and ``loss`` are the heads: ``conv``, ``trans`` and ``fused`` (the
    model's prediction), or ``fused`` alone for a network with one head.
    """

    samples: int
    """Number of pictures."""
    top1: dict[str, float]
    """Share of pictures whose class has the largest logit."""
    top5: dict[str, float] | None
    """Share whose class is among the five largest; None with fewer than five classes."""
    loss: dict[str, float]
    """Mean cross-entropy, in nats, without label smoothing."""
    per_class: dict[str, float | None]
    """Top-1 of the prediction among the pictures of each class; None for a class without pictures."""
    confusion: list[list[int]]
    """Counts of the prediction; row: true class, column: predicted class."""
    classes: tuple[str, ...]
    """Names of the rows and columns."""
    seconds: float
    """Time of the pass, reading of the pictures included, loading of the model not."""
    images_per_second: float
    """Pictures in that time."""

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
    val_fraction: float | None = None,
    seed: int | None = None,
    confusion_matrix: Path | None = None,
) -> Evaluation:
    """Measures a trained model on a part of a labelled source, without augmentation.

    Args:
        run: run folder or .safetensors file.
        data: a source as `open_source` takes it; its classes are matched to the model's by name.
        split: the part of the source; ``all`` for a source that is a test set as a whole.
        batch_size: pictures per forward pass.
        workers: processes that read pictures; 0 reads them in this one.
        device: ``auto`` or a torch device.
        val_fraction: share held out, for a source without a split of its own. Where not given, the
            run's own (config.yaml), so that pictures it was trained on stay out; else 0.1.
        seed: seed of that split; where not given, likewise the run's own, else 0.
        confusion_matrix: PNG to write.

    Raises:
        UserError: what `load_model` or `open_source` refuse, a broken picture, a model whose output
            is not finite.
    """
    trained = TrainedModel(run, device=device)
    classes = trained.card.classes
    if len(classes) < 2:
        raise UserError(f"{run} has a single class ({classes[0]}); there is nothing to measure")
    own_fraction, own_seed = _split_of_run(Path(run))
    source = open_source(
        data,
        split=split,
        val_fraction=own_fraction if val_fraction is None else val_fraction,
        seed=own_seed if seed is None else seed,
        classes=classes,
    )
    loader = build_loader(
        source,
        trained.transform,
        batch_size=batch_size,
        workers=workers,
        shuffle=False,
        seed=0,
        drop_last=False,
    )
    start = time.perf_counter()
    meter = _Meter(len(classes), trained.device)
    for pictures, labels in loader:
        heads = trained.logits(pictures)
        if not all(bool(logits.isfinite().all()) for logits in heads.values()):
            raise UserError(f"the output of the model of {run} is not finite; its training diverged")
        meter.update(heads, labels)
    evaluation = meter.evaluation(classes, start)
    if confusion_matrix is not None:
        save_confusion_matrix(evaluation.confusion, classes, confusion_matrix)
    return evaluation


def _split_of_run(run: Path) -> tuple[float, int]:
    """``val_fraction`` and ``seed`` of the config beside the weights; training's defaults without one."""
    config = (run if run.is_dir() else run.parent) / "config.yaml"
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {config}; give val_fraction and seed, or mend it") from error
    if not isinstance(values, dict):
        raise UserError(f"{config} is not a run's config; give val_fraction and seed, or mend it")
    return float(values.get("val_fraction", 0.1)), int(values.get("seed", 0))


class _Meter:
    """Metrics of every head, kept on the device that computes the logits."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._device = device
        self._heads: dict[str, MetricCollection] = {}
        self._losses: dict[str, MeanMetric] = {}
        self._confusion = MulticlassConfusionMatrix(classes).to(device)

    def _new_metrics(self) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "top1": MulticlassAccuracy(self._classes, average="micro")
        }
        if self._classes >= 5:
            metrics["top5"] = MulticlassAccuracy(self._classes, average="micro", top_k=5)
        return MetricCollection(metrics, compute_groups=False).to(self._device)

    def update(self, heads: dict[str, Tensor], labels: Tensor) -> None:
        """Takes in the logits (B, K) of every head and the true classes (B,)."""
        labels = labels.to(self._device)
        for name, logits in heads.items():
            if name not in self._heads:
                self._heads[name] = self._new_metrics()
                self._losses[name] = MeanMetric().to(self._device)
            self._heads[name].update(logits, labels)
            self._losses[name].update(cross_entropy(logits, labels), weight=len(labels))
        self._confusion.update(heads[FUSED], labels)

    def evaluation(self, classes: Sequence[str], start: float) -> Evaluation:
        """The result; ``start`` is the reading of ``time.perf_counter`` before the pass."""
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
            per_class={
                name: row[i] / sum(row) if sum(row) else None
                for i, (name, row) in enumerate(zip(classes, confusion, strict=True))
            },
            confusion=confusion,
            classes=tuple(classes),
            seconds=seconds,
            images_per_second=samples / seconds,
        )
