"""Large JPEGs are decoded at a reduced size; the oracles are Pillow by hand, timm and torchvision."""

import math
import pickle
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose
from torchvision.transforms import functional as F

from conformer_vision.data import AugmentConfig, BrokenImageError, build_transform, open_image
from conformer_vision.geometry import Box, Kept, Size, kept_in_evaluation, shortened
from conformer_vision.preprocessing import Plan, read_through
from conformer_vision.spec import Preprocessing
from photos import jpeg, photo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = (1, 2, 4, 8)


def keeping(by: int) -> Any:
    """A need that allows just this reduction: twice the pixels, and no more, at that scale."""

    def need(size: Size) -> Kept:
        kept = Kept(Box(0, 0, *size), tuple(max(int(edge / by / math.sqrt(2)), 1) for edge in size))  # type: ignore[arg-type]
        assert kept.reduction == by
        return kept

    return need


def by_hand(data: bytes, by: int) -> Image.Image:
    """What Pillow's own calls give; an edge of fewer pixels than ``by`` cannot be divided."""
    image = Image.open(BytesIO(data))
    size = image.size
    image.draft("RGB", (size[0] // by, size[1] // by))
    assert image.size == (math.ceil(size[0] / by), math.ceil(size[1] / by))
    return ImageOps.exif_transpose(image).convert("RGB")


# ---- how much is enough ------------------------------------------------------------------------------

EDGES = st.integers(1, 5000)


@given(st.tuples(EDGES, EDGES), st.tuples(st.integers(1, 700), st.integers(1, 700)))
@settings(deadline=None)
def test_the_smallest_scale_with_twice_the_pixels(part: Size, size: Size) -> None:
    found = Kept(Box(3, 7, 3 + part[0], 7 + part[1]), size).reduction
    enough = [
        by
        for by in SCALES
        if (part[0] / by) * (part[1] / by) >= 2 * size[0] * size[1]
        and part[0] / by >= size[0]
        and part[1] / by >= size[1]
    ]
    assert found == max(enough, default=1)


def test_photos_of_cameras() -> None:
    """12 megapixels at 224 pixels, resized to 256 before the crop, need 341 × 256 × 2 pixels."""
    values = Preprocessing((3, 224, 224), MEAN, STD)
    kept = kept_in_evaluation(values, (4000, 3000))
    assert kept == Kept(Box(0, 0, 4000, 3000), (341, 256)) and kept.reduction == 8
    assert kept_in_evaluation(values, (1024, 768)).reduction == 2
    assert kept_in_evaluation(values, (640, 480)).reduction == 1
    assert kept_in_evaluation(values, (10000, 10)).reduction == 1
    assert kept_in_evaluation(Preprocessing((3, 448, 448), MEAN, STD), (4000, 3000)).reduction == 4


# ---- decoding ----------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "without subsampling": {"subsampling": 0},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "mpo": {"kind": "MPO", "save_all": True, "append_images": [Image.new("RGB", (40, 30), "red")]},
}


def written(kind: str, size: Size, **options: Any) -> bytes:
    options = KINDS[kind] | options
    return jpeg(photo(size, options.pop("mode", "RGB")), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_image_is_pillows(kind: str, tmp_path: Path) -> None:
    for size in ((160, 96), (161, 99), (90, 131)):
        data = written(kind, size)
        (tmp_path / "image.jpg").write_bytes(data)
        for by in SCALES:
            wanted = np.asarray(by_hand(data, by))
            assert np.array_equal(open_image(data, need=keeping(by)), wanted)
            assert np.array_equal(open_image(tmp_path / "image.jpg", need=keeping(by)), wanted)
        assert np.array_equal(open_image(data), by_hand(data, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_need_is_asked_for_the_upright_size(orientation: int) -> None:
    data = jpeg(photo((160, 99)), orientation=orientation)
    full = open_image(data)
    assert full.size == ((160, 99) if orientation < 5 else (99, 160))
    for by in SCALES:
        sizes = []

        def need(size: Size, by: int = by, sizes: list[Size] = sizes) -> Kept:
            sizes.append(size)
            return keeping(by)(size)

        image = open_image(data, need=need)
        assert sizes == [full.size]
        assert np.array_equal(image, by_hand(data, by))


def test_edges_that_cannot_be_divided() -> None:
    def most(size: Size) -> Kept:
        return Kept(Box(0, 0, *size), (1, 1))

    for size, reduced in (
        ((1, 1), (1, 1)),
        ((1, 5000), (1, 5000)),
        ((10000, 10), (1250, 2)),
        ((2, 2), (2, 2)),
        ((3, 900), (2, 450)),
    ):
        data = jpeg(photo(size))
        image = open_image(data, need=most)
        assert image.size == reduced, size
        assert np.array_equal(image, by_hand(data, -(-size[0] // reduced[0])))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_are_decoded_in_full(kind: str) -> None:
    buffer = BytesIO()
    photo((160, 96)).save(buffer, kind)
    image = open_image(buffer.getvalue(), need=lambda size: pytest.fail("asked"))  # type: ignore[arg-type]
    assert np.array_equal(image, open_image(buffer.getvalue()))


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "cmyk"])
def test_a_truncated_image_is_broken_at_every_scale(kind: str) -> None:
    """Wherever it ends: it is broken in part just where it is broken in full."""
    data = written(kind, (72, 56), **({"restart_marker_rows": 1} if kind == "baseline" else {}))
    found = {by: _readable(data, by) for by in SCALES}
    assert found[1][-1] and found[1].count(True) < 5
    for by in SCALES[1:]:
        assert found[by] == found[1], by


def _readable(data: bytes, by: int) -> list[bool]:
    ends = [*range(0, len(data) - 40, 97), *range(len(data) - 40, len(data) + 1)]
    return [_reads(data[:end], by) for end in ends]


def _reads(data: bytes, by: int) -> bool:
    try:
        open_image(data, need=keeping(by))
    except BrokenImageError:
        return False
    return True


def test_what_a_need_raises_does_not_make_an_image_broken(tmp_path: Path) -> None:
    def need(size: Size) -> Kept:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        open_image(jpeg(photo((64, 64))), need=need)
    with pytest.raises(BrokenImageError, match="no such file"):
        open_image(tmp_path / "none.jpg", need=need)


# ---- transforming ------------------------------------------------------------------------------------

SIDES = st.integers(40, 700)
INPUTS = st.sampled_from([(32, 32), (48, 32), (40, 64)])


def normalised(image: Image.Image) -> Tensor:
    return F.normalize(F.to_tensor(image), MEAN, STD)


@given(st.tuples(SIDES, SIDES), INPUTS, st.sampled_from([1.0, 0.875]), st.sampled_from(["center", "squash"]))
@settings(deadline=None, max_examples=25)
def test_evaluation_resizes_the_reduced_image(
    size: Size, target: tuple[int, int], crop_pct: float, mode: str
) -> None:
    values = Preprocessing((3, *target), MEAN, STD, "bicubic", crop_pct, mode)
    pipeline, data = build_transform(values), jpeg(photo(size))
    resize = create_transform(
        (3, *target), mean=MEAN, std=STD, interpolation="bicubic", crop_pct=crop_pct, crop_mode=mode
    ).transforms[0]
    resized = resize(Image.new("RGB", size)).size
    by = max(
        s
        for s in SCALES
        if s == 1
        or (
            size[0] * size[1] >= 2 * s * s * resized[0] * resized[1]
            and size[0] >= s * resized[0]
            and size[1] >= s * resized[1]
        )
    )
    box = (0, 0, size[0] / by, size[1] / by)
    wanted = by_hand(data, by).resize(resized, Image.Resampling.BICUBIC, box)
    found = read_through(pipeline, lambda need: open_image(data, need=need))
    torch.testing.assert_close(found, normalised(F.center_crop(wanted, list(target))), rtol=1e-5, atol=1e-5)
    assert torch.equal(pipeline(open_image(data)), pipeline.plan(size)(open_image(data)))


def test_evaluation_is_timms_on_the_reduced_image() -> None:
    """Where the edges are multiples of 8, no pixel of the reduced image is cut off."""
    for size, mode in (((640, 480), "center"), ((480, 800), "squash"), ((800, 640), "border")):
        timms = create_transform(
            (3, 32, 32), mean=MEAN, std=STD, interpolation="bicubic", crop_pct=0.875, crop_mode=mode
        )
        pipeline = build_transform(Preprocessing((3, 32, 32), MEAN, STD, "bicubic", 0.875, mode))
        data = jpeg(photo(size), progressive=True)
        found = read_through(pipeline, lambda need, data=data: open_image(data, need=need))  # type: ignore[misc]
        torch.testing.assert_close(found, timms(by_hand(data, 8)), rtol=1e-5, atol=1e-5)
        full = timms(open_image(data))
        torch.testing.assert_close(pipeline(open_image(data)), full, rtol=1e-5, atol=1e-5)
        assert 0 < (found - full).abs().mean() < 0.05, "near the image in full, and not it"


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def timms_training(size: int, **options: Any) -> Compose:
    """timm's training transforms, which know nothing of reduced images."""
    return create_transform(
        (3, size, size), is_training=True, mean=MEAN, std=STD, interpolation="bicubic", **options
    )


@given(st.tuples(SIDES, SIDES), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_the_crop_is_drawn_before_decoding_as_timm_draws_it(size: Size, seed: int) -> None:
    pipeline = build_transform(Preprocessing((3, 96, 96), MEAN, STD), AugmentConfig(crop="rrc"))
    crop = timms_training(96).transforms[0]
    seed_all(seed)
    top, left, height, width = crop.get_params(Image.new("L", size), crop.scale, crop.ratio)
    drawn = random.getstate()
    seed_all(seed)
    plan = pipeline.plan(size)
    assert plan.kept == Kept(Box(left, top, left + width, top + height), (96, 96))
    assert random.getstate() == drawn


@pytest.mark.parametrize("options", [{}, {"color_jitter": 0.3}, {"auto_augment": "rand-m9-mstd0.5-inc1"}])
def test_where_nothing_is_reduced_training_is_timms(options: dict[str, Any]) -> None:
    image = photo((130, 100))
    ours = build_transform(Preprocessing((3, 96, 96), MEAN, STD), AugmentConfig(crop="rrc", **options))
    timms = timms_training(96, **({"color_jitter": None} | options))
    for seed in range(12):
        seed_all(seed)
        wanted = timms(image)
        seed_all(seed)
        torch.testing.assert_close(ours(image), wanted, rtol=1e-5, atol=1e-5)


def test_training_takes_its_crop_from_the_reduced_image() -> None:
    augment = AugmentConfig(crop="rrc", scale=(0.3, 1), hflip=0)
    pipeline = build_transform(Preprocessing((3, 96, 96), MEAN, STD), augment)
    data = jpeg(photo((840, 630)), orientation=6)
    seen = set()
    for seed in range(20):
        seed_all(seed)
        found = read_through(pipeline, lambda need: open_image(data, need=need))
        seed_all(seed)
        (left, top, right, bottom), _ = kept = pipeline.plan((630, 840)).kept
        by = kept.reduction
        seen.add(by)
        around = (left // by, top // by, -(-right // by), -(-bottom // by))
        box = (left / by - around[0], top / by - around[1], right / by - around[0], bottom / by - around[1])
        part = by_hand(data, by).crop(around).resize((96, 96), Image.Resampling.BICUBIC, box)
        torch.testing.assert_close(found, normalised(part), rtol=1e-5, atol=1e-5)
        seed_all(seed)
        assert 0 < (pipeline(open_image(data)) - found).abs().mean() < 0.15
    assert seen == {2, 4}


def test_pad_reduces_too() -> None:
    pipeline = build_transform(Preprocessing((3, 32, 32), MEAN, STD), AugmentConfig(crop="pad", hflip=0))
    plan = pipeline.plan((640, 480))
    assert plan.kept == Kept(Box(0, 0, 640, 480), (43, 32)) and plan.kept.reduction == 8


def test_a_long_image_keeps_its_middle() -> None:
    values = Preprocessing((1, 32, 32), (0.5,), (0.25,))
    assert shortened((40000, 80), values.input_size) == Box(18720, 0, 21280, 80)
    data = jpeg(photo((8000, 160)))
    plan = build_transform(values).plan((8000, 160))
    assert plan.kept == Kept(Box(1440, 0, 6560, 160), (1152, 36)) and plan.kept.reduction == 2
    middle = (
        by_hand(data, 2).crop((720, 0, 3280, 80)).convert("L").resize((1152, 36), Image.Resampling.BICUBIC)
    )
    wanted = F.normalize(F.to_tensor(F.center_crop(middle, [32, 32])), [0.5], [0.25])
    found = read_through(build_transform(values), lambda need: open_image(data, need=need))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_plan_is_for_images_of_its_size() -> None:
    pipeline = pickle.loads(pickle.dumps(build_transform(Preprocessing((3, 32, 32), MEAN, STD))))
    plan: Plan = pipeline.plan((640, 480))
    for size in ((640, 480), (80, 60)):
        assert plan(photo(size)).shape == (3, 32, 32)
    for size in ((480, 640), (160, 120), (81, 60)):
        with pytest.raises(ValueError, match="planned for an image of"):
            plan(photo(size))
