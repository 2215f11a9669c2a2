"""The mean pooled features of every class, which tell images of other things; they travel in weights files.

Shapes: B images, K classes, F pooled features (of a Conformer: the map's, then the class token's).
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conformer_vision.errors import UserError, reason_of

METADATA_KEY = "conformer_vision_class_means"
"""Key of the class means in the metadata of a weights file: as tensors they would be no weights of the model,
and other programs refuse such."""


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The mean pooled features of the validation images of every class."""

    means: Tensor
    """(K, F) float16; zeros for a class without images."""

    def similarity(self, features: Tensor) -> Tensor:
        """Return the cosine of images' features (B, F) to the nearest class mean, (B,), in [-1, 1]."""
        means = F.normalize(self.means.to(features.device, features.dtype), dim=1)
        return (F.normalize(features, dim=1) @ means.T).max(dim=1).values

    def encode(self) -> str:
        """Return the means as JSON text."""
        data = base64.b64encode(self.means.cpu().contiguous().numpy().tobytes()).decode()
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
        means = torch.frombuffer(bytearray(data), dtype=torch.float16).reshape(shape)
        if not means.isfinite().all():
            raise UserError("the class means are not finite; write the report of the run again")
        return cls(means)
