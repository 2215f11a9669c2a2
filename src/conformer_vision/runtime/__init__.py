"""Classify images with an exported ONNX or OpenVINO file, without PyTorch.

This needs NumPy, Pillow, and onnxruntime or OpenVINO alone (docs/predict.md)::

    from conformer_vision.runtime import Predictor

    for prediction in Predictor("model.onnx").predict("photos"):
        print(prediction.name, prediction.labels, prediction.probabilities)

`conformer_vision.Predictor` takes every kind of model, and gives the same answers by the same code.
"""

from typing import TYPE_CHECKING

from conformer_vision.lazy import attach

if TYPE_CHECKING:
    from .answers import Guess as Guess
    from .answers import Prediction as Prediction
    from .answers import Predictions as Predictions
    from .predictor import Predictor as Predictor
    from .predictor import Prepared as Prepared

__getattr__, __dir__, __all__ = attach(__name__)
