"""Use a trained model: predict images, and evaluate it on labelled ones."""

from typing import TYPE_CHECKING

from conformer_vision.lazy import attach

if TYPE_CHECKING:
    from .confusion_image import save_confusion_matrix as save_confusion_matrix
    from .evaluation import Evaluation as Evaluation
    from .evaluation import MultilabelEvaluation as MultilabelEvaluation
    from .evaluation import evaluate as evaluate
    from .predictions import save_predictions as save_predictions
    from .predictor import Guess as Guess
    from .predictor import Prediction as Prediction
    from .predictor import Predictions as Predictions
    from .predictor import Predictor as Predictor
    from .predictor import Prepared as Prepared
    from .probing import Probe as Probe
    from .probing import probe as probe

__getattr__, __dir__, __all__ = attach(__name__)
