"""Check a set of images before training: what is broken, copied, leaking or imbalanced."""

from .result import CheckResult, DuplicateGroup, Finding, ImageRef, SplitSummary
from .run import check

__all__ = ["CheckResult", "DuplicateGroup", "Finding", "ImageRef", "SplitSummary", "check"]
