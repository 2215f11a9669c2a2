"""Boxes and masks from heat maps: connected parts, COCO's encoding, and a threshold that is fitted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from conformer_vision.errors import UserError
from conformer_vision.explain import METHODS, Explainer, HeatMapOptions, Localization, Localizer, localize
from conformer_vision.explain.coco import PixelBox, RunLengths, TrueBoxes, match_files, read_true_boxes
from conformer_vision.explain.explainer import ClassAnswer, Explanation
from conformer_vision.explain.localization import Region, default_method, largest_part
from conformer_vision.explain.localization_folder import check_new, write_folder
from conformer_vision.files import make_folder
from conformer_vision.geometry import Box
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

# ---- run lengths -----------------------------------------------------------------------------------


def decoded(size: list[int], text: str) -> NDArray[np.bool_]:
    """COCO's decoding, after rleFrString and rleDecode of pycocotools' maskApi.c."""
    counts: list[int] = []
    p = 0
    while p < len(text):
        x = k = 0
        more = True
        while more:
            c = ord(text[p]) - 48
            x |= (c & 0x1F) << (5 * k)
            more = bool(c & 0x20)
            p += 1
            k += 1
            if not more and c & 0x10:
                x |= -1 << (5 * k)
        if len(counts) > 2:
            x += counts[-2]
        counts.append(x)
    flat: list[bool] = []
    value = False
    for count in counts:
        flat += [value] * count
        value = not value
    height, width = size
    return np.array(flat).reshape(width, height).T


def masks() -> Iterator[NDArray[np.bool_]]:
    draw = np.random.default_rng(0)
    yield from (np.zeros((3, 5), bool), np.ones((3, 5), bool), np.ones((1, 1), bool))
    for size in ((1, 7), (7, 1), (13, 8), (40, 60)):
        for share in (0.02, 0.5, 0.98):
            yield draw.random(size) < share
    long = np.zeros((900, 700), bool)  # runs of many characters, and differences below zero
    long[100:800, 50] = long[3, 400:] = long[:, 600:] = True
    yield long


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: f"{mask.shape}")
def test_run_lengths_are_those_of_coco(mask: NDArray[np.bool_]) -> None:
    encoded = RunLengths.of(mask)
    value = encoded.to_coco()
    assert value["size"] == list(mask.shape)
    assert np.array_equal(decoded(size=value["size"], text=value["counts"]), mask)
    assert np.array_equal(encoded.mask(), mask)


def test_the_text_of_run_lengths_by_hand() -> None:
    assert RunLengths.of(np.ones((3, 3), bool)).counts == "09"
    # 16 outside, 1 inside, 33 outside, 2 - 1 inside: 16 has the sign bit, so a second character follows.
    flat = np.zeros(52, bool)
    flat[16] = flat[50:] = True
    assert RunLengths.of(flat.reshape(52, 1)).counts == "`01Q11"


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: f"{mask.shape}")
def test_run_lengths_against_pycocotools(mask: NDArray[np.bool_]) -> None:
    library = pytest.importorskip("pycocotools.mask")
    value = RunLengths.of(mask).to_coco()
    assert np.array_equal(library.decode(value), mask)
    assert library.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() == value["counts"]


# ---- parts -----------------------------------------------------------------------------------------


def test_the_largest_part() -> None:
    evidence = np.zeros((8, 10), np.float32)
    evidence[1:3, 1:3] = 1.0  # strong, but small
    evidence[4:7, 5:9] = 0.5
    evidence[3, 4] = 0.5  # touches by a corner
    part = largest_part(evidence, 0.5)
    assert part is not None
    assert (part.box, part.area) == (PixelBox(4, 3, 5, 4), 13)
    assert np.array_equal(part.mask, evidence == 0.5)
    higher = largest_part(evidence, 0.51)
    assert higher is not None and higher.box == PixelBox(1, 1, 2, 2)
    assert largest_part(np.zeros((8, 10), np.float32), 0.2) is None


def test_iou() -> None:
    box = PixelBox(0, 0, 4, 2)
    assert box.iou(box) == 1
    assert box.iou(PixelBox(2, 1, 4, 2)) == pytest.approx(2 / 14)
    assert box.iou(PixelBox(4, 0, 4, 2)) == 0


# ---- localizing ------------------------------------------------------------------------------------


class Drawn:
    """Stands in for `Explainer`: the evidence falls from 1 in the middle of a box by 0.1 per pixel."""

    def explain(self, inputs: Any, *, classes: Any, **options: object) -> Iterator[Explanation]:
        for name in [inputs] if isinstance(inputs, str) else inputs:
            if name == "broken.png":
                yield Explanation(name, error="broken.png: no image")
                continue
            rows, columns = np.mgrid[:40, :60]
            away = np.maximum(abs(rows - 20), abs(columns - 30))
            maps = torch.from_numpy(1 - 0.1 * away).float().clamp(min=0)
            answers = tuple(ClassAnswer(each, n, {"fused": 0.5}) for n, each in enumerate(classes))
            yield Explanation(
                name,
                image=Image.new("RGB", (60, 40)),
                seen=Box(0, 0, 60, 40),
                classes=answers,
                maps=maps.expand(len(answers), -1, -1),
                method="cam",
            )


def test_a_threshold_is_fitted() -> None:
    """The boxes are what reaches 0.6 (9 pixels wide), and once what reaches 0.8, with another nearby."""
    localizer = Localizer(Drawn(), HeatMapOptions(), 0.5)  # type: ignore[arg-type]
    wide, narrow = PixelBox(26, 16, 9, 9), PixelBox(28, 18, 5, 5)
    truths = [
        ("a.png", TrueBoxes("a.png", (60, 40), {"cat": [wide], "dog": [PixelBox(0, 0, 5, 5), wide]})),
        ("b.png", TrueBoxes("b.png", None, {"cat": [narrow]})),
        ("broken.png", TrueBoxes("broken.png", None, {"cat": [narrow]})),
    ]
    fitted, fit = localizer.fit(truths)
    assert 0.5 < fit.threshold <= 0.6
    assert fit.mean_iou == pytest.approx((1 + 1 + 25 / 81) / 3)
    assert (fit.boxes, fit.images, fit.skipped) == (3, 2, ("broken.png: no image",))
    (found,) = fitted.localize("c.png", classes=["cat"])
    assert found.regions[0].box == wide and found.regions[0].area == 81
    with pytest.raises(UserError, match="60x40 pixels, but is labelled as 40x60"):
        localizer.fit([("a.png", TrueBoxes("a.png", (40, 60), {"cat": [wide]}))])
    with pytest.raises(UserError, match=r"none of the labelled images can be read: broken\.png"):
        localizer.fit(truths[2:])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network whose first two classes have one label."""
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)
    spec = ModelSpec(
        "test_resnet", {}, ("n1", "n2", "n3"), (3, 64, 64), descriptions=("crane", "crane", "ostrich")
    )
    save_model(network, spec, path)
    return path


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    draw = np.random.default_rng(1)
    return Image.fromarray(draw.integers(0, 255, (6, 9, 3), dtype=np.uint8)).resize((90, 60))


def flooded(inside: NDArray[np.bool_]) -> set[tuple[int, int]]:
    """The largest part, found pixel by pixel."""
    left = set(zip(*map(np.ndarray.tolist, inside.nonzero()), strict=True))
    largest: set[tuple[int, int]] = set()
    while left:
        stack, part = [left.pop()], set()
        while stack:
            row, column = stack.pop()
            part.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            stack += near
        largest = max(largest, part, key=len)
    return largest


@pytest.mark.parametrize("method", ["cam", "gradcam", "occlusion"])
def test_regions_are_cut_from_the_evidence(method: str, model: Path, photo: Image.Image) -> None:
    result = localize(model, photo, classes=["n1", "n2", "n3"], method=method, threshold=0.6, device="cpu")
    assert (result.threshold, result.fit) == (0.6, None)
    (found,) = result.images
    assert (found.width, found.height, found.error) == (90, 60, None)
    assert {region.label for region in found.regions} <= {"crane", "ostrich"}
    explainer = Explainer(model, device="cpu", whole=True)
    (whole,) = explainer.explain(photo, classes=["ostrich"], options=HeatMapOptions(method))
    expected = flooded(whole.evidence("ostrich") >= 0.6)
    (region,) = (region for region in found.regions if region.number == 2)
    assert region.score == pytest.approx(whole.classes[0].probabilities["fused"])
    assert region.area == len(expected)
    assert set(zip(*map(np.ndarray.tolist, region.mask.mask().nonzero()), strict=True)) == expected
    rows, columns = zip(*expected, strict=True)
    top, left = min(rows), min(columns)
    assert region.box == PixelBox(left, top, max(columns) + 1 - left, max(rows) + 1 - top)


def test_classes_that_share_a_label(model: Path, photo: Image.Image) -> None:
    """Each has its own map, not that of the first."""
    result = localize(model, photo, top_k=3, threshold=0.6, method="occlusion", device="cpu")
    by_number = {region.number: region.mask.counts for region in result.images[0].regions}
    for number, name in enumerate(("n1", "n2")):
        alone = localize(model, photo, classes=[name], threshold=0.6, method="occlusion", device="cpu")
        assert by_number[number] == alone.images[0].regions[0].mask.counts
    assert by_number[0] != by_number[1]


@pytest.mark.parametrize(
    ("name", "arguments", "method"),
    [
        ("conformer_nano_patch8_64", {}, "gradient-rollout"),
        ("test_resnet", {}, "cam"),
        ("test_vit", {}, "gradient-rollout"),
        ("test_vit", {"global_pool": "avg", "class_token": False}, "occlusion"),
    ],
)
def test_the_method_by_default(name: str, arguments: dict[str, Any], method: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = (3, 160, 160) if name == "test_vit" else (3, 64, 64)
    network = timm.create_model(name, num_classes=2, **arguments)
    save_model(network, ModelSpec(name, arguments, ("a", "b"), size), path)
    assert default_method(Explainer(path, device="cpu", whole=True)) == method


def test_what_localize_takes_by_default(model: Path, photo: Image.Image) -> None:
    found = localize(model, photo, device="cpu")
    assert found == localize(model, photo, method="cam", threshold=METHODS["cam"].threshold, device="cpu")


def test_mistakes(model: Path, photo: Image.Image, tmp_path: Path) -> None:
    for threshold in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            localize(model, photo, threshold=threshold, device="cpu")
    with pytest.raises(UserError, match=r"leave out threshold=0\.5"):
        localize(model, photo, threshold=0.5, truth=tmp_path / "boxes.json", device="cpu")
    with pytest.raises(UserError, match="has no class 'emu'"):
        localize(model, photo, classes=["emu"], device="cpu")
    with pytest.raises(UserError, match="needs the two branches of a Conformer"):
        localize(model, photo, method="attention-cam", device="cpu")


def test_an_output_that_is_not_finite(tmp_path: Path, photo: Image.Image) -> None:
    network = timm.create_model("test_resnet", num_classes=2)
    network.get_classifier().weight.data.fill_(float("nan"))
    save_model(network, ModelSpec("test_resnet", {}, ("a", "b"), (3, 64, 64)), tmp_path / "a.safetensors")
    (found,) = localize(tmp_path / "a.safetensors", photo, method="occlusion", device="cpu").images
    assert found.error is not None and "not finite" in found.error and not found.regions


# ---- labelled boxes --------------------------------------------------------------------------------


def coco(**changes: Any) -> dict[str, Any]:
    content = {
        "images": [
            {"id": 7, "file_name": "a/1.png", "width": 64, "height": 48},
            {"id": 8, "file_name": "2.png"},
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2.5, 3, 4]}],
    }
    return content | changes


def test_reading_labelled_boxes(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(coco()))
    assert read_true_boxes(path) == [TrueBoxes("a/1.png", (64, 48), {"cat": [PixelBox(1, 2.5, 3, 4)]})]


def labelled(**annotation: Any) -> str:
    usual = {"image_id": 7, "category_id": 3, "bbox": [1, 1, 1, 1]}
    return json.dumps(coco(annotations=[usual | annotation]))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("no json", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a COCO file"),
        ("{}", "'images' is missing"),
        (json.dumps(coco(annotations=[])), "has no boxes"),
        (labelled(image_id=9), "9 is missing"),
        (labelled(category_id=4), "4 is missing"),
        (labelled(image_id=[7]), "is not a COCO file"),
        (labelled(bbox=[1, 1, 0, 1]), "[1, 1, 0, 1]"),
        (labelled(bbox=[1, 1, 1]), "is not a COCO file"),
        (labelled(bbox=[1, 1, 1, float("nan")]), "is not [x, y, width, height]"),
        (labelled(bbox=None), "is not a COCO file"),
        (json.dumps(coco(images=[{"id": 7, "file_name": ".."}])), "is not a name"),
        (json.dumps(coco(categories=[{"id": 3, "name": None}])), "is not a name"),
    ],
    ids=range(14),
)
def test_a_file_that_holds_no_labelled_boxes(content: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_true_boxes(path)
    assert str(path) in str(caught.value) and line in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        read_true_boxes(tmp_path / "none.json")


def test_labelled_images_are_found_by_their_name() -> None:
    paths = ["in/a/1.png", "in/b/1.png", "in/b/11.png", "in/b/2.png"]
    first, second = TrueBoxes("a/1.png", None, {}), TrueBoxes("2.png", None, {})
    assert match_files([first, second], paths) == [("in/a/1.png", first), ("in/b/2.png", second)]
    assert match_files([TrueBoxes("3.png", None, {}), second], paths) == [("in/b/2.png", second)]
    with pytest.raises(UserError, match=r"1\.png of the labelled images may be in/a/1\.png, in/b/1\.png"):
        match_files([TrueBoxes("1.png", None, {})], paths)
    with pytest.raises(UserError, match=r"none of the labelled images is given, such as x/1\.png"):
        match_files([TrueBoxes("x/1.png", None, {})], paths)


# ---- the folder ------------------------------------------------------------------------------------

SPEC = ModelSpec("test_resnet", {}, ("cat/dog", "../猫", "*" * 300))


def region(number: int, mask: NDArray[np.bool_]) -> Region:
    part = largest_part(mask.astype(np.float32), 0.5)
    assert part is not None
    return Region(SPEC.labels[number], number, 0.25, part.box, part.area, RunLengths.of(part.mask))


def test_the_folder_of_hostile_names(tmp_path: Path) -> None:
    """One stem twice, names of classes that are paths, names that are no file's and no UTF-8."""
    mask = np.zeros((6, 8), bool)
    mask[2:5, 1:4] = True
    files = [
        tmp_path / "in" / "a" / "1.png",
        tmp_path / "in" / "b" / "1.jpg",
        tmp_path / "in" / "b" / "1.png",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    names = [*map(str, files), "image 4", "../\udcff\n.png"]
    found = [Localization(name, 8, 6, tuple(region(n, mask) for n in range(3))) for name in names]
    found.insert(1, Localization("broken", error="broken: no image"))
    found.append(Localization("nothing there", 8, 6))
    out = make_folder(tmp_path / "out" / "deep")
    path = write_folder(found, out, SPEC, method="cam", threshold=0.3)
    content = json.loads(path.read_text())
    shown = [image["file_name"] for image in content["images"]]
    assert shown == ["a/1.png", "b/1.jpg", "b/1.png", "image 4", "../\udcff\n.png", "nothing there"]
    assert content["categories"] == [{"id": n, "name": name} for n, name in enumerate(SPEC.labels)]
    assert [each["image_id"] for each in content["annotations"]] == [n for n in range(1, 6) for _ in range(3)]
    assert len({each["mask"] for each in content["annotations"]}) == 15
    for each in content["annotations"]:
        assert (each["bbox"], each["area"], each["score"], each["iscrowd"]) == ([1, 2, 3, 3], 9, 0.25, 0)
        segmentation = each["segmentation"]
        assert np.array_equal(decoded(segmentation["size"], segmentation["counts"]), mask)
        with Image.open(out / each["mask"]) as image:
            assert np.array_equal(np.asarray(image), mask)
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert written == {"localization.json", *(each["mask"] for each in content["annotations"])}


def test_the_file_is_read_by_pycocotools(tmp_path: Path) -> None:
    library = pytest.importorskip("pycocotools.coco")
    mask = np.zeros((6, 8), bool)
    mask[2:5, 1:4] = True
    found = [Localization("one", 8, 6, (region(1, mask),))]
    loaded = library.COCO(
        str(write_folder(found, make_folder(tmp_path / "out"), SPEC, method="cam", threshold=0.3))
    )
    (annotation,) = loaded.loadAnns(loaded.getAnnIds(catIds=[1]))
    assert np.array_equal(loaded.annToMask(annotation), mask)


def test_the_folder_must_be_new(tmp_path: Path) -> None:
    check_new(tmp_path / "none")
    check_new(make_folder(tmp_path / "empty"))
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"empty is not empty; give a new folder"):
        check_new(tmp_path / "empty")
    with pytest.raises(UserError, match=r"cannot write into .*notes\.txt"):
        check_new(tmp_path / "empty" / "notes.txt")


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk gives one line, and no file without its end."""
    mask = np.ones((6, 8), bool)
    out = make_folder(tmp_path / "out")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*000001-one-.*\.png: No space left"):
        write_folder([Localization("one", 8, 6, (region(1, mask),))], out, SPEC, method="cam", threshold=0.3)
    assert not [file for file in out.rglob("*") if file.is_file()]
