"""Where the results of the benchmarks are stored, and what every one of them says about its origin."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
_MACHINE = re.compile(r"model name\s*:\s*(.+)")


def provenance() -> dict[str, Any]:
    """The commit, the libraries, the machine and the day."""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "src", "benchmarks/ablations.py"],
        cwd=HERE,
        capture_output=True,
        text=True,
    ).stdout
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    info = Path("/proc/cpuinfo")
    found = _MACHINE.search(info.read_text(encoding="utf-8")) if info.is_file() else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else found and found[1]
    return {
        "commit": commit.stdout.strip() + (" with changes" if changed.strip() else ""),
        "torch": torch.__version__,
        "machine": f"{device or platform.machine()}, {torch.get_num_threads()} threads",
        "date": date.today().isoformat(),
    }
