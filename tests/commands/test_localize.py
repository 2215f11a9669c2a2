"""The subcommand localize: what it prints and writes, its exit status, labelled boxes, Ctrl-C."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from command_line import one_line, run
from conformer_vision.errors import Terminated
from conformer_vision.explain import METHODS, Explainer, Explanation, HeatMapOptions, Localizer
from conformer_vision.runtime.views import Views
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

CLASSES = ("猫", "a/b")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=len(CLASSES))
    save_model(network, ModelSpec("test_resnet", {}, CLASSES, (3, 64, 64)), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images in two folders with one name twice, and one that is broken."""
    root = tmp_path_factory.mktemp("images of a study")
    draw = np.random.default_rng(0)
    for name in ("one/1.png", "one/naïve 🐟.png", "two/1.png", "two/2.png"):
        (root / name).parent.mkdir(exist_ok=True)
        pixels = Image.fromarray(draw.integers(0, 255, (5, 8, 3), dtype=np.uint8))
        pixels.resize((80, 50)).save(root / name)
    (root / "two" / "3.png").write_bytes(b"no image")
    return root


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "localization.json").read_text())
    return found


def test_what_is_printed_and_written(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--method=occlusion", "--classes", *CLASSES, "--threshold=0.5", "--device=cpu")
    done = run("localize", model, folder, folder / "one" / "1.png", "--out", out, *options)
    assert done.status == 1
    skipped, count = done.err.splitlines()
    assert skipped.startswith(f"skipped: {folder}/two/3.png: ")
    assert count == "1 of the images could not be read"
    *lines, last = done.out.splitlines()
    assert last == f"boxes and masks: {out}/localization.json"
    found = content(out)
    shown = [image["file_name"] for image in found["images"]]
    assert shown == ["one/1.png", "one/naïve 🐟.png", "two/1.png", "two/2.png"]  # the one given twice is once
    assert found["info"]["method"] == "occlusion" and found["info"]["threshold"] == 0.5
    for image, line in zip(found["images"], lines, strict=True):
        own = [each for each in found["annotations"] if each["image_id"] == image["id"]]
        texts = []
        for each in own:
            x, y, width, height = each["bbox"]
            texts.append(f"{CLASSES[each['category_id']]} {each['score']:.1%} at {x},{y} {width}x{height}")
        assert line == f"{folder}/{image['file_name']}: {', '.join(texts) or 'no evidence'}"
    assert sorted(str(file.relative_to(out)) for file in out.glob("masks/*")) == sorted(
        each["mask"] for each in found["annotations"]
    )


def test_the_most_probable_classes(model: Path, folder: Path, tmp_path: Path) -> None:
    image = folder / "one" / "1.png"
    run("localize", model, image, "--out", tmp_path / "out", "--method=gradcam", "--top_k=2", "--device=cpu")
    (explanation,) = Explainer(model, device="cpu", whole=True).explain(image, top_k=2)
    scores = [(each["category_id"], each["score"]) for each in content(tmp_path / "out")["annotations"]]
    best = [(answer.number, answer.probabilities["fused"]) for answer in explanation.classes]
    assert scores and all(score in [pytest.approx(each) for each in best] for score in scores)


def test_the_bundled_weights_localize_by_gradient_rollout(folder: Path, tmp_path: Path) -> None:
    """Another method and another threshold than those of a ResNet."""
    run("localize", folder / "one" / "1.png", "--out", tmp_path / "out", "--device=cpu")
    about = content(tmp_path / "out")["info"]
    assert about["method"] == "gradient-rollout"
    assert about["threshold"] == METHODS["gradient-rollout"].threshold != METHODS["cam"].threshold


def test_options_reach_the_explainer(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, tuple[int, ...], dict[str, object]]] = []
    explain = Explainer.explain

    def recorded(self: Explainer, inputs: Any, **options: Any) -> Iterator[Explanation]:
        seen.append((self.whole, self.spec.input_size, options))
        return explain(self, inputs, **options)

    monkeypatch.setattr(Explainer, "explain", recorded)
    image = folder / "one" / "1.png"
    run("localize", model, image, "--out", tmp_path / "1", "--device=cpu")
    usual = {"classes": None, "top_k": 1, "options": HeatMapOptions("cam")}
    assert seen.pop() == (True, (3, 64, 64), usual)
    options = (
        "--crop",
        "--scales",
        "1",
        "1.5",
        "--flip",
        "--method=gradcam",
        "--input_size=96",
        "--device=cpu",
    )
    run("localize", model, image, "--out", tmp_path / "2", *options)
    changed = HeatMapOptions("gradcam", Views((1.0, 1.5), flip=True))
    assert seen.pop() == (False, (3, 96, 96), usual | {"options": changed})
    options = ("--method=attention-cam", "--blocks", "11", "12", "--device=cpu")
    run("localize", image, "--out", tmp_path / "3", *options)
    assert seen.pop()[2] == usual | {"options": HeatMapOptions("attention-cam", blocks=(11, 12))}


def test_a_threshold_is_fitted_on_labelled_boxes(model: Path, folder: Path, tmp_path: Path) -> None:
    """Boxes that were found at a threshold give that threshold back, or one with the same boxes."""
    options = ("--method=occlusion", "--classes", *CLASSES, "--device=cpu")
    run("localize", model, folder, "--out", tmp_path / "first", *options, "--threshold=0.5")
    first = content(tmp_path / "first")
    truth = tmp_path / "first" / "localization.json"
    done = run("localize", model, folder, "--out", tmp_path / "second", *options, "--truth", truth)
    assert done.status == 1
    second = content(tmp_path / "second")
    fitted = second["info"]["threshold"]
    boxes = len(first["annotations"])
    said = f"threshold {fitted:g}, fitted on {boxes} classes in 4 images: mean IoU 100.0%"
    assert done.out.splitlines()[0] == said
    assert [each["bbox"] for each in second["annotations"]] == [each["bbox"] for each in first["annotations"]]
    ambiguous = json.loads(truth.read_text())
    ambiguous["images"][0]["file_name"] = "1.png"
    (tmp_path / "boxes.json").write_text(json.dumps(ambiguous))
    line = one_line(
        run("localize", model, folder, "--out", tmp_path / "x", "--truth", tmp_path / "boxes.json")
    )
    assert "1.png of the labelled images may be" in line
    assert not (tmp_path / "x").exists()


def test_mistakes_leave_nothing(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    image = folder / "one" / "1.png"
    for options, words in (
        (["--classes", "dog"], "has no class 'dog'"),
        (["--method=camm"], "did you mean cam?"),
        (["--method=rollout"], "has no class token"),
        (["--threshold=2"], "threshold 2"),
        (["--threshold=0.3", "--truth=boxes.json"], "leave out --threshold 0.3"),
        (["--truth", tmp_path / "boxes.json"], "boxes.json"),
    ):
        assert words in one_line(run("localize", model, image, "--out", out, *options, "--device=cpu"))
        assert not out.exists(), options
    out.mkdir()
    (out / "mine.txt").touch()
    assert "out is not empty" in one_line(run("localize", model, image, "--out", out, "--device=cpu"))
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("interrupt", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_what_is_done_is_kept(
    interrupt: type[BaseException],
    status: int,
    model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    localize = Localizer.localize

    def interrupted(self: Localizer, *arguments: Any, **options: Any) -> Any:
        found = localize(self, *arguments, **options)
        yield next(found)
        yield next(found)
        raise interrupt

    monkeypatch.setattr(Localizer, "localize", interrupted)
    done = run("localize", model, folder, "--out", tmp_path / "out", "--method=occlusion", "--device=cpu")
    assert done.status == status
    assert done.err == "stopped after 2 of 5 images\n"
    assert len(content(tmp_path / "out")["images"]) == 2


def test_the_bundled_weights(images: Path, tmp_path: Path) -> None:
    done = run("localize", images, "--out", tmp_path / "out", "--method=attention-cam", "--device=cpu")
    assert done.status == 1  # one is broken
    assert done.err.startswith("using the bundled weights ")
    assert len(content(tmp_path / "out")["images"]) == 2
