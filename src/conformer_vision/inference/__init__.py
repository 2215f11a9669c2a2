"""Using a trained model: its accuracy on labelled pictures, its answers for others."""

from conformer_vision.inference.confusion import save_confusion_matrix
from conformer_vision.inference.evaluation import Evaluation, evaluate
from conformer_vision.inference.predictor import Guess, Prediction, Predictor

__all__ = ["Evaluation", "Guess", "Prediction", "Predictor", "evaluate", "save_confusion_matrix"]
