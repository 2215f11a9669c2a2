"""Checking a set of images before training on it: what is broken, copied, leaking or out of balance."""

from .result import CheckResult, DuplicateGroup, Finding, ImageRef, SplitSummary
from .run import check

__all__ = ["CheckResult", "DuplicateGroup", "Finding", "ImageRef", "SplitSummary", "check"]
