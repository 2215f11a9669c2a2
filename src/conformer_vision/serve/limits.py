"""What a server accepts, and the answer to what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from conformer_vision.errors import UserError, option

MEGABYTE = 1_000_000
MEGAPIXEL = 1_000_000
BODIES_AT_ONCE = 8
"""Bodies of the largest size that all requests together may fill."""
UPLOADS_AT_ONCE = 256
"""Requests whose bodies may arrive at the same time, however slowly."""
EXPLANATIONS_AT_ONCE = 4
"""Explanations that may wait: each takes as long as many predictions."""


@dataclass(frozen=True)
class Limits:
    """The bounds of a server.

    Raises:
        UserError: A value that is not positive, or more images per request than may wait.
    """

    max_batch: int = 8
    """Images in one forward pass."""
    max_wait_ms: float = 5.0
    """How long a batch waits at most for images that are already being decoded."""
    max_queue: int = 16
    """Images that are being decoded or wait for a forward pass."""
    max_images: int = 16
    """Images of one request."""
    max_body_mb: float = 32.0
    """Megabytes of a body."""
    max_megapixels: float = 64.0
    """Pixels of one image, in millions."""
    deadline_seconds: float = 30.0
    """Time from the arrival of a request to its answer."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), 0 if each.name == "max_wait_ms" else None
            if not math.isfinite(value) or value < 0 or (value == 0 and least is None):
                raise UserError(
                    f"{option(each.name, value)}: must be {'0 or more' if least == 0 else 'more than 0'}"
                )
        if self.max_images > self.max_queue:
            raise UserError(
                f"{option('max_images', self.max_images)} is more than "
                f"{option('max_queue', self.max_queue)}, so that such a request would always be refused; "
                "lower one or raise the other"
            )

    @property
    def body_bytes(self) -> int:
        """Bytes of the largest body."""
        return int(self.max_body_mb * MEGABYTE)

    @property
    def pixels(self) -> int:
        """Pixels of the largest image."""
        return int(self.max_megapixels * MEGAPIXEL)


class RefusedError(Exception):
    """A request that gets another answer than the one it asked for.

    Args:
        status: The HTTP status.
        line: What was wrong and what to do, in one line without paths of the server.
        reason: Counts it under this name in the metrics.
        headers: Further headers of the answer.
    """

    def __init__(
        self, status: int, line: str, *, reason: str = "invalid", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(line)
        self.status = status
        self.line = line
        self.reason = reason
        self.headers = dict(headers or {})


def busy(line: str, *, reason: str, seconds: int = 1) -> RefusedError:
    """Return the refusal of a request that may be sent again after so many seconds."""
    return RefusedError(503, line, reason=reason, headers={"Retry-After": str(seconds)})


class Budget:
    """Something of which all requests together may hold only so much.

    Args:
        most: How much.
        refusal: Raised where there is no more.
    """

    def __init__(self, most: int, refusal: RefusedError) -> None:
        self.most = most
        self.held = 0
        self._refusal = refusal

    def hold(self) -> Hold:
        """Return a holding of nothing yet, to be used in a ``with`` block, which gives it back."""
        return Hold(self)

    def check(self, amount: int = 1) -> None:
        """Refuse if so much is not there; nothing is taken.

        Raises:
            RefusedError: As the budget was told.
        """
        if self.held + amount > self.most:
            refusal = self._refusal
            raise RefusedError(refusal.status, refusal.line, reason=refusal.reason, headers=refusal.headers)


class Hold:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.amount = 0

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def take(self, amount: int = 1) -> None:
        """Take more.

        Raises:
            RefusedError: There is not so much.
        """
        self._budget.check(amount)
        self._budget.held += amount
        self.amount += amount

    def release(self, amount: int | None = None) -> None:
        """Give back some, or everything."""
        amount = self.amount if amount is None else min(amount, self.amount)
        self._budget.held -= amount
        self.amount -= amount
