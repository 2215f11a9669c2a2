"""Speed, memory and load time of a network in every form, beside its plain formulation and timm's models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import BenchmarkConfig
    from .plot import draw_plot
    from .result import BenchmarkResult
    from .run import benchmark

# Imported when first used: a process that measures one network loads nothing that the network does not need.
_HOMES = {"BenchmarkConfig": "config", "BenchmarkResult": "result", "benchmark": "run", "draw_plot": "plot"}

__all__ = ["BenchmarkConfig", "BenchmarkResult", "benchmark", "draw_plot"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
