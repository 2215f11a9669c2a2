"""Loaders read large JPEGs at the reduced size that the transform needs, with the same seeds as ever."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import AugmentConfig, build_transform, open_image
from conformer_vision.data.loader import evaluation_loader, training_loader
from conformer_vision.geometry import Kept, Size
from conformer_vision.preprocessing import read_through
from conformer_vision.spec import Preprocessing
from image_sets import opened
from photos import jpeg, photo
from streamed import opened_stream, write_tar

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(8):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo((400 + number, 300), seed=number), orientation=1 + number % 8))
    return tmp_path / "photos"


def images_of(loader: Any) -> Tensor:
    return torch.cat([batch.images for batch in loader])


def test_loaders_read_as_the_transform_needs(photos: Path) -> None:
    source = opened(photos, "all")
    pipeline = build_transform(Preprocessing((3, 32, 32), MEAN, STD))
    files = [source.file(index) for index in range(len(source))]

    def read(file: Any, need: Any) -> Image.Image:
        return open_image(file, need=need)

    wanted = torch.stack([read_through(pipeline, partial(read, file)) for file in files])
    options = {"batch_size": 3, "workers": 0}
    assert torch.equal(images_of(evaluation_loader(source, pipeline, **options)), wanted)
    assert not torch.equal(torch.stack([pipeline(source.image(index)) for index in range(8)]), wanted)
    images = [(f"{n}.jpg", Path(str(file)).read_bytes()) for n, file in enumerate(files)]
    labels = [(f"{n}.cls", str(source.labels[n]).encode()) for n in range(8)]
    write_tar(photos.parent / "set" / "0.tar", sorted(images + labels))
    (photos.parent / "set" / "classes.txt").write_text("a\nb\n")
    stream = opened_stream(f"wds/{photos.parent / 'set'}")
    assert torch.equal(images_of(evaluation_loader(stream, pipeline, **options)), wanted)


def test_a_function_of_ones_own_gets_images_in_full(photos: Path) -> None:
    def sizes(image: Image.Image) -> Tensor:
        return torch.tensor(image.size)

    class Smaller:
        """It has a plan, but is no pipeline of this package."""

        def plan(self, size: Size) -> Kept:
            raise AssertionError

        __call__ = staticmethod(sizes)

    source = opened(photos, "all")
    for own in (sizes, Smaller()):
        found = images_of(evaluation_loader(source, own, batch_size=8, workers=0))
        assert found.min() == 300 and found.max() == 407


def epochs(photos: Path, workers: int) -> Iterator[Tensor]:
    pipeline = build_transform(Preprocessing((3, 64, 64), MEAN, STD), AugmentConfig(crop="rrc"))
    loader = training_loader(opened(photos, "all"), pipeline, batch_size=2, workers=workers, seed=5)
    yield images_of(loader)
    loader.position = lambda: (0, 2)
    yield images_of(loader)


def test_workers_and_resuming_change_no_pixel(photos: Path) -> None:
    whole, rest = epochs(photos, 0)
    assert torch.equal(whole[4:], rest) and len(rest) == 4
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip((whole, rest), epochs(photos, 2), strict=True)
    )


def test_a_broken_image_before_it_changes_no_crop(photos: Path) -> None:
    """The one that replaces it is transformed by the seed of the draw, whatever was read before."""
    source = opened(photos, "all")
    pipeline = build_transform(Preprocessing((3, 64, 64), MEAN, STD), AugmentConfig(crop="rrc"))

    def loaded() -> tuple[Tensor, Tensor]:
        batches = list(training_loader(source, pipeline, batch_size=8, workers=0, seed=5))
        return batches[0].images, batches[0].indices

    before, indices = loaded()
    broken = int(indices[0])
    file = Path(str(source.file(broken)))
    file.write_bytes(file.read_bytes()[:-200])  # its header is whole: its crop has been drawn
    after, _ = loaded()
    assert torch.equal(before[1:], after[1:])
    (place,) = (indices == (broken + 1) % 8).nonzero()[0].tolist()
    assert not torch.equal(after[0], before[0]) and not torch.equal(after[0], before[place])
