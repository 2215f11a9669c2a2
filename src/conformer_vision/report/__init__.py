"""The report of a run: an HTML page on its errors, accuracy and calibration."""

from .build import write_report
from .findings import Findings

__all__ = ["Findings", "write_report"]
