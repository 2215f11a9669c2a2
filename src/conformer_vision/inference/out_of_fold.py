"""Out-of-fold answers: each image is answered by the network of the fold that was not trained on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from conformer_vision.data.opening import absolute_spec, describe
from conformer_vision.ensemble import check_alike
from conformer_vision.errors import UserError, option
from conformer_vision.inference.answers import AnswersOf, at_temperature, join
from conformer_vision.inference.calibration import calibrate
from conformer_vision.inference.collect import collect_answers
from conformer_vision.inference.conversion.choice import RuntimeChoice
from conformer_vision.inference.labelled import LabelledImages, RunData
from conformer_vision.inference.predictions import save_predictions
from conformer_vision.inference.task import task_of
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.runs import ENSEMBLE_WEIGHTS, fold_name
from conformer_vision.runtime.base import FUSED, Outputs
from conformer_vision.runtime.model import InputSize
from conformer_vision.runtime.views import Views
from conformer_vision.spec import ModelSpec


@dataclass(frozen=True)
class OutOfFold:
    """The answers to the images of all folds."""

    parts: list[AnswersOf[Any]]
    """Of each fold; the prediction is at the temperature that was fitted on the other folds, and of several
    labels per image at their thresholds."""
    spec: ModelSpec
    """Of the folds' model, with the temperature, and thresholds of classes, fitted on all images."""

    @property
    def answers(self) -> AnswersOf[Any]:
        """The answers to all images, fold by fold."""
        return join(self.parts)


def collect_out_of_fold(
    folder: Path,
    images: LabelledImages,
    *,
    device: str | torch.device,
    batch_size: int,
    workers: int,
    input_size: InputSize | None = None,
    views: Views = Views(),  # noqa: B008  # immutable
    choice: RuntimeChoice | None = None,
) -> OutOfFold:
    """Let each fold answer the images that it held out; one network is in memory at a time.

    Args:
        folder: of a run of all folds.
        images: the set, as the run cuts it; the fold in it makes no difference.
        device: as for `TrainedModel`.
        batch_size: images per forward pass.
        workers: processes that read images.
        input_size: as for `TrainedModel`.
        views: as for `TrainedModel`.
        choice: as for `TrainedModel`.

    Raises:
        UserError: a fold that is missing or has other classes, or images that cannot be evaluated.
    """
    folds = images.splitting.folds
    assert folds is not None
    parts: list[AnswersOf[Any]] = []
    first: TrainedModel | None = None
    for fold in range(folds):
        trained = TrainedModel(
            folder / fold_name(fold), device=device, input_size=input_size, views=views, choice=choice
        )
        if first is None:
            first = trained
        check_alike(first.spec, trained.spec, first.path.parent, trained.path.parent)
        held_out = replace(images, split="val", splitting=replace(images.splitting, fold=fold))
        parts.append(
            collect_answers(
                trained,
                held_out.open(first.spec),
                batch_size=batch_size,
                workers=workers,
                temperature=1.0,
            )
        )
    assert first is not None
    spec, seed = first.spec, images.splitting.seed
    scaled = []
    for part in parts:
        fitted = _fitted(spec, [other for other in parts if other is not part], seed)
        scaled.append(at_temperature(part, fitted.temperature, task_of(fitted).kind))
    return OutOfFold(scaled, _fitted(spec, parts, seed))


def _fitted(spec: ModelSpec, parts: Sequence[AnswersOf[Any]], seed: int) -> ModelSpec:
    """Return the spec with the temperature, and the thresholds of the classes, that suit answers."""
    logits = torch.cat([part.heads[FUSED].logits for part in parts])
    labels = torch.cat([torch.from_numpy(part.labels) for part in parts])
    temperature = calibrate(logits, labels, seed=seed).temperature
    spec = replace(spec, temperature=temperature, thresholds=None)
    if not spec.multilabel:  # one label per image: reject thresholds need what answers do not keep
        return spec
    outputs = Outputs({FUSED: logits.numpy()}, None)
    found = task_of(spec).fit(outputs, labels.numpy(), spec=spec, temperature=temperature)
    return replace(spec, thresholds=found.thresholds)


def images_unseen(images: LabelledImages, run: RunData, trained: TrainedModel) -> LabelledImages | None:
    """Return the images on which an ensemble of folds is fairly evaluated as a whole.

    Args:
        images: that are to be evaluated.
        run: what the folds were trained on.
        trained: the ensemble.

    Returns:
        The validation images of a set that has its own, which no fold has touched; or all images of another
        set. None where each image must be left to the fold that held it out.

    Raises:
        UserError: images that were trained on, a single fold, or an export where folds would have to answer.
    """
    data, folder = images.data, trained.path.parent
    is_own = isinstance(data, str | os.PathLike) and _absolute(str(data), images) == run.data
    if images.split != "val":
        if is_own:
            raise UserError(
                f"{folder} was trained on these images; leave {option('split')} out to evaluate each with "
                "the fold that held it out"
            )
        return images
    if images.splitting.fold != run.splitting.fold:
        one = folder / fold_name(images.splitting.fold)
        raise UserError(f"{folder} is the model of all folds; to evaluate one, give {one}")
    whole = replace(images, splitting=replace(images.splitting, folds=None, recorded=None))
    if not whole.open(trained.spec).is_cut:
        return whole
    if trained.path.name != ENSEMBLE_WEIGHTS:
        raise UserError(
            f"{trained.path} was trained on images of {describe(data)}; evaluate {folder} for their figures, "
            f"or give other images with {option('split', 'all')}"
        )
    return None


def _absolute(spec: str, images: LabelledImages) -> str:
    return absolute_spec(spec, None if images.data_dir is None else str(images.data_dir))


def write_out_of_fold(found: OutOfFold, path: Path) -> None:
    """Write a row per image, as `save_predictions` does, with the fold that held it out.

    Raises:
        UserError: the file cannot be written.
    """
    folds = [fold for fold, part in enumerate(found.parts) for _ in part.labels]
    folds += [fold for fold, part in enumerate(found.parts) for _ in part.broken]
    save_predictions(found.answers, found.spec.classes, path, folds=folds)
