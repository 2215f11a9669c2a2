"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_LIBRARIES = ("conformer-vision", "torch", "timm", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Machine:
    """The machine and its settings."""

    system: str
    processor: str
    cores: int
    """Cores that this process may use."""
    threads: int
    """CPU threads of every runtime."""
    device: str
    """The device by torch's name."""
    gpu: str | None

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """Describe this machine; the threads are those that PyTorch is set to."""
        affinity = getattr(os, "sched_getaffinity", None)
        return cls(
            system=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            device=str(device),
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        )

    def __str__(self) -> str:
        return self.gpu or f"{self.processor}, {self.threads} threads on {self.cores} cores"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that matter for speed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Return the processor's name; what Python knows of it is often empty."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
