"""The report of a run: one HTML page about what was learned, how sure it is, and where it errs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import REPORT_FILE, Findings, examine, save_report, write_report

__all__ = ["REPORT_FILE", "Findings", "examine", "save_report", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.build"), name)
