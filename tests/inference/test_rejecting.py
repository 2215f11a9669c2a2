"""Predicting with thresholds: what is unsure, sets of classes, weights files and exports that keep them."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from conformer_vision import export
from conformer_vision.class_means import ClassMeans
from conformer_vision.errors import UserError
from conformer_vision.inference import Prediction, Predictor
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.models.variants import SHIPPED
from conformer_vision.runs import find_model
from conformer_vision.runtime.conformal import sets
from conformer_vision.runtime.decisions import head_probabilities
from conformer_vision.runtime.views import Views
from conformer_vision.weights import Calibrated, load_model, read_class_means, save_calibration
from exports import make_run, shared_graphs, with_exports
from rejecting import calibrated, noise


@pytest.fixture(scope="module")
def weights(conformer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(conformer_run, tmp_path_factory.mktemp("calibrated"))


def unsure(predictions: Iterable[Prediction]) -> list[str | None]:
    return [prediction.unsure for prediction in predictions]


def test_a_copied_file_says_unsure_and_its_weights_are_the_same(conformer_run: Path, weights: Path) -> None:
    before, after = load_file(conformer_run / "best.safetensors"), load_file(weights)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    black, *others = Predictor(weights, device="cpu")([Image.new("RGB", (40, 40)), *noise(100)])
    assert black.unsure is not None and black.unsure.startswith(("unlike", "low"))
    assert black.labels and black.probabilities, "the answer itself stays"
    assert sum(reason is not None for reason in unsure(others)) <= 5
    assert unsure(Predictor(conformer_run, device="cpu")(Image.new("RGB", (40, 40)))) == [None]


def test_no_reject_and_another_coverage(weights: Path) -> None:
    images = noise(60, seed=1)
    own = Predictor(weights, device="cpu")(images)
    bare = Predictor(weights, device="cpu", reject=False)(images)
    assert unsure(bare) == [None] * 60
    assert [replace(each, unsure=None) for each in own] == bare
    half = Predictor(weights, device="cpu", coverage=0.5)(images)
    assert 15 < sum(reason is not None for reason in unsure(half)) < 45
    with pytest.raises(UserError, match=r"coverage=0.5 is for rejecting answers, which is turned off"):
        Predictor(weights, device="cpu", coverage=0.5, reject=False)
    for coverage in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match="between 0 and 1"):
            Predictor(weights, device="cpu", coverage=coverage)


def test_batches_and_threads_change_nothing(weights: Path) -> None:
    images = noise(12, seed=2)
    alone = unsure(Predictor(weights, device="cpu", batch_size=1, coverage=0.6)(images))
    together = Predictor(weights, device="cpu", batch_size=5, coverage=0.6)
    assert unsure(together(images)) == alone
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: unsure(together(images)), range(3))) == [alone] * 3


def test_sets_of_classes(weights: Path) -> None:
    predictor = Predictor(weights, device="cpu", conformal=0.3)
    trained = TrainedModel(weights, device="cpu")
    images = noise(20, seed=3)
    found = predictor(images, top_k=1)
    assert trained.spec.thresholds is not None
    batch = np.stack([trained.transform(image) for image in images])
    probabilities = head_probabilities(trained.outputs(batch).logits, trained.spec)["fused"]
    members = sets(probabilities, trained.spec.thresholds.sets, error_rate=0.3)
    for answer, row in zip(found, members, strict=True):
        expected = {name for name, member in zip(trained.spec.labels, row.tolist(), strict=True) if member}
        assert answer.conformal_set is not None and set(answer.conformal_set) == expected
        assert answer.labels == answer.conformal_set, "all classes of the set are named"
    assert {answer.conformal_set for answer in Predictor(weights, device="cpu")(images[:2])} == {None}


def test_sets_that_would_not_hold(weights: Path, conformer_run: Path) -> None:
    for rate in (0, 1, -1, math.nan):
        with pytest.raises(UserError, match=r"conformal .*: must be between 0 and 1, both excluded"):
            Predictor(weights, device="cpu", conformal=rate)
    for options, message in (
        ({"conformal": 0.001}, "conformal 0.001: 100 validation images tell no error rate below 0.01"),
        (
            {"conformal": 0.1, "tta": "flip"},
            "conformal=0.1 holds for a single look at each image; leave tta out",
        ),
        (
            {"conformal": 0.1, "input_size": 48},
            "conformal=0.1 holds for the input size 32x32; leave input_size out",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Predictor(weights, device="cpu", **options)  # type: ignore[arg-type]
    for options in ({"conformal": 0.1}, {"coverage": 0.9}):
        with pytest.raises(UserError, match=r"has no thresholds; .*write_report fits those of a run"):
            Predictor(conformer_run, device="cpu", **options)  # type: ignore[arg-type]


def test_notes_of_what_the_thresholds_do_not_hold_for(weights: Path) -> None:
    assert Predictor(weights, device="cpu").notes == []
    (line,) = Predictor(weights, device="cpu", input_size=48).notes
    assert line == "what is unsure was fitted at 32x32 pixels; at another size it is less reliable"


@with_exports
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_rejects_by_its_logits(format: str, tmp_path: Path) -> None:  # noqa: A002
    """It has a threshold of its own for what it can compute, and the same sets."""
    pytest.importorskip("onnxruntime" if format == "onnx" else "openvino")
    weights = calibrated(make_run(tmp_path / "run"), tmp_path)  # the network of `exported`
    with shared_graphs():
        file = tmp_path / ("m.onnx" if format == "onnx" else "m.xml")
        exported = export(weights, format=format, output=file)
    images = [Image.new("RGB", (40, 40)), *noise(40, seed=4)]
    found = Predictor(exported.path, device="cpu", coverage=0.7, conformal=0.2)(images)
    trained = TrainedModel(weights, device="cpu")
    assert trained.spec.thresholds is not None
    trained.runtime.class_means = None
    judge = trained.judge(coverage=0.7)
    assert judge is not None
    expected = judge(trained.outputs(np.stack([trained.transform(image) for image in images])))
    assert unsure(found) == expected and None in expected and len(set(expected)) > 1
    own = Predictor(weights, device="cpu", conformal=0.2)(images)
    assert [each.conformal_set for each in found] == [each.conformal_set for each in own]


def test_a_network_with_one_head(resnet_run: Path, tmp_path: Path) -> None:
    path = calibrated(resnet_run, tmp_path)
    spec = load_model(path)[1]
    assert spec.thresholds is not None
    assert [set(rule.signals) for rule in spec.thresholds.reject] == [{"energy", "similarity"}, {"energy"}]
    black, *others = Predictor(path, device="cpu")([Image.new("RGB", (40, 40)), *noise(50, seed=5)])
    assert black.unsure in ("unlike the training images", "low confidence")
    assert sum(reason is not None for reason in unsure(others)) <= 10


def test_class_means_that_do_not_belong(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(weights.read_bytes())
    spec = load_model(path)[1]
    save_calibration(path, Calibrated(1.0, spec.thresholds, ClassMeans(np.zeros((3, 8), np.float16))))
    with pytest.raises(UserError, match=r"other.safetensors has 3 class means for 7 classes; copy it again"):
        Predictor(path, device="cpu")
    save_calibration(path, Calibrated(1.0, spec.thresholds))
    assert read_class_means(find_model(path)) is None
    assert None in unsure(Predictor(path, device="cpu")(noise(5))), "it falls back on the logits"
    save_calibration(path, Calibrated(1.0))
    assert load_model(path)[1].thresholds is None


def test_averaged_views_are_judged_too(weights: Path) -> None:
    found = Predictor(weights, device="cpu", tta=Views(flip=True))(Image.new("RGB", (40, 40)))
    assert found[0].unsure is not None


def test_the_bundled_weights_have_thresholds() -> None:
    """They know a cup of coffee, and say that they do not know a wall (docs/unsure.md)."""
    spec = load_model(SHIPPED)[1]
    means = read_class_means(find_model(SHIPPED))
    assert spec.thresholds is not None and means is not None
    assert spec.thresholds.input_size == spec.input_size[1:] == (72, 72)
    assert {rule.scores.images for rule in spec.thresholds.reject} == {500}
    assert means.means.shape == (20, 544)
    coffee, wall = Predictor(device="cpu")([Image.fromarray(data.coffee()), Image.fromarray(data.brick())])
    assert (coffee.labels[0], coffee.unsure) == ("espresso", None)
    assert wall.unsure == "unlike the training images; the two heads disagree"
