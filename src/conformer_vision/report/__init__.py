"""The report of a run: an HTML page on its errors, accuracy and calibration."""

from .build import examine, save_report, write_report
from .findings import Findings

__all__ = ["Findings", "examine", "save_report", "write_report"]
