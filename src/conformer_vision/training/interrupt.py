"""Signals that stop a run between two steps, when its state is complete."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from ..console import note
from ..data.handover import WaitingEnded

PATIENCE = 10.0
"""Seconds that a wait may take after a signal: for images, or for another process."""


class Interrupted(Exception):  # noqa: N818  # not an error
    """Raised between two steps after a signal; on a KeyboardInterrupt lightning would end the process."""


class InterruptedWaiting(Interrupted, WaitingEnded):
    """Raised while images are awaited; other processes of the training do not know of it."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal and can be continued.

    Attributes:
        folder: the run folder, with ``last.ckpt`` to resume from and ``last.safetensors`` to use; None if
            training was stopped before there was anything to keep.
        signal: the number of the signal: SIGINT for Ctrl-C, SIGTERM or SIGUSR1 from a scheduler.
        auto_resume: whether the same command would continue the run.
    """

    def __init__(
        self, folder: Path | None, *, number: int = signal.SIGINT, auto_resume: bool = False
    ) -> None:
        super().__init__(f"training stopped; its state is in {folder}" if folder else "training stopped")
        self.folder = folder
        self.signal = number
        self.auto_resume = auto_resume


class InterruptFlag:
    """Set by the first signal; a second Ctrl-C interrupts at once.

    A step that is under way ends before the run stops. A wait that goes on for longer than `PATIENCE` is
    given up, so that a reading process or another machine that hangs cannot hold the run.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waiting_since: float | None = None
        self._handle: Callable[[int, FrameType | None], None] | None = None

    @property
    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for images within the block."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Listen to Ctrl-C, SIGTERM and, under SLURM, SIGUSR1 within the block.

        Does nothing outside the main thread, as only that one gets signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        receiving, sending = socket.socketpair()
        insisting = threading.Thread(target=self._insist, args=(receiving,), daemon=True)

        def handle(number: int, frame: FrameType | None) -> None:
            if self._waits_too_long():
                self._waiting_since = None  # a second signal must not come between this one and the saving
                raise InterruptedWaiting
            self.signal = self.signal or number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        numbers = [signal.SIGINT, signal.SIGTERM]
        if slurm_job() is not None:
            numbers.append(signal.SIGUSR1)
        sending.setblocking(False)
        insisting.start()
        before = {number: signal.signal(number, handle) for number in numbers}
        wakeup = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
        self._handle = handle
        try:
            yield
        finally:
            self._handle = None
            signal.set_wakeup_fd(wakeup)
            sending.shutdown(socket.SHUT_RDWR)  # closing is not enough: workers that were forked have it too
            insisting.join()
            sending.close()
            receiving.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def take_over(self) -> None:
        """Replace lightning's handler of SIGTERM, within `listen`.

        It would end validation without saving, and call other processes from within the handler.
        """
        if self._handle is not None:
            signal.signal(signal.SIGTERM, self._handle)

    def _waits_too_long(self) -> bool:
        since = self._waiting_since
        return self.is_set and since is not None and time.monotonic() - since > PATIENCE

    def _insist(self, received: socket.socket) -> None:
        """Signal again while images are awaited; end the process if it waits where no handler runs.

        Python's handlers do not run while a library waits, say for another process, but the numbers of
        signals are received at once.
        """
        numbers = b""
        while not set(numbers) & {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}:
            if not (numbers := received.recv(64)):
                return
        received.settimeout(PATIENCE / 10)
        busy, used = time.monotonic(), time.process_time()
        while True:
            with suppress(TimeoutError):
                if not received.recv(64):
                    return
            if self._waits_too_long():
                os.kill(os.getpid(), signal.SIGTERM)
            if time.process_time() - used > PATIENCE / 100:
                busy, used = time.monotonic(), time.process_time()
            elif time.monotonic() - busy > 2 * PATIENCE:
                note("stopped while waiting for another process; what was saved before is kept")
                for child in psutil.Process().children(recursive=True):
                    child.kill()
                os._exit(128 + (self.signal or signal.SIGTERM))


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
