"""Checking a set of pictures before training on it: what is broken, copied, leaking or out of balance."""

from .result import CheckResult, DuplicateGroup, Finding, Picture, SplitSummary
from .run import check

__all__ = ["CheckResult", "DuplicateGroup", "Finding", "Picture", "SplitSummary", "check"]
