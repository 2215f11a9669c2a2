"""Checking a set of images before training on it: what is broken, copied, leaking or out of balance."""

from .result import CheckedImage, CheckResult, DuplicateGroup, Finding, SplitSummary
from .run import check

__all__ = ["CheckResult", "CheckedImage", "DuplicateGroup", "Finding", "SplitSummary", "check"]
