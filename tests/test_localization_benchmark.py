"""The scripts behind the figures of localisation: metrics with known answers, and a set with exact truth."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import localization
import localization_metrics
import tables
from conformer_vision.explain import HeatMaps
from conformer_vision.explain.coco import PixelBox, RunLengths
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model
from localization_metrics import (
    THRESHOLDS,
    best_ious,
    mask_iou,
    max_box_acc_v2,
    points_into,
    removal_curves,
    times_as_long,
)
from localization_set import CLASSES, Photos, Recipe, compose, make_set, share_out

# ---- metrics ---------------------------------------------------------------------------------------


def test_max_box_acc_v2() -> None:
    """At 0.3 the first threshold is right for both images, at 0.5 and 0.7 one image is right at best."""
    assert max_box_acc_v2(np.array([[0.8, 0.2], [0.4, 0.6]])) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_best_ious_take_every_part() -> None:
    evidence = np.zeros((10, 20), np.float32)
    evidence[1:9, 1:9] = 0.5  # the larger part
    evidence[2:6, 12:16] = 1.0
    ious = best_ious(evidence, [PixelBox(12, 2, 4, 4)])
    assert ious.shape == THRESHOLDS.shape and (ious == 1).all()
    ious = best_ious(evidence, [PixelBox(1, 1, 8, 4), PixelBox(18, 8, 1, 1)])
    assert (ious[THRESHOLDS <= 0.5] == 0.5).all() and (ious[THRESHOLDS > 0.5] == 0).all()
    assert (best_ious(np.zeros_like(evidence), [PixelBox(0, 0, 20, 10)]) == 0).all()


def test_pointing_and_masks() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    evidence = np.zeros((4, 4), np.float32)
    assert not points_into(evidence, np.ones((4, 4), bool))
    evidence[2, 2] = 1
    assert points_into(evidence, mask)
    evidence[0, 0] = 2
    assert not points_into(evidence, mask)
    assert mask_iou(mask, np.roll(mask, 1, axis=0)) == pytest.approx(2 / 6)
    assert mask_iou(~mask & mask, ~mask & mask) == 0


def test_deletion_and_insertion() -> None:
    """The score is the share of the left half's pixels that are as they were."""
    image = torch.zeros(1, 8, 8)
    image[:, :, :4] = 1

    def score(images: Tensor) -> Tensor:
        return (images[:, 0, :, :4] == 1).float().mean((1, 2))

    left = image[0]
    # In order of the left half: deletion 1, 0, 0 and insertion 0, 1, 1 at none, half and all of the pixels.
    assert removal_curves(score, image, left, steps=2) == pytest.approx((0.25, 0.75))
    assert removal_curves(score, image, -left, steps=2) == pytest.approx((0.75, 0.25))


def test_times_are_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(localization_metrics.time, "perf_counter", lambda: now)
    lasting = iter([9.0, 6.0, 5.0, 6.0, 7.0])
    assert times_as_long(lambda: spend(next(lasting)), lambda: spend(2.0), repeats=4) == 2.5


# ---- the set ---------------------------------------------------------------------------------------

NAMES = CLASSES.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in the layout of Tiny-ImageNet: the objects are green, all else is red, no two are the same."""
    folder = tmp_path_factory.mktemp("source")
    names = ["n0 one", *NAMES, "n9 other"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for part, each, base in (("train-0", 4, 0), ("val", 2, 100)):
        labels = [
            label for label in range(len(names)) for _ in range(each * (1 if names[label] in NAMES else 8))
        ]
        images = []
        for number, label in enumerate(labels):
            red, green = (0, 255) if names[label] in NAMES else (255, 0)
            images.append(Image.new("RGB", (64, 64), (red, green, base + number % 100)))
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.shuffle(seed=0).to_parquet(folder / f"{part}.parquet")
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "made"
    assert make_set(source, folder, Recipe(size=96, two=0.5), val_share=0.25) == {
        "train": 60,
        "val": 20,
        "test": 40,
    }
    return folder


def test_splits_share_no_photo(source: Path) -> None:
    photos = Photos.read(str(source / "train*.parquet"))
    shares = share_out(photos, NAMES, {"train": 0.75, "val": 0.25}, seed=0)
    rows = [[*np.concatenate(share.objects), *share.backgrounds] for share in shares.values()]
    assert sorted([*rows[0], *rows[1]]) == list(range(len(photos.data)))  # each is once in one of the two
    for share, each in zip(shares.values(), (3, 1), strict=True):
        for label, own in enumerate(share.objects):
            assert [photos.names[photos.data[int(row)]["label"]] for row in own] == [NAMES[label]] * each
        assert {photos.data[int(row)]["label"] for row in share.backgrounds} <= {0, len(photos.names) - 1}


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(shape="ellipse"), Recipe(shape="ellipse", soft=4), Recipe(soft=3)]
)
def test_the_truth_is_exact(recipe: Recipe, source: Path) -> None:
    """Every pixel is green where a mask says so, and red elsewhere; the boxes fit the masks."""
    photos = Photos.read(str(source / "train*.parquet"))
    share = share_out(photos, NAMES, {"train": 1.0}, seed=0)["train"]
    numbers = []
    for seed in range(30):
        image, placed = compose(
            photos, share, (3, int(share.objects[3][0])), recipe, np.random.default_rng(seed)
        )
        pixels = np.asarray(image)
        union = np.logical_or.reduce([each.mask for each in placed])
        assert np.array_equal(pixels[..., 1] >= 128, union)
        assert placed[0].label == 3 and len({each.label for each in placed}) == len(placed)
        assert placed[0].mask.sum() >= placed[-1].mask.sum() or recipe.shape == "ellipse"
        numbers.append(len(placed))
        for each in placed:
            x, y, width, height = each.box
            inside = each.mask[y : y + height, x : x + width]
            assert inside.sum() == each.mask.sum()
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert inside.all() == (recipe.shape == "square")
    assert 0.1 < numbers.count(2) / len(numbers) < 0.5 and set(numbers) == {1, 2}


def test_what_is_written(made: Path) -> None:
    for split in ("train", "val", "test"):
        content = json.loads((made / f"{split}.json").read_text())
        assert [category["name"] for category in content["categories"]] == NAMES
        files = {str(file.relative_to(made / split)) for file in (made / split).rglob("*.jpg")}
        assert files == {image["file_name"] for image in content["images"]}
        for image in content["images"]:
            objects = [each for each in content["annotations"] if each["image_id"] == image["id"]]
            assert Path(image["file_name"]).parent.name == NAMES[objects[0]["category_id"]]
            with Image.open(made / split / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"]) == (96, 96)
                green = np.asarray(opened)[..., 1] >= 128
            union = np.zeros_like(green)
            for each in objects:
                mask = RunLengths(*each["segmentation"]["size"], each["segmentation"]["counts"]).mask()
                x, y, width, height = each["bbox"]
                assert (
                    mask[y : y + height, x : x + width].all() and mask.sum() == width * height == each["area"]
                )
                union |= mask
            assert np.array_equal(green, union)


def test_the_same_seed_gives_the_same_files(made: Path, source: Path, tmp_path: Path) -> None:
    make_set(source, tmp_path / "again", Recipe(size=96, two=0.5), val_share=0.25)
    make_set(source, tmp_path / "other", Recipe(size=96, two=0.5, seed=1), val_share=0.25)
    contents = [
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (made, tmp_path / "again", tmp_path / "other")
    ]
    assert contents[0] == contents[1]
    assert contents[0]["test.json"] != contents[2]["test.json"]
    with pytest.raises(ValueError, match="made is not empty"):
        make_set(source, made, Recipe())


# ---- the table -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "small"
    path.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(NAMES))
    save_model(model, ModelSpec("test_resnet", {}, tuple(NAMES), (3, 96, 96)), path / "best.safetensors")
    return path


def test_a_perfect_map_and_one_that_knows_no_class(
    made: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the map is the objects, images of one object are all right, and those of two half of the time."""

    def green(model: object, images: Tensor, classes: Tensor, **options: object) -> HeatMaps:
        found = (images[:, 1:2] > 0).float().expand(-1, classes.shape[1], -1, -1)
        return HeatMaps(found, torch.zeros(classes.shape))

    monkeypatch.setattr(localization, "heat_maps", green)
    val, test = (localization.read_split(made, split) for split in ("val", "test"))
    explainer = localization.Explainer(network, whole=True, device="cpu")
    one = [[image for image in images if len(image.labels) == 1] for images in (val, test)]
    row = localization.evaluate_method(explainer, "cam", *one, curve_images=4)
    perfect = ("box", "max_box_acc_v2", "pointing", "mask", "val_mean_iou")
    assert {name: row[name] for name in perfect} == dict.fromkeys(perfect, 1.0)
    assert (row["pointing_two"], row["curve_images"], row["cases"]) == (None, 4, row["images"])
    two = [[image for image in images if len(image.labels) == 2] for images in (val, test)]
    row = localization.evaluate_method(explainer, "cam", *two, curve_images=4)
    assert row["pointing"] == row["pointing_two"] == 0.5
    assert (row["max_box_acc_v2"], row["cases"]) == (1.0, 2 * row["images"])  # which takes any part


def test_rows_are_stored_once(
    made: Path,
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = ["cam", "rollout", "gradcam++"]
    rows = localization.evaluate_run(network, made, methods=methods, most=12, results=tmp_path)
    assert "small, rollout: " in capsys.readouterr().out  # which a ResNet has not
    assert [(row["method"], row["images"], row["run"]) for row in rows] == [
        ("cam", 12, "small"),
        ("gradcam++", 12, "small"),
    ]
    for row in rows:
        shares = [row[name] for name in (*tables.MAP_COLUMNS, "val_mean_iou") if row[name] is not None]
        assert all(0 <= share <= 1 for share in shares) and row["passes"] > 0
    assert rows[0]["set"]["size"] == 96
    assert {file.name for file in tmp_path.iterdir()} == {
        "localization-methods--small--cam.json",
        "localization-methods--small--gradcam-plus-plus.json",
    }

    def failing(*arguments: object, **options: object) -> Iterator[None]:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(localization, "evaluate_method", failing)
    kept = ["cam", "gradcam++"]
    assert localization.evaluate_run(network, made, methods=kept, most=12, results=tmp_path) == rows
    *_, last, _, origin = tables.heat_map_table(rows).splitlines()
    assert last.startswith("| small (") and last.count("|") == 13
    assert origin.startswith(f"{rows[0]['cases']} objects at most: ")


def test_a_part_of_the_images_is_spread_over_the_classes(made: Path) -> None:
    test = localization.read_split(made, "test")
    assert [image.labels[0] for image in localization.spread(test, 20)] == NAMES
    assert localization.spread(test, 1000) == test
