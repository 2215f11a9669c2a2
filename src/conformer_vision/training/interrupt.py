"""Ctrl-C that stops a run between two steps, where its state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Interrupted(Exception):  # noqa: N818  # not an error
    """Ctrl-C came; raised between two steps, as lightning would end the process on a KeyboardInterrupt."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C and can be continued.

    Attributes:
        folder: the run folder, with ``last.ckpt`` to resume from and ``last.safetensors`` to use.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"training stopped; its state is in {folder}")
        self.folder = folder


class InterruptFlag:
    """Set by the first Ctrl-C; a second one interrupts at once, as it does elsewhere."""

    def __init__(self) -> None:
        self.is_set = False

    def check(self) -> None:
        """Raises `Interrupted` when Ctrl-C came."""
        if self.is_set:
            raise Interrupted

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Listens to SIGINT within the block; does nothing outside the main thread, which signals pass by."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: FrameType | None) -> None:
            self.is_set = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
