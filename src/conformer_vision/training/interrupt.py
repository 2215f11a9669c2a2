"""Signals that stop a run between two steps, when its state is complete."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Interrupted(Exception):  # noqa: N818  # not an error
    """Raised between two steps after a signal; on a KeyboardInterrupt lightning would end the process."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal and can be continued.

    Attributes:
        folder: the run folder, with ``last.ckpt`` to resume from and ``last.safetensors`` to use.
        signal: the number of the signal: SIGINT for Ctrl-C, SIGTERM or SIGUSR1 from a scheduler.
        auto_resume: whether the same command would continue the run.
    """

    def __init__(self, folder: Path, *, number: int = signal.SIGINT, auto_resume: bool = False) -> None:
        super().__init__(f"training stopped; its state is in {folder}")
        self.folder = folder
        self.signal = number
        self.auto_resume = auto_resume


class InterruptFlag:
    """Set by the first signal; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Listen to Ctrl-C, SIGTERM and, under SLURM, SIGUSR1 within the block.

        Does nothing outside the main thread, as only that one gets signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        numbers = [signal.SIGINT, signal.SIGTERM]
        if slurm_job() is not None:
            numbers.append(signal.SIGUSR1)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def slurm_job() -> str | None:
    """Return this job's number as `scontrol` takes it, or None outside SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else job


def requeue(job: str) -> bool:
    """Put the job back into SLURM's queue; return whether that succeeded."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
