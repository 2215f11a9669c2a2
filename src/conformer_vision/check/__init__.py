"""Check a set of images before training: what is broken, copied, leaking or imbalanced."""

from typing import TYPE_CHECKING

from conformer_vision.lazy import attach

if TYPE_CHECKING:
    from .result import CheckResult as CheckResult
    from .result import DuplicateGroup as DuplicateGroup
    from .result import Finding as Finding
    from .result import ImageRef as ImageRef
    from .result import SplitSummary as SplitSummary
    from .run import check as check

__getattr__, __dir__, __all__ = attach(__name__)
