"""What the tests of loaders share."""

import torch

from conformer_vision.data.loader import Batch


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether the images, labels and numbers of all batches are equal, bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.indices, y.indices)
        for x, y in zip(a, b, strict=True)
    )
