"""Using a trained model: its accuracy on labelled images, its answers for others."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .confusion import save_confusion_matrix
    from .evaluation import Evaluation, evaluate
    from .predictor import Guess, Prediction, Predictor

__all__ = ["Evaluation", "Guess", "Prediction", "Predictor", "evaluate", "save_confusion_matrix"]

# Imported when first used: who only predicts does not wait for the libraries that measure and draw.
_HOMES = {
    "Evaluation": "evaluation",
    "Guess": "predictor",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "evaluate": "evaluation",
    "save_confusion_matrix": "confusion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
