"""What a server counts, for Prometheus; in a registry of its own, so that several servers do not mix."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_PREFIX = "conformer_vision"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(
            f"{_PREFIX}_requests", "Requests, by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            f"{_PREFIX}_request_seconds",
            "Time from the arrival of a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter(
            f"{_PREFIX}_images", "Images: answered, broken or failed.", ["outcome"], registry=registry
        )
        self._rejected = Counter(
            f"{_PREFIX}_rejected", "Requests that were refused, by reason.", ["reason"], registry=registry
        )
        self._batches = Histogram(
            f"{_PREFIX}_batch_images", "Images in a forward pass.", buckets=_SIZES, registry=registry
        )
        self._inference = Histogram(
            f"{_PREFIX}_batch_seconds", "Time of a forward pass.", buckets=_SECONDS, registry=registry
        )
        self._reloads = Counter(
            f"{_PREFIX}_reloads", "Reloads of the model: done or failed.", ["outcome"], registry=registry
        )
        self._model = Info(f"{_PREFIX}_model", "The model that answers.", registry=registry)
        ProcessCollector(registry=registry)  # memory, file descriptors, CPU time

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for when the figures are read."""
        Gauge(f"{_PREFIX}_{name}", text, registry=self._registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a refused request."""
        self._rejected.labels(reason).inc()

    def images(self, outcome: str, number: int) -> None:
        """Count images."""
        self._images.labels(outcome).inc(number)

    def batch(self, images: int, seconds: float) -> None:
        """Count a forward pass."""
        self._batches.observe(images)
        self._inference.observe(seconds)

    def reloaded(self, outcome: str) -> None:
        """Count a reload."""
        self._reloads.labels(outcome).inc()

    def model(self, **labels: str) -> None:
        """Say which model answers."""
        self._model.info(labels)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)
