"""Images that are decoded once, kept in the memory of the device, and augmented there in whole batches.

For small images and a GPU: reading processes cannot decode and augment as many as it trains on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from conformer_vision.errors import UserError

from .augment import AugmentConfig
from .base import ImageSource
from .images import BrokenImageError
from .loader import (
    MOST_REPLACED,
    NOT_COUNTED,
    Batch,
    Positioned,
    evaluation_loader,
    generators_kept,
    seed_generators,
)
from .order import EvaluationOrder, TrainingOrder
from .transforms import Transform, build_transform, random_erasing

if TYPE_CHECKING:
    from PIL import Image

_READ_AT_ONCE = 256
_RESAMPLINGS = {"nearest": "nearest", "bilinear": "bilinear"}
"""kornia's by Pillow's name; the others come nearest to bicubic."""


class DeviceCache:
    """All images of a source as one tensor in the memory of a device.

    Args:
        source: the images.
        preprocessing: of the model: `ModelSpec.preprocessing`.
        edge: pixels of the shorter edge that they are kept at, in the shape of the network's input; images
            of another shape are cut to it at the centre, as evaluation does.
        device: where to keep them.
        workers: processes that decode them.

    Attributes:
        images: (N, C, H, W), uint8, on the device; black where an image is broken.
        broken: what is wrong with an image, by its number.
        seconds: that decoding took.

    Raises:
        UserError: the device has too little memory left.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        preprocessing: dict[str, Any],
        edge: int,
        device: torch.device,
        workers: int,
    ) -> None:
        began = time.monotonic()
        self.source = source
        self._mean, self._std = (
            torch.tensor(preprocessing[name], device=device).view(-1, 1, 1) for name in ("mean", "std")
        )
        channels = preprocessing["input_size"][0]
        shape = (len(source), channels, *_scaled(preprocessing, edge))
        _check_memory(shape, device)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        self.broken: dict[int, str] = {}
        plain = {"input_size": shape[1:], "mean": (0.0,) * channels, "std": (1.0,) * channels}
        decode = _ToBytes(build_transform(**{**preprocessing, **plain}, augment=None))
        for batch in evaluation_loader(source, decode, batch_size=_READ_AT_ONCE, workers=workers):
            first = int(batch.indices[0])  # they come in the source's order
            self.images[first : first + len(batch.images)] = batch.images.to(device)
            missing = batch.indices[batch.labels == NOT_COUNTED].tolist()
            self.broken |= zip(missing, batch.broken, strict=True)
        self.seconds = time.monotonic() - began

    def __str__(self) -> str:
        count, _, height, width = self.images.shape
        return (
            f"{count:,} images of {height}x{width} kept on {self.images.device} "
            f"({_bytes(self.images.nbytes)}), decoded in {self.seconds:.1f} s"
        )

    def standing_in(self, number: int) -> int:
        """The image itself, or for a broken one the next that is not.

        Raises:
            BrokenImageError: a hundred images in a row are broken.
        """
        last = min(MOST_REPLACED, len(self.source))
        for ahead in range(last):
            if (found := (number + ahead) % len(self.source)) not in self.broken:
                return found
        raise BrokenImageError(f"{self.broken[number]}; nor can the {last - 1} images after it")

    def take(self, numbers: Sequence[int]) -> Tensor:
        """These images, (B, C, H, W), on a scale of 0 to 1."""
        return self.images[torch.tensor(numbers, device=self.images.device)].float() / 255

    def normalized(self, images: Tensor) -> Tensor:
        """Images of a scale of 0 to 1 as the network takes them."""
        return (images - self._mean) / self._std


class DeviceLoader(Positioned):
    """Batches of images out of a `DeviceCache`, on its device; otherwise as an `ImageLoader`'s.

    Args:
        cache: the images.
        order: which of them make which batch.
        augment: for training; see `DeviceAugmentation`. None for evaluation, where a broken image is not
            replaced.
    """

    def __init__(
        self,
        cache: DeviceCache,
        order: TrainingOrder | EvaluationOrder,
        augment: DeviceAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.cache = cache
        self.order = order
        self.augment = augment

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        self.begin(self.order)
        labels, broken = self.cache.source.labels, self.cache.broken
        for draws in self.order:
            numbers = [draw.number for draw in draws]
            lines = [broken[number] for number in numbers if number in broken]
            if self.augment is None:
                counted = [draw.counted and draw.number not in broken for draw in draws]
                images = self.cache.normalized(self.cache.take(numbers))
                images[torch.tensor([number in broken for number in numbers])] = 0.0
            else:
                numbers = [self.cache.standing_in(number) for number in numbers]
                counted = [True] * len(numbers)
                with generators_kept(), torch.no_grad():
                    # Of the first image: a run that goes on draws what it would have drawn.
                    seed_generators(int(draws[0].seed or 0))
                    images = self.cache.normalized(self.augment(self.cache.take(numbers)))
                    images = self.augment.erased(images)
            target = [
                labels[number] if counts else NOT_COUNTED
                for number, counts in zip(numbers, counted, strict=True)
            ]
            yield Batch(
                images,
                torch.tensor(target, device=images.device),
                torch.tensor(numbers, device=images.device),
                lines,
            )


class DeviceAugmentation:
    """Augmentation of whole batches by kornia, in which each image's is drawn by itself.

    Args:
        augment: which; ``hflip`` decided.
        cached: pixels of the shorter edge of the images that come.
        preprocessing: of the model: `ModelSpec.preprocessing`.

    Raises:
        UserError: a policy of timm, which works on single images; kornia is missing.
    """

    def __init__(self, augment: AugmentConfig, *, cached: int, preprocessing: dict[str, Any]) -> None:
        if augment.auto_augment:
            raise UserError(
                f"auto_augment {augment.auto_augment!r} works on single images before they reach the "
                "device; leave it or device_cache out"
            )
        kornia = _kornia()
        self._size: tuple[int, int] = preprocessing["input_size"][1:]
        self._cached = _scaled(preprocessing, cached)
        stages: list[nn.Module] = []
        if augment.crop_for(*self._size) == "pad":
            # Images larger than the input are moved as far in proportion.
            pad = round((augment.pad or max(self._size) // 8) * cached / min(self._size))
            stages.append(
                kornia.RandomCrop(self._cached, padding=pad, cropping_mode="resample", resample="nearest")
            )
        else:
            stages.append(
                kornia.RandomResizedCrop(
                    self._cached,
                    scale=augment.scale or (0.08, 1.0),
                    ratio=augment.ratio or (3 / 4, 4 / 3),
                    resample=_RESAMPLINGS.get(preprocessing["interpolation"], "bicubic"),
                    cropping_mode="resample",
                )
            )
        stages.append(kornia.RandomHorizontalFlip(p=0.5 if augment.hflip is None else augment.hflip))
        if augment.color_jitter:
            stages.append(kornia.ColorJitter(*[augment.color_jitter] * 3))
        self._stages = nn.Sequential(*stages)
        self._erase = random_erasing(augment)

    def __call__(self, images: Tensor) -> Tensor:
        """Images on a scale of 0 to 1 as the cache has them, to such of the network's input size."""
        images = self._stages(images).clamp(0, 1)  # bicubic resampling overshoots
        if self._cached == self._size:
            return images
        return interpolate(images, size=self._size, mode="bilinear", antialias=True)

    def erased(self, images: Tensor) -> Tensor:
        """Normalised images, out of which rectangles are erased where the configuration says so."""
        return images if self._erase is None else self._erase(images)


class _ToBytes:
    """A transform to the scale of 0 to 1, back to the bytes that its images had."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return (self.transform(image) * 255).round().to(torch.uint8)


def _scaled(preprocessing: dict[str, Any], edge: int) -> tuple[int, int]:
    """Height and width in the shape of the input, with so many pixels of the shorter edge."""
    height, width = preprocessing["input_size"][1:]
    shorter = min(height, width)
    return round(height * edge / shorter), round(width * edge / shorter)


def _kornia() -> Any:
    try:
        import kornia.augmentation
    except ImportError as error:
        raise UserError(
            f"device_cache needs kornia: pip install 'conformer-vision[gpu]' ({error})"
        ) from error
    return kornia.augmentation


def _check_memory(shape: tuple[int, ...], device: torch.device) -> None:
    needed = torch.Size(shape).numel()
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        free = psutil.virtual_memory().available
    else:
        return  # the others do not say
    if needed > free:
        raise UserError(
            f"device_cache: {shape[0]:,} images of {shape[2]}x{shape[3]} take {_bytes(needed)}, and "
            f"{device} has {_bytes(free)} left; give a lower device_cache, or leave it out"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
