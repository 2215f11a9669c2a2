"""The report of a run: one HTML page about what was learned, how sure it is, and where it errs."""

from .build import examine, save_report, write_report
from .findings import Findings

__all__ = ["Findings", "examine", "save_report", "write_report"]
