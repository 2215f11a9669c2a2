"""What kills or stops the process that runs it; imported in the reading processes of tests."""

import os
import signal
import threading
from collections.abc import Mapping

from PIL import Image

from conformer_vision.data.base import ImageSource


def double(deaths: Mapping[int, str], item: int) -> int:
    """Twice the item, if it is not one of those that end the process."""
    match deaths.get(item):
        case "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leave":
            os._exit(5)
        case "hang":
            threading.Event().wait()
        case "fail":
            raise ZeroDivisionError
    return 2 * item


class DeadlySource(ImageSource):
    """Images of one tone each; reading number 3 ends the process."""

    def __init__(self, count: int) -> None:
        super().__init__(("dark", "light"), (index % 2 for index in range(count)))

    def image(self, index: int, need: object = None) -> Image.Image:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new("RGB", (20, 20), (10 * index + len(self),) * 3)

    def name(self, index: int) -> str:
        return f"deadly row {index} of {len(self)}"
