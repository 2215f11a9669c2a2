"""How well heat maps localise: the metrics of `localization`, each a function of one image or of a set.

Shapes: H x W pixels, an evidence map (H, W) in [0, 1] and the true mask or boxes of its class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from conformer_vision.explain.coco import PixelBox

IOU_LEVELS = (0.3, 0.5, 0.7)
"""Of MaxBoxAccV2."""
THRESHOLDS = np.arange(1, 100) / 100
"""Shares of the strongest evidence that MaxBoxAccV2 tries."""
BLUR = 1 / 6
"""Standard deviation of the blur that insertion starts from, as a share of the image's edge."""

Evidence = NDArray[np.float32]


def part_boxes(evidence: Evidence, threshold: float) -> list[PixelBox]:
    """Return the boxes of all connected parts that reach a threshold."""
    numbers, _ = ndimage.label((evidence >= threshold) & (evidence > 0), structure=np.ones((3, 3)))
    return [
        PixelBox(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for rows, columns in ndimage.find_objects(numbers)
    ]


def best_ious(evidence: Evidence, truth: Sequence[PixelBox]) -> NDArray[np.float64]:
    """Return the best IoU of any part with any true box at every threshold, (len(THRESHOLDS),)."""
    boxes = [part_boxes(evidence, threshold) for threshold in THRESHOLDS]
    return np.array([max((one.iou(true) for one in found for true in truth), default=0.0) for found in boxes])


def max_box_acc_v2(ious: NDArray[np.float64]) -> float:
    """Return MaxBoxAccV2 (Choe et al. 2020): the accuracy at the best threshold, the mean over `IOU_LEVELS`.

    The threshold is one for the whole set, and may differ between the levels.

    Args:
        ious: Of `best_ious`, (images, thresholds).
    """
    return float(np.mean([(ious >= level).mean(axis=0).max() for level in IOU_LEVELS]))


def points_into(evidence: Evidence, mask: NDArray[np.bool_]) -> bool:
    """Tell whether the strongest evidence lies on the object (the pointing game, Zhang et al. 2016).

    Of equally strong places the first in reading order counts. Without any evidence it is a miss.
    """
    return bool(evidence.max() > 0 and mask.flat[int(evidence.argmax())])


def mask_iou(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Return the intersection over the union of two masks, 0 if both are empty."""
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else 0.0


@torch.no_grad()
def removal_curves(
    score: Callable[[Tensor], Tensor], image: Tensor, evidence: Tensor, *, steps: int = 16
) -> tuple[float, float]:
    """Return the areas under the curves of deletion (lower is better) and insertion (Petsiuk et al. 2018).

    Deletion replaces the pixels of the image by its mean colour, the strongest evidence first; insertion puts
    them, in the same order, into a blurred image. Equal evidence goes in reading order.

    Args:
        score: Images (B, C, H, W) to the probability of the class (B,).
        image: (C, H, W).
        evidence: (H, W).
        steps: Equal portions of the pixels.
    """
    place = torch.empty(evidence.numel(), dtype=torch.long)
    place[evidence.flatten().argsort(descending=True, stable=True)] = torch.arange(evidence.numel())
    gone = torch.arange(steps + 1)[:, None] * evidence.numel() / steps
    taken = (place < gone).view(steps + 1, 1, *evidence.shape).to(image.device)
    sigma = BLUR * min(image.shape[1:])
    kernel = [2 * (edge // 4) + 1 for edge in image.shape[:0:-1]]
    mean = image.mean((1, 2), keepdim=True)
    deleted = torch.where(taken, mean, image)
    inserted = torch.where(taken, image, gaussian_blur(image, kernel, [sigma, sigma]))
    areas = [torch.trapezoid(score(images).double(), dx=1 / steps).item() for images in (deleted, inserted)]
    return areas[0], areas[1]


def times_as_long(work: Callable[[], object], unit: Callable[[], object], *, repeats: int = 7) -> float:
    """Return how many times as long one function takes as another: the ratio of the fastest runs in turn."""
    work(), unit()
    times = [(_seconds(work), _seconds(unit)) for _ in range(repeats)]
    return min(each[0] for each in times) / min(each[1] for each in times)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
