"""What the tests of loaders share."""

from collections.abc import Iterable

import torch

from conformer_vision.data.handover import Batch
from conformer_vision.errors import UserError


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether the images, labels and numbers of all batches are equal, bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.indices, y.indices)
        for x, y in zip(a, b, strict=True)
    )


def failure(batches: Iterable[Batch]) -> str:
    """What the iteration ends with. Not by pytest.raises: what it gives holds the frame that holds it."""
    try:
        for _ in batches:
            pass
    except UserError as error:
        assert "\n" not in str(error)
        return f"{type(error).__name__}: {error}"
    raise AssertionError("all images were read")
