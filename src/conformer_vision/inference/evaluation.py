"""Figures of a trained model on labelled images, for each head, from one pass."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from conformer_vision import notebook
from conformer_vision.data import ImageSource, ImageStream, Splitting
from conformer_vision.data.splits import Split
from conformer_vision.inference.answers import Answers, AnswersOf
from conformer_vision.inference.collect import collect_answers
from conformer_vision.inference.confusion import Confusion, confused_pairs
from conformer_vision.inference.conversion.choice import RuntimeChoice, RuntimeName
from conformer_vision.inference.conversion.formats import Precision
from conformer_vision.inference.figures import FiguresOfHead, Metric
from conformer_vision.inference.labelled import Data, LabelledImages, read_run_data, warn_of_cut
from conformer_vision.inference.metrics import CLASS_METRICS, METRICS, HeadFigures
from conformer_vision.inference.multilabel_metrics import (
    MULTILABEL_CLASS_METRICS,
    MULTILABEL_METRICS,
    MultilabelFigures,
)
from conformer_vision.inference.out_of_fold import collect_out_of_fold, images_unseen
from conformer_vision.inference.selective import Selective, make_watch, unknown_scores
from conformer_vision.inference.tables import Table, table_of_classes, table_of_heads
from conformer_vision.inference.task import task_of
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.runs import find_model
from conformer_vision.runtime.base import FUSED, Array, Outputs
from conformer_vision.runtime.model import InputSize
from conformer_vision.runtime.views import Views, parse_views
from conformer_vision.spec import ModelSpec


@dataclass(frozen=True)
class _Evaluated:
    """What evaluations of every kind of model have."""

    samples: int
    """Number of images, without those that could not be read."""
    ranked: int
    """Number of images, evenly drawn, that AUROC and average precision are of, as memory allows."""
    groups: int | None
    """Number of groups of images, such as patients, that the intervals resample; None without groups."""
    classes: tuple[str, ...]
    """Names of the model's outputs."""
    seconds: float
    """Time of the pass, including the reading of images but not the loading of the model."""
    images_per_second: float
    """Images in that time."""
    broken: list[str]
    """One line, with the name and the reason, for each image that could not be read."""
    answers: AnswersOf[Any] = field(repr=False, compare=False)
    """The answers to every image; not in the JSON."""

    metrics: ClassVar[tuple[Metric, ...]]
    """Of a head, the one that models are compared by first."""
    class_metrics: ClassVar[tuple[Metric, ...]]
    """Of every class."""

    def tables(self) -> tuple[Table, Table]:
        """Return the figures of every head, and those of the classes, as text."""
        heads: dict[str, FiguresOfHead[Any]] = self.heads  # type: ignore[attr-defined]  # of each kind its own
        drawn = "the images" if self.groups is None else f"{self.groups:,} groups of images"
        return (
            table_of_heads(heads, self.metrics, drawn=drawn),
            table_of_classes(heads[FUSED], self.class_metrics),
        )

    def remarks(self) -> list[str]:
        """Return what else a reader should know, in lines."""
        figures: FiguresOfHead[Any] = self.heads[FUSED]  # type: ignore[attr-defined]
        empty = sum(each is None for each in figures.classes.values())
        return [f"classes without images, which are in no mean: {empty:,}"] if empty else []

    def _repr_html_(self) -> str:
        """Show the figures in a notebook."""
        heads, classes = self.tables()
        lines = [notebook.line(text) for text in self.remarks()]
        if self.broken:
            lines.append(notebook.warning(f"{len(self.broken):,} images could not be read: {self.broken[0]}"))
        return notebook.block(
            notebook.title(f"{self.samples:,} images"),
            notebook.table(heads.columns, heads.rows),
            notebook.line(heads.title, muted=True),
            *lines,
            notebook.folded(classes.title, notebook.table(classes.columns, classes.rows)),
        )

    def to_json(self) -> str:
        """Return all fields but the answers as one JSON object."""
        return json.dumps(self._plain(), ensure_ascii=False, allow_nan=False)

    def _plain(self) -> dict[str, Any]:
        plain = asdict(replace(self, answers=None))  # type: ignore[arg-type]
        del plain["answers"]
        return plain


@dataclass(frozen=True)
class Evaluation(_Evaluated):
    """What `evaluate` found of a model of one label per image."""

    metrics = METRICS
    class_metrics = CLASS_METRICS

    heads: dict[str, HeadFigures]
    """The figures by head: ``conv``, ``trans`` and ``fused`` (the model's prediction, with probabilities at
    its temperature), or ``fused`` alone for a network with one head."""
    confusion: Confusion
    """Counts of the prediction: true class -> predicted class -> images. Pairs without images are left out,
    so that it grows with the images and not with the square of the classes."""
    selective: Selective | None = None
    """What rejecting unsure answers brings; None for a model without thresholds."""

    def remarks(self) -> list[str]:
        """Return what else a reader should know: the classes most often taken for others."""
        return super().remarks() + [
            f"{pair.true} taken for {pair.predicted}: {pair.images:,} ({pair.share:.0%})"
            for pair in confused_pairs(self.confusion)[:3]
        ]

    def _plain(self) -> dict[str, Any]:
        plain = super()._plain()
        if plain["selective"] is not None:
            del plain["selective"]["risks"]
        return plain


@dataclass(frozen=True)
class MultilabelEvaluation(_Evaluated):
    """What `evaluate` found of a model of several labels per image."""

    metrics = MULTILABEL_METRICS
    class_metrics = MULTILABEL_CLASS_METRICS

    heads: dict[str, MultilabelFigures]
    """The figures by head, as in `Evaluation`. An image is said to have a class if its probability reaches
    the model's threshold of the class. The branches are cut at the same logits."""
    thresholds: dict[str, float]
    """The threshold of each class."""

    def remarks(self) -> list[str]:
        """Return what else a reader should know: the thresholds."""
        low, high = min(self.thresholds.values()), max(self.thresholds.values())
        text = f"all {low:.2f}" if low == high else f"from {low:.2f} to {high:.2f}"
        return [*super().remarks(), f"thresholds of the classes: {text}"]


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
    keep_all: bool = False,
    coverage: float | None = None,
    conformal: float | None = None,
    ood: str | None = None,
    tta: str | Views | None = None,
    runtime: RuntimeName = "auto",
    precision: Precision | None = None,
) -> Evaluation | MultilabelEvaluation:
    """Evaluate a trained model on labelled images, without augmentation unless it is asked for.

    Args:
        model: A run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights. Of
            a run of all folds, each image is evaluated with the network that was not trained on it; images
            of a validation split of the set's own, and those of another set with ``split="all"``, with the
            ensemble.
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
        keep_all: Keep the answers to all images whole, as `save_predictions` needs them, whatever memory that
            takes; by default those of an evenly drawn part of a very large set.
        coverage: Share of images like the validation images that is to be answered, instead of the model's.
        conformal: Error rate of sets of classes, in (0, 1), to evaluate; None for no sets.
        ood: Images of other things than the classes, to see how well they are told: an image, a folder, or a
            set of images.
        tta: Test-time augmentation, as for `Predictor`.
        runtime: What computes the model, as for `Predictor`.
        precision: Of the computation, as for `Predictor`.

    Raises:
        UserError: No such model or data, an input size that the model cannot take, no image that can be read,
            or a model whose output is not finite. Single broken images are left out and named in the result.
            Or a model without thresholds, where ``coverage``, ``conformal`` or ``ood`` need them, or images
            of several labels each for a model of one.
    """
    source = find_model(model, arch=arch)
    choice = RuntimeChoice(runtime, precision)
    trained = TrainedModel(
        source, device=device, input_size=input_size, views=parse_views(tta), choice=choice
    )
    watch = make_watch(trained, coverage=coverage, conformal=conformal, ood=ood)
    other = None
    if watch is not None and ood is not None:
        other = unknown_scores(watch, ood, batch_size=batch_size)
    run = read_run_data(trained.path)
    images = LabelledImages(
        data, split, splitting or run.splitting, data_dir=data_dir or run.data_dir, exclude=exclude
    )
    if run.all_folds and trained.spec.members > 1:
        unseen = images_unseen(images, run, trained)
        if unseen is None:
            start = time.perf_counter()
            found = collect_out_of_fold(
                trained.path.parent,
                images,
                device=device,
                batch_size=batch_size,
                workers=workers,
                input_size=input_size,
                views=trained.views,
                choice=choice,
            )
            return evaluate_answers(found.answers, trained.spec, seconds=time.perf_counter() - start)
        images = unseen
    opened = images.open(trained.spec)
    warn_of_cut(images, opened, model=trained.path)
    evaluation = evaluate_images(
        trained,
        opened,
        batch_size=batch_size,
        workers=workers,
        keep_all=keep_all,
        watch=None if watch is None else watch.add,
    )
    if watch is None or isinstance(evaluation, MultilabelEvaluation):
        return evaluation
    return replace(evaluation, selective=watch.finish(other))


def evaluate_images(
    trained: TrainedModel,
    source: ImageSource | ImageStream,
    *,
    batch_size: int,
    workers: int,
    temperature: float | None = None,
    keep_all: bool = False,
    watch: Callable[[Outputs, Array], None] | None = None,
) -> Evaluation | MultilabelEvaluation:
    """Evaluate a model on the images of an open source.

    Args:
        trained: The model.
        source: The images.
        batch_size: Images per forward pass.
        workers: Processes that read images; 0 reads them in this one.
        temperature: Of the prediction; the model's own by default.
        keep_all: See `evaluate`.
        watch: Receives the outputs and the classes (B,) of every batch.

    Raises:
        UserError: A model with a single class or an output that is not finite, an invalid batch size or
            number of workers, or no image that can be read.
    """
    start = time.perf_counter()
    answers = collect_answers(
        trained,
        source,
        batch_size=batch_size,
        workers=workers,
        temperature=temperature,
        keep_all=keep_all,
        watch=watch,
    )
    return evaluate_answers(answers, trained.spec, seconds=time.perf_counter() - start)


def evaluate_answers(
    answers: AnswersOf[Any], spec: ModelSpec, *, seconds: float
) -> Evaluation | MultilabelEvaluation:
    """Compute all figures of answers that took so many seconds."""
    samples, classes = len(answers.labels), spec.classes
    common = _Evaluated(
        samples=samples,
        ranked=len(answers.kept),
        groups=None if answers.groups is None else len(set(answers.groups)),
        classes=classes,
        seconds=seconds,
        images_per_second=samples / seconds,
        broken=[each.line for each in answers.broken],
        answers=answers,
    )
    values = {each.name: getattr(common, each.name) for each in fields(common)}
    heads = task_of(spec).figures(answers, classes)
    if spec.multilabel:
        thresholds = dict(zip(classes, spec.class_thresholds, strict=True))
        return MultilabelEvaluation(**values, heads=heads, thresholds=thresholds)
    return Evaluation(**values, heads=heads, confusion=_confusion(answers, classes))


def _confusion(answers: Answers, names: Sequence[str]) -> Confusion:
    counts = Counter(zip(answers.labels.tolist(), answers.heads[FUSED].predicted.tolist(), strict=True))
    confusion: Confusion = defaultdict(dict)
    for (label, predicted), count in sorted(counts.items()):
        confusion[names[label]][names[predicted]] = count
    return dict(confusion)
