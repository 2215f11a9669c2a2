"""A server of a process of its own whose model is a stub: ``stub_server.py FOLDER [OPTION=VALUE ...]``.

The model answers an image when there is a file `go` in the folder. A file `broken` there breaks the next
load, and a file `hang` makes it wait; the model's version is the number of loads.
"""

import sys
import time
from pathlib import Path
from typing import Any

from conformer_vision.errors import UserError
from conformer_vision.serve import protocol
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.lifecycle import Address, serve
from conformer_vision.serve.limits import Limits
from conformer_vision.serve.models import Served
from conformer_vision.serve.service import Service
from http_server import Stub, served

folder = Path(sys.argv[1])
options = dict(argument.split("=") for argument in sys.argv[2:])
loads = 0


class Waiting(Stub):
    def answer(self, images: Any, *, top_k: int | None = None) -> Any:
        while not (folder / "go").exists():
            time.sleep(0.005)
        return super().answer(images, top_k=top_k)


def load() -> Served:
    global loads
    loads += 1
    while (folder / "hang").exists():
        time.sleep(0.005)
    if (folder / "broken").exists():
        raise UserError(f"{folder}/best.safetensors is damaged")
    return served(Waiting(), version=str(loads))


protocol.IDLE_SECONDS = float(options.pop("idle", protocol.IDLE_SECONDS))
protocol.CONNECTIONS = int(options.pop("connections", protocol.CONNECTIONS))
keys = Keys(options.pop("keys")) if "keys" in options else None
drain = float(options.pop("drain", 30))
limits = Limits(deadline_seconds=float(options.pop("deadline", 30)))
address = Address(port=0, drain_seconds=drain, **options)
sys.exit(serve(Service(load, limits=limits, keys=keys), address))
