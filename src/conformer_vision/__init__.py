"""Conformer: a CNN branch and a transformer branch coupled in every block (Peng et al., ICCV 2021).

A program that imports the package, before or after timm, finds its models there:
``timm.create_model("conformer_small_patch16_224")``. The package alone does not import timm and PyTorch.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

from conformer_vision.lazy import attach
from conformer_vision.registering import register_with_timm

if TYPE_CHECKING:
    from .check import check as check
    from .data import ImageDataModule as ImageDataModule
    from .data import Splitting as Splitting
    from .explain import Explainer as Explainer
    from .explain import Explanation as Explanation
    from .explain import explain as explain
    from .explain import heat_maps as heat_maps
    from .export import export as export
    from .inference import Evaluation as Evaluation
    from .inference import MultilabelEvaluation as MultilabelEvaluation
    from .inference import Prediction as Prediction
    from .inference import Predictions as Predictions
    from .inference import Predictor as Predictor
    from .inference import Probe as Probe
    from .inference import evaluate as evaluate
    from .inference import probe as probe
    from .loaded_model import LoadedModel as LoadedModel
    from .models import VARIANTS as VARIANTS
    from .models import AttentionFeatures as AttentionFeatures
    from .models import BranchFeatures as BranchFeatures
    from .models import BranchLogits as BranchLogits
    from .models import ClassMaps as ClassMaps
    from .models import Conformer as Conformer
    from .models import ConformerConfig as ConformerConfig
    from .models.checkpoints import load_checkpoint as load_checkpoint
    from .run_path import Run as Run
    from .spec import ModelSpec as ModelSpec
    from .training import BranchLoss as BranchLoss
    from .training import ClassifierModule as ClassifierModule
    from .training import TrainConfig as TrainConfig
    from .training import train as train
    from .weights import load as load

__getattr__, __dir__, __all__ = attach(__name__)

register_with_timm()
