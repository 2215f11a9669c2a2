"""What tells unsure answers: the signals, the rules fitted to validation images, and the reasons."""

import math

import numpy as np
import pytest
import torch

from conformer_vision.class_means import ClassMeans
from conformer_vision.errors import UserError
from conformer_vision.inference.fit import MOST_IMAGES, OutputSample, fit_thresholds
from conformer_vision.inference.unsure import fit_rules, similarity_to_others
from conformer_vision.runtime.base import Array, Outputs
from conformer_vision.runtime.unsure import SIGNALS, Judge, energy
from conformer_vision.spec import ModelSpec
from conformer_vision.thresholds import RejectRule, SortedScores, Thresholds

CLASSES, WIDTH = 4, 6
SPEC = ModelSpec("test_resnet", {}, tuple("abcd"), (3, 32, 48))


def images(count: int, *, seed: int = 0, known: bool = True) -> tuple[Outputs, Array]:
    """Outputs for images near one of four corners, or for others in the opposite corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    corners = 4 * torch.eye(WIDTH)[:CLASSES]
    centres = corners[labels] if known else -3 * torch.ones(count, WIDTH)
    features = centres + torch.randn(count, WIDTH, generator=generator)
    conv = features @ corners.T / 4
    trans = conv + torch.randn(count, CLASSES, generator=generator) / 4
    logits = {"conv": conv, "trans": trans, "fused": (conv + trans) / 2}
    arrays = {head: values.numpy() for head, values in logits.items()}
    return Outputs(arrays, features.numpy()), labels.numpy()


def fitted(count: int = 400) -> tuple[Thresholds, ClassMeans]:
    outputs, labels = images(count)
    found = fit_thresholds(outputs, labels, spec=SPEC, temperature=1.0)
    assert found.thresholds is not None and found.class_means is not None and found.note is None
    return found.thresholds, found.class_means


def test_energy_is_the_logarithm_of_the_sum_of_exponentials() -> None:
    outputs, _ = images(5)
    expected = np.log(np.exp(outputs.logits["fused"].astype(float)).sum(axis=1))
    assert energy(outputs, None) == pytest.approx(expected)


def test_similarity_is_the_cosine_to_the_nearest_class() -> None:
    outputs, labels = images(60)
    assert outputs.features is not None
    means = np.stack([outputs.features[labels == k].mean(axis=0) for k in range(CLASSES)])
    class_means = fit_rules(*images(60), classes=CLASSES).class_means
    assert class_means is not None
    stored = class_means.means.astype(float)
    for image, found in zip(
        outputs.features.astype(float), SIGNALS["similarity"].compute(outputs, class_means), strict=True
    ):
        cosines = stored @ image / np.linalg.norm(stored, axis=1) / np.linalg.norm(image)
        assert float(found) == pytest.approx(cosines.max())
    assert stored == pytest.approx(means, abs=2e-3)


def test_an_image_is_compared_with_means_that_it_is_not_part_of() -> None:
    """By a plain loop that leaves the image out of its class; one class has a single image."""
    outputs, labels = images(21)
    labels = np.where(labels == 3, 2, labels)
    labels[0] = 3
    assert outputs.features is not None
    features = outputs.features.astype(float)
    found = similarity_to_others(features, labels, CLASSES)
    for row in range(21):
        rest = np.arange(21) != row
        best = -1.0
        for number in range(CLASSES):
            members = features[rest & (labels == number)]
            mean = members.mean(0) if len(members) else np.zeros(WIDTH)
            pair = torch.from_numpy(features[row]), torch.from_numpy(mean)
            best = max(best, float(torch.cosine_similarity(*pair, dim=0)))
        assert float(found[row]) == pytest.approx(best)


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_coverage_on_new_images(coverage: float) -> None:
    """With and without pooled features, within four standard deviations of both samples."""
    thresholds, class_means = fitted(1000)
    outputs, _ = images(1000, seed=1)
    for means in (class_means, None):
        judge = Judge(thresholds, means, coverage=coverage)
        sure = np.mean([reason is None for reason in judge(outputs)])
        assert abs(sure - coverage) < 4 * math.sqrt(2 * coverage * (1 - coverage) / 1000)
    assert set(Judge(thresholds, class_means).rule.signals) == {"energy", "similarity"}
    assert set(Judge(thresholds, None).rule.signals) == {"energy"}


def test_other_images_are_unsure_and_the_reason_is_the_lowest_signal() -> None:
    thresholds, class_means = fitted()
    other, _ = images(50, known=False)
    reasons = Judge(thresholds, class_means)(other)
    assert None not in reasons
    assert all(reason is not None and reason.startswith("unlike the training images") for reason in reasons)
    weak = Outputs({head: logits - 20 for head, logits in images(8)[0].logits.items()}, images(8)[0].features)
    assert {(reason or "").partition(";")[0] for reason in Judge(thresholds, class_means)(weak)} == {
        "low confidence"
    }


def test_heads_that_disagree_are_named() -> None:
    thresholds, _ = fitted()
    low = np.array([[-9.0, -9.1, -9.1, -9.1]], dtype=np.float32)
    rolled = np.roll(low, 1, axis=1)
    differ = Outputs({"conv": low, "trans": rolled, "fused": (low + rolled) / 2}, None)
    same = Outputs({"conv": low, "trans": low, "fused": low}, None)
    judge = Judge(thresholds, None)
    assert judge(differ) == ["low confidence; the two heads disagree"]
    assert judge(same) == ["low confidence"]
    assert judge(Outputs({"fused": low}, None)) == ["low confidence"], "a network with one head"


def test_what_is_not_a_number_is_unsure() -> None:
    thresholds, class_means = fitted()
    outputs, _ = images(3)
    assert outputs.features is not None
    outputs.features[1] = math.nan
    found = Judge(thresholds, class_means)(outputs)
    assert [reason is None for reason in found] == [True, False, True]


def test_too_few_images_and_images_that_look_alike() -> None:
    few, labels = images(49)
    found = fit_thresholds(few, labels, spec=SPEC, temperature=1.0)
    assert (found.thresholds, found.class_means) == (None, None)
    assert found.note == "49 validation images are too few to say when an answer is unsure (50 are needed)"
    flat = Outputs({"fused": np.zeros((60, CLASSES), np.float32)}, np.ones((60, WIDTH), np.float32))
    found = fit_thresholds(flat, np.arange(60) % CLASSES, spec=SPEC, temperature=1.0)
    assert found.thresholds is None and "look alike" in (found.note or "")
    unlike, labels = images(60)
    constant = Outputs(unlike.logits, np.ones((60, WIDTH), np.float32))
    found = fit_thresholds(constant, labels, spec=SPEC, temperature=1.0)
    assert found.thresholds is not None
    assert [set(rule.signals) for rule in found.thresholds.reject] == [{"energy"}]


def test_a_rule_of_a_later_version() -> None:
    rule = RejectRule({"intuition": (0.0, 1.0)}, SortedScores.of([1.0]))
    own, class_means = fitted()
    later = Thresholds((rule, *own.reject), own.sets, (32, 48))
    assert set(Judge(later, class_means).rule.signals) == {"energy", "similarity"}
    with pytest.raises(UserError, match=r"reject rules need what is unknown here \(intuition\)"):
        Judge(Thresholds((rule,), own.sets, (32, 48)), class_means)


@pytest.mark.parametrize("coverage", [0, 1, -1, 2, math.nan])
def test_coverage_that_cannot_be(coverage: float) -> None:
    thresholds, class_means = fitted()
    with pytest.raises(UserError, match=r"coverage .*: must be between 0 and 1"):
        Judge(thresholds, class_means, coverage=coverage)


def test_a_sample_is_drawn_evenly_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformer_vision.inference.fit.MOST_IMAGES", 10)
    sample = OutputSample(40)
    for start in range(0, 40, 7):
        numbers = np.arange(start, min(start + 7, 40))
        column = numbers[:, None].astype(np.float32)
        sample.add(Outputs({"fused": column}, column), numbers)
    outputs, labels = sample.join()
    assert labels.tolist() == list(range(0, 40, 4))
    assert outputs.features is not None and outputs.features[:, 0].tolist() == labels.tolist()
    stream = OutputSample(None)
    for _ in range(3):
        stream.add(Outputs({"fused": np.zeros((6, 2), np.float32)}, None), np.zeros(6, dtype=np.int64))
    assert len(stream.join()[1]) == 10 < MOST_IMAGES


def test_class_means_are_read_back_and_checked() -> None:
    _, class_means = fitted()
    assert np.array_equal(ClassMeans.decode(class_means.encode()).means, class_means.means)
    text = class_means.encode()
    for damaged in (
        "",
        "7",
        "{}",
        text.replace("[4, 6]", "[4, 7]"),
        text.replace("[4, 6]", "[-4, -6]"),
        text[:-9],
    ):
        with pytest.raises(UserError, match="class means are damaged"):
            ClassMeans.decode(damaged)
    with pytest.raises(UserError, match="not finite"):
        ClassMeans.decode(ClassMeans(np.full((2, 2), math.nan, np.float16)).encode())
