"""Signals that an image shows none of the classes, for `unknown_images`: the package's own and others.

Shapes: N images, K classes, F pooled features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor

from conformer_vision.inference.unsure import similarity_to_others
from conformer_vision.runtime.base import FUSED

FEATURES = {"conv": slice(0, 384), "token": slice(384, None), "both": slice(0, None)}
"""The pooled features of the bundled network: the map's, the class token."""


@dataclass(frozen=True)
class Seen:
    """What the network gives for a set of images."""

    logits: dict[str, Tensor]
    """Head -> (N, K) float64."""
    features: Tensor
    """(N, F) float64."""
    labels: Tensor
    """(N,) int64, in the set's own classes."""


class Fitted:
    """Statistics of the held-out training images."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        classes = range(int(seen.labels.max()) + 1)
        self.means = torch.stack([seen.features[seen.labels == k].mean(0) for k in classes])
        self.centre = seen.features.mean(0)
        self.precision = {
            name: self._precision(self.means[seen.labels], part) for name, part in FEATURES.items()
        }
        self.background = {name: self._precision(self.centre, part) for name, part in FEATURES.items()}

    def _precision(self, centres: Tensor, part: slice) -> Tensor:
        residuals = (self.seen.features - centres)[:, part]
        return torch.from_numpy(LedoitWolf(assume_centered=True).fit(residuals.numpy()).precision_)


def cosine(seen: Seen, fitted: Fitted, *, part: str, centred: bool = False) -> Tensor:
    """Cosine to the nearest class mean, of features as they are or less their overall mean."""
    centre = fitted.centre[FEATURES[part]] if centred else 0.0
    features, means = (each[:, FEATURES[part]] - centre for each in (seen.features, fitted.means))
    return (F.normalize(features, dim=1) @ F.normalize(means, dim=1).T).max(1).values


def neighbours(seen: Seen, fitted: Fitted, *, part: str, k: int = 5) -> Tensor:
    """Cosine to the k-th nearest held-out image (Sun et al., ICML 2022)."""
    pairs = (F.normalize(each.features[:, FEATURES[part]], dim=1) for each in (seen, fitted.seen))
    ours, theirs = pairs
    own = seen is fitted.seen  # an image is no neighbour of its own
    return (ours @ theirs.T).topk(k + own, dim=1).values[:, -1]


def squared(centred: Tensor, precision: Tensor) -> Tensor:
    """Squared distance (N,) in the metric of a precision matrix."""
    return ((centred @ precision) * centred).sum(1)


def mahalanobis(seen: Seen, fitted: Fitted, *, part: str, relative: bool = False) -> Tensor:
    """Negative distance to the nearest class mean (Lee et al., NeurIPS 2018; relative: Ren et al., 2021)."""
    where, matrix = FEATURES[part], fitted.precision[part]
    distances = [squared((seen.features - mean)[:, where], matrix) for mean in fitted.means]
    nearest = torch.stack(distances).min(0).values
    if relative:
        nearest = nearest - squared((seen.features - fitted.centre)[:, where], fitted.background[part])
    return -nearest


def vim(seen: Seen, fitted: Fitted, *, head: str, part: str, weight: Tensor, bias: Tensor) -> Tensor:
    """Energy less the scaled norm of the features outside their main subspace (Wang et al., CVPR 2022)."""
    origin = -torch.linalg.pinv(weight) @ bias
    own, theirs = (each.features[:, FEATURES[part]] - origin for each in (fitted.seen, seen))
    vectors = torch.linalg.eigh(own.T @ own).eigenvectors
    rest = vectors[:, : -weight.shape[1] // 2]
    scale = fitted.seen.logits[head].max(1).values.mean() / (own @ rest).norm(dim=1).mean()
    return seen.logits[head].logsumexp(1) - scale * (theirs @ rest).norm(dim=1)


def divergence(seen: Seen, fitted: Fitted) -> Tensor:
    """Negative Jensen-Shannon divergence of the two heads' probabilities."""
    conv, trans = (seen.logits[head].softmax(1) for head in ("conv", "trans"))
    middle = ((conv + trans) / 2).log()
    parts = [F.kl_div(middle, each, reduction="none").sum(1) for each in (conv, trans)]
    return -(parts[0] + parts[1]) / 2


def first(seen: Seen, head: str) -> Tensor:
    """First choice (N,) of a head."""
    return seen.logits[head].argmax(1)


def of_fused(seen: Seen, head: str) -> Tensor:
    """Probability by a head of the class that the prediction names."""
    best = seen.logits[FUSED].argmax(1, keepdim=True)
    return seen.logits[head].softmax(1).gather(1, best)[:, 0]


Compute = Callable[[Seen, Fitted], Tensor]


def signals(heads: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Compute]:
    """Return the single signals by name; higher is more known. The first is the baseline."""
    found: dict[str, Compute] = {
        "maximum softmax probability": lambda s, f: s.logits[FUSED].softmax(1).max(1).values,
        "maximum logit": lambda s, f: s.logits[FUSED].max(1).values,
        "negative entropy": lambda s, f: (s.logits[FUSED].softmax(1) * s.logits[FUSED].log_softmax(1)).sum(1),
        "energy": lambda s, f: s.logits[FUSED].logsumexp(1),
        "energy, convolution head": lambda s, f: s.logits["conv"].logsumexp(1),
        "energy, transformer head": lambda s, f: s.logits["trans"].logsumexp(1),
        "heads: Jensen-Shannon divergence": divergence,
        "heads: same class": lambda s, f: (
            s.logits["conv"].argmax(1) == s.logits["trans"].argmax(1)
        ).double(),
        "heads: smaller probability": lambda s, f: torch.minimum(of_fused(s, "conv"), of_fused(s, "trans")),
        "heads: product of probabilities": lambda s, f: of_fused(s, "conv") * of_fused(s, "trans"),
    }

    def add(name: str, function: Callable[..., Tensor], **options: Any) -> None:
        found[name] = lambda s, f: function(s, f, **options)

    for part in FEATURES:
        add(f"cosine to class means, {part}", cosine, part=part)
        add(f"centred cosine, {part}", cosine, part=part, centred=True)
        add(f"Mahalanobis, {part}", mahalanobis, part=part)
        add(f"relative Mahalanobis, {part}", mahalanobis, part=part, relative=True)
        add(f"5th neighbour, {part}", neighbours, part=part)
    for head, part in (("conv", "conv"), ("trans", "token")):
        weight, bias = heads[head]
        add(f"ViM, {part}", vim, head=head, part=part, weight=weight, bias=bias)
    return found


SHIPPED_SIGNALS = ("energy", "cosine to class means, both")
"""What the package adds up (`conformer_vision.runtime.unsure`)."""
SUMS = (
    SHIPPED_SIGNALS,
    ("maximum softmax probability", "cosine to class means, both"),
    ("negative entropy", "cosine to class means, both"),
    ("energy", "cosine to class means, both", "heads: Jensen-Shannon divergence"),
    ("energy", "cosine to class means, both", "centred cosine, both"),
    ("energy", "cosine to class means, conv", "cosine to class means, token"),
    ("energy", "5th neighbour, both"),
    ("energy", "heads: Jensen-Shannon divergence"),
    ("energy", "Mahalanobis, both"),
)
"""Sums of signals, each in standard deviations of the held-out images."""


def scores_of(
    sets: dict[str, Seen], fitted: Fitted, heads: dict[str, tuple[Tensor, Tensor]]
) -> Iterator[tuple[str, dict[str, NDArray[np.float64]]]]:
    """Yield every signal and sum with its scores for the images of each set."""
    single = {}
    for name, compute in signals(heads).items():
        single[name] = {label: compute(seen, fitted) for label, seen in sets.items()}
        yield name, {label: values.numpy() for label, values in single[name].items()}
    # Images that a class mean is of are nearer to it than others: each is compared with a mean without it.
    own = torch.from_numpy(
        similarity_to_others(fitted.seen.features.numpy(), fitted.seen.labels.numpy(), len(fitted.means))
    )
    for names in SUMS:
        total: dict[str, Any] = dict.fromkeys(sets, 0.0)
        for name in names:
            fit = own if name == "cosine to class means, both" else single[name]["held-out"]
            for label in sets:
                values = fit if label == "held-out" else single[name][label]
                total[label] = total[label] + (values - fit.mean()) / fit.std()
        yield " + ".join(names), {label: values.numpy() for label, values in total.items()}
