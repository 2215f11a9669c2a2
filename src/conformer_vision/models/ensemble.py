"""Several networks that answer together."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn

from conformer_vision.models.conformer import Conformer

__all__ = ["Ensemble", "mean_of"]


class Ensemble(nn.Module):
    """Networks of one architecture, such as those of the folds of a cross-validation.

    They compute one after the other, so the activations of one are in memory at a time. The logits are
    averaged, head by head.

    Args:
        members: the networks, two or more, with the same classes.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def num_classes(self) -> int:
        """Number of outputs."""
        return int(self.members[0].num_classes)  # type: ignore[arg-type]

    @property
    def folded(self) -> bool:
        """Whether the members are folded Conformers."""
        return all(isinstance(member, Conformer) and member.folded for member in self.members)

    def forward(self, x: Tensor) -> Tensor:
        """Turn images (B, C, H, W) into the mean of the members' logits (B, num_classes)."""
        return mean_of([member(x) for member in self.members])

    def fold(self) -> Ensemble:
        """Return a copy in eval mode whose Conformers are folded; other networks are copied as they are."""
        return Ensemble(
            [
                member.fold() if isinstance(member, Conformer) and not member.folded else deepcopy(member)
                for member in self.members
            ]
        ).eval()


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape, summed in their order."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)
