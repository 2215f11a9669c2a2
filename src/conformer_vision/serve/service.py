"""What all requests share: the model, the queue, the limits, and whether requests are taken."""

from __future__ import annotations

import os

from conformer_vision.console import note
from conformer_vision.errors import UserError, machine_error, reason_of
from conformer_vision.serve.batching import Batcher
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.limits import (
    BODIES_AT_ONCE,
    UPLOADS_AT_ONCE,
    Budget,
    Limits,
    RefusedError,
    busy,
)
from conformer_vision.serve.metrics import Metrics
from conformer_vision.serve.models import Loader, Served
from conformer_vision.serve.worker import Worker


class Service:
    """A server without its connections.

    Args:
        load: Loads the model; called in a thread, and again for every reload.
        limits: The bounds.
        keys: What requests have to show; None if they need no key.
    """

    def __init__(self, load: Loader, *, limits: Limits, keys: Keys | None = None) -> None:
        self._load = load
        self.limits = limits
        self.keys = keys
        self.metrics = Metrics()
        self.batcher = Batcher(limits, self.metrics)
        full = busy("too many bodies arrive at once; try again in a second", reason="uploads_full")
        self.bodies = Budget(BODIES_AT_ONCE * limits.body_bytes, full)
        self.uploads = Budget(UPLOADS_AT_ONCE, full)
        self.pool = Worker("decode", threads=min(4, os.cpu_count() or 1))
        self._loader = Worker("load")
        self.draining = False
        self.in_flight = 0
        """Requests that have begun and are not answered yet."""
        self._model: Served | None = None
        self._is_loading = False
        self.metrics.watch("queue_images", "Images that are decoded or wait.", lambda: self.batcher.waiting)
        self.metrics.watch("requests_in_flight", "Requests that have begun.", lambda: self.in_flight)
        self.metrics.watch("bodies_bytes", "Bytes of bodies in memory.", lambda: self.bodies.held)

    async def start(self) -> None:
        """Begin to compute, and load the model.

        Raises:
            UserError: The model cannot be loaded.
        """
        self.batcher.start()
        self._show(await self._loader.run(self._load))

    async def stop(self) -> None:
        """End the threads; what they run now is not waited for."""
        self.draining = True
        await self.batcher.stop()
        self.pool.stop()
        self._loader.stop()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._model is not None and not self.draining and self.batcher.alive

    def model(self) -> Served:
        """Return the model that answers now.

        Raises:
            RefusedError: There is none yet, or the server is about to end.
        """
        if self.draining:
            raise busy("the server is about to end; try again in a few seconds", reason="draining", seconds=5)
        if self._model is None:
            raise busy("the model is still being loaded; try again in a second", reason="loading")
        return self._model

    async def reload(self) -> Served:
        """Load the model anew beside the old one, and let it answer what is asked from then on.

        What was asked before is answered by the model that decoded it.

        Raises:
            UserError: The new model cannot be loaded; the old one stays.
            RefusedError: It is being loaded already.
        """
        old = self.model()
        if self._is_loading:
            raise RefusedError(
                409, "the model is being loaded already; wait until that is done", reason="reloading"
            )
        self._is_loading = True
        try:
            new = await self._loader.run(self._load)
        except Exception as error:
            self.metrics.reloaded("failed")
            line = str(error) if isinstance(error, UserError) else machine_error(error) or reason_of(error)
            note(f"the new model cannot be loaded, so {old.info.name} {old.info.version} stays: {line}")
            raise UserError(line) from error
        finally:
            self._is_loading = False
        self._show(new)
        self.metrics.reloaded("done")
        note(f"reloaded: {new.info.name} {new.info.version} answers (before: {old.info.version})")
        return new

    def _show(self, model: Served) -> None:
        self._model = model
        self.metrics.model(**model.info._asdict())
