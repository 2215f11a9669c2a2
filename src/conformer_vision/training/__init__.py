"""Training: the configuration of a run, the loss of two heads, and `train`.

`TrainConfig` is imported at once (it needs no torch); the others when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import TrainConfig

if TYPE_CHECKING:
    from .interrupt import TrainingInterrupted
    from .losses import BranchLoss
    from .run import train

_HOMES = {"BranchLoss": "losses", "TrainingInterrupted": "interrupt", "train": "run"}

__all__ = ["BranchLoss", "TrainConfig", "TrainingInterrupted", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
