"""What the fuzz run found, each as a test of its own."""

import io
import logging
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from conformer_vision.data import build_transform, images, open_image
from conformer_vision.data.augment import AugmentConfig
from conformer_vision.data.opening import open_images
from conformer_vision.errors import UserError
from conformer_vision.spec import Preprocessing
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.recipe import read_recipe
from conformer_vision.training.run import resume
from image_sets import opened

MEAN, STD = (0.5,) * 3, (0.2,) * 3


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import good

    yield good
    del sys.modules["good"]


@pytest.mark.parametrize("size", [(65_000, 1), (1, 65_000)])
@pytest.mark.parametrize(
    ("mode", "augment"),
    [("center", None), ("border", None), ("squash", None), ("center", AugmentConfig(crop="pad"))],
)
def test_a_line_of_pixels_is_not_resized_to_gigabytes(
    size: tuple[int, int], mode: str, augment: AugmentConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, largest = Image.Image.resize, 0

    def watched(self: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        nonlocal largest
        largest = max(largest, size[0] * size[1])
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for edge in (32, 224):
        transform = build_transform(Preprocessing((3, edge, edge), MEAN, STD, crop_mode=mode), augment)
        assert transform(Image.new("RGB", size)).shape == (3, edge, edge)
    assert 0 < largest <= 64 * 256 * 256


@pytest.mark.parametrize("size", [(40, 30), (640, 10), (7, 440)])
def test_other_images_are_transformed_as_before(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    transform = build_transform(Preprocessing((3, 224, 224), MEAN, STD))
    resize = transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC)
    normalise = transforms.Normalize(MEAN, STD)
    plain = transforms.Compose([resize, transforms.CenterCrop(224), transforms.ToTensor(), normalise])
    image = Image.fromarray(pixels)
    torch.testing.assert_close(transform(image), plain(image), rtol=0, atol=1e-5)


def test_rows_read_apart_are_the_same_images(good: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images are turned to RGB a few rows at a time, so as not to take several times their size."""
    files = [data for _, data in good.images()]
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 30)).astype(np.float32)
    real[3, 4], real[40, 5] = np.nan, np.inf
    for array in (real, rng.integers(-(10**6), 10**6, (50, 30), dtype=np.int32)):
        files.append(good.encoded(Image.fromarray(array), ".tif"))
    whole = [np.asarray(open_image(data)) for data in files]
    monkeypatch.setattr(images, "_BAND_PIXELS", 100)
    for data, wanted in zip(files, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(open_image(data)), wanted)


def test_pillow_does_not_log_to_stderr() -> None:
    kinds = [type(handler) for handler in logging.getLogger("PIL").handlers]
    assert logging.NullHandler in kinds


def test_a_recipe_that_grows_by_references_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a [x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 10000 values"):
        read_recipe(path)


def test_an_archive_of_thousands_of_nested_folders_is_refused(good: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in good.CLASSES:
            archive.writestr(f"{name}/{'d/' * 3000}x.png", good.plain_image(0))
            archive.writestr(f"{name}/0.png", good.plain_image(1))
    with pytest.raises(UserError, match=r"set\.zip holds more than 100 folders within each other"):
        opened(path)


def test_what_is_damaged_is_good_before(good: ModuleType, tmp_path: Path) -> None:
    """A fuzz run whose inputs are refused whatever the damage shows nothing."""
    (tmp_path / "table.csv").write_text(good.table(good.class_folders(tmp_path / "photos")))
    (tmp_path / "set.parquet").write_bytes(good.parquet(good.parquet_columns()))
    specs = ["photos", "table.csv", "set.parquet"]
    for kind, suffix in (("zip", ".zip"), ("w", ".tar"), ("w:gz", ".tgz")):
        specs.append(f"set{suffix}")
        (tmp_path / specs[-1]).write_bytes(good.archive(kind, good.members()))
    for spec in specs:
        assert opened(tmp_path / spec, split="all").classes == good.CLASSES, spec
    for label in ("cls", "json"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "set-000.tar").write_bytes(good.shard(label))
        assert len(open_images(f"wds/{tmp_path / label}", "train").classes) == 3


@pytest.mark.parametrize(
    ("key", "value"), [("callbacks", {"Clock": {"reserve": {}}}), ("loops", {"fit_loop": "x"})]
)
def test_a_state_of_odd_values_is_refused(good: ModuleType, tmp_path: Path, key: str, value: object) -> None:
    data = good.class_folders(tmp_path / "photos", count=4)
    output = str(tmp_path / "run")
    run = train(
        TrainConfig.from_options(data=str(data), output=output, max_steps=1, keep_state=True, **good.TINY)
    )
    (run / "results.json").unlink()  # which says that nothing is left to do
    state = torch.load(run / "last.ckpt", weights_only=True)
    buffer = io.BytesIO()
    torch.save(state | {key: value}, buffer)
    (run / "last.ckpt").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="not a whole checkpoint"):
        resume(run)
    assert (run / "last.ckpt").read_bytes() == buffer.getvalue()
