"""Trained models as files that other programs run, each checked against the model it comes from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .formats import Format, Precision

if TYPE_CHECKING:
    from .run import Exported, export
    from .write import write_network

__all__ = ["Exported", "Format", "Precision", "export", "write_network"]

# Imported when first used: the command line reads the formats and does not wait for torch.
_HOMES = {"Exported": "run", "export": "run", "write_network": "write"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
