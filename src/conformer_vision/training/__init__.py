"""Training: the configuration of a run, the loss of two heads, the module, and `train`.

The names are imported when first used; `TrainConfig` needs no torch.
"""

from typing import TYPE_CHECKING

from conformer_vision.lazy import attach

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .interrupt import TrainingInterrupted as TrainingInterrupted
    from .losses import BranchLoss as BranchLoss
    from .module import ClassifierModule as ClassifierModule
    from .run import train as train

__getattr__, __dir__, __all__ = attach(__name__)
