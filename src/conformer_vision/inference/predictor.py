"""Classify images with any model: weights by PyTorch or a conversion, an exported file by its own runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.extras import naming_extras
from conformer_vision.inference.conversion.choice import RuntimeChoice, RuntimeName, check_export
from conformer_vision.inference.conversion.formats import Precision
from conformer_vision.runs import ModelSource, find_model
from conformer_vision.runtime.answers import Guess, Prediction, Predictions
from conformer_vision.runtime.model import AnsweringModel, InputSize
from conformer_vision.runtime.opening import open_export
from conformer_vision.runtime.predictor import BasePredictor, Prepared
from conformer_vision.runtime.views import Views, parse_views

if TYPE_CHECKING:
    import torch

__all__ = ["Guess", "Prediction", "Predictions", "Predictor", "Prepared"]


class Predictor(BasePredictor):
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
        if model is None:
            with naming_extras():
                from conformer_vision.models.variants import SHIPPED

            model = SHIPPED
        source = find_model(model, arch=arch)
        choice = RuntimeChoice(runtime, precision)
        trained = _open(source, choice, device=device, input_size=input_size, views=parse_views(tta))
        super().__init__(
            trained, batch_size=batch_size, reject=reject, coverage=coverage, conformal=conformal
        )
        if choice.is_asked_for:  # before any image is read
            trained.prepare(None, batch_size=batch_size)


def _open(
    source: ModelSource,
    choice: RuntimeChoice,
    *,
    device: str | torch.device,
    input_size: InputSize | None,
    views: Views,
) -> AnsweringModel:
    """Open a model; an exported file without PyTorch."""
    if source.exported:
        opened = open_export(source, device=device)
        check_export(choice, source, precision=opened.precision)
        return AnsweringModel(source.path, opened, input_size=input_size, views=views)
    with naming_extras():
        from conformer_vision.inference.trained_model import TrainedModel

    return TrainedModel(source, device=device, input_size=input_size, views=views, choice=choice)
