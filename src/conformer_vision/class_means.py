"""The mean pooled features of every class, which tell images of other things; they travel in weights files.

Shapes: B images, K classes, F pooled features (of a Conformer: the map's, then the class token's).
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformer_vision.errors import UserError, reason_of

METADATA_KEY = "conformer_vision_class_means"
"""Key of the class means in the metadata of a weights file: as tensors they would be no weights of the model,
and other programs refuse such."""


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The mean pooled features of the validation images of every class."""

    means: NDArray[np.float16]
    """(K, F); zeros for a class without images."""

    def similarity(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return the cosine of images' features (B, F) to the nearest class mean, (B,), in [-1, 1]."""
        cosines = normalized(features) @ normalized(self.means.astype(features.dtype)).T
        found: NDArray[Any] = cosines.max(axis=1)
        return found

    def encode(self) -> str:
        """Return the means as JSON text."""
        data = base64.b64encode(self.means.tobytes()).decode()
        return json.dumps({"shape": list(self.means.shape), "float16": data})

    @classmethod
    def decode(cls, text: str) -> ClassMeans:
        """Read what `encode` wrote.

        Raises:
            UserError: It is damaged.
        """
        try:
            values = json.loads(text)
            shape, data = values["shape"], base64.b64decode(values["float16"], validate=True)
            fits = len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
            if not fits or len(data) != 2 * math.prod(shape):
                raise ValueError("another number of values than its shape")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"the class means are damaged ({reason_of(error)}); copy the file again"
            ) from error
        means = np.frombuffer(data, dtype=np.float16).reshape(shape)
        if not np.isfinite(means).all():
            raise UserError("the class means are not finite; write the report of the run again")
        return cls(means)


def normalized(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return vectors (N, F) at length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[Any] = vectors / np.maximum(lengths, 1e-12)
    return found
