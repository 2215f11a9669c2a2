"""Conformer: a CNN branch and a transformer branch coupled in every block (Peng et al., ICCV 2021).

Importing the package registers its models with timm: ``timm.create_model("conformer_small_patch16_224")``.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformer_vision.inference import Evaluation, Prediction, Predictor, evaluate
    from conformer_vision.models import VARIANTS, BranchFeatures, BranchLogits, Conformer, ConformerConfig
    from conformer_vision.models.checkpoints import load_checkpoint
    from conformer_vision.training import BranchLoss, TrainConfig, train

__version__ = "0.1.0"

# Public name -> module that holds it, imported when the name is first used: training and inference
# bring libraries that a user of the network alone does not need to wait for.
_HOMES = {
    "VARIANTS": "models",
    "BranchFeatures": "models",
    "BranchLogits": "models",
    "Conformer": "models",
    "ConformerConfig": "models",
    "load_checkpoint": "models.checkpoints",
    "BranchLoss": "training",
    "TrainConfig": "training",
    "train": "training",
    "Evaluation": "inference",
    "Prediction": "inference",
    "Predictor": "inference",
    "evaluate": "inference",
}

__all__ = [
    "VARIANTS",
    "BranchFeatures",
    "BranchLogits",
    "BranchLoss",
    "Conformer",
    "ConformerConfig",
    "Evaluation",
    "Prediction",
    "Predictor",
    "TrainConfig",
    "evaluate",
    "load_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from conformer_vision.extras import naming_extras

    with naming_extras():
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _started_as_command() -> bool:
    """Whether Python was started as ``conformer-vision`` or ``python -m conformer_vision``."""
    command = Path(sys.argv[0]).stem if sys.argv else ""
    return command == "conformer-vision" or sys.orig_argv[1:3] == ["-m", __name__]


# The command line registers the models when a subcommand needs them, so that --help does not wait for torch.
if not _started_as_command():
    import_module(f"{__name__}.models")
