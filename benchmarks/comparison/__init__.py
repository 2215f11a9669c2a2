"""Conformers beside their plain formulation and timm's models: speed, memory and load time."""

from .config import ComparisonConfig
from .plot import draw_plot
from .result import ComparisonResult
from .run import compare

__all__ = ["ComparisonConfig", "ComparisonResult", "compare", "draw_plot"]
