"""What kills or stops the process that runs it; imported in the reading processes of tests."""

import os
import signal
import threading
from collections.abc import Iterable

from PIL import Image

from conformer_vision.data.base import ImageSource


def double(shared: int, item: int) -> int:
    return shared * item


def die_on_7(shared: int, item: int) -> int:
    if item == 7:
        os.kill(os.getpid(), signal.SIGSEGV)
    return shared * item


def leave_on_3(shared: int, item: int) -> int:
    if item == 3:
        os._exit(5)
    return shared * item


def hang_on_2(shared: int, item: int) -> int:
    if item == 2:
        threading.Event().wait()
    return shared * item


def fail(shared: int, item: int) -> int:
    raise ZeroDivisionError


class DeadlySource(ImageSource):
    """Images of one tone each; number 3 ends the process and number 5 never comes."""

    def __init__(self, tones: Iterable[int], *, split: str) -> None:
        self.tones = list(tones)
        self.split = split
        super().__init__(("dark", "light"), (index % 2 for index in range(len(self.tones))))

    def image(self, index: int) -> Image.Image:
        if self.split == "train" and index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.split == "train" and index == 5:
            threading.Event().wait()
        return Image.new("RGB", (20, 20), (self.tones[index],) * 3)

    def name(self, index: int) -> str:
        return f"deadly {self.split} row {index}"
