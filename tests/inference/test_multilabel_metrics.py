"""Figures, thresholds and calibration of several labels per image, against the libraries and by hand."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from sklearn import metrics as sklearn
from sklearn.model_selection import KFold
from torchmetrics.functional import classification as torchmetrics

from conformer_vision.data import ImageSource
from conformer_vision.errors import UserError
from conformer_vision.inference import intervals
from conformer_vision.inference.answers import Collector, MultilabelAnswers, at_temperature, join
from conformer_vision.inference.calibration import calibrate, fit_temperature
from conformer_vision.inference.class_thresholds import (
    at_fitted_thresholds,
    best_threshold,
    fit_class_thresholds,
    unfitted_note,
)
from conformer_vision.inference.heads import OneLabel, SeveralLabels
from conformer_vision.inference.intervals import UNDEFINED, Figure, Resamples, percentiles
from conformer_vision.inference.multilabel_metrics import (
    MULTILABEL_CLASS_METRICS,
    MULTILABEL_METRICS,
    MultilabelFigures,
    multilabel_figures,
)
from conformer_vision.spec import ModelSpec
from conformer_vision.thresholds import ClassThresholds

Array = np.ndarray[Any, Any]


class Numbered(ImageSource):
    """A source that only names its images, and may group them."""

    def __init__(self, truth: Array, groups: list[str] | None) -> None:
        labels = [tuple(np.flatnonzero(row).tolist()) for row in truth]
        super().__init__(names(truth.shape[1]), labels, multilabel=True)
        self.groups = groups

    def image(self, index: int, need: Any = None) -> Image.Image:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return f"{index}.png"


def names(k: int) -> list[str]:
    return [f"class {i}" for i in range(k)]


def make(n: int, k: int, *, seed: int = 0, share: float = 0.3) -> tuple[Array, Array]:
    """Logits and truth of n images, that agree more or less."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, k)) < share
    return rng.normal(size=(n, k)) + 1.5 * truth - 0.8, truth


def answers_of(
    logits: Array,
    truth: Array,
    *,
    thresholds: Sequence[float] | None = None,
    groups: list[str] | None = None,
    temperature: float = 1.0,
) -> MultilabelAnswers:
    """The answers of one head, collected in two batches."""
    kind = SeveralLabels(thresholds or [0.5] * truth.shape[1], temperature=temperature)
    collector = Collector(len(truth), kind=kind, classes=truth.shape[1], temperature=temperature)
    for part in np.array_split(np.arange(len(truth)), min(2, len(truth))):
        places = torch.from_numpy(part)
        given = {"fused": torch.tensor(logits[part], dtype=torch.float32)}
        collector.add(given, torch.from_numpy(truth[part]).float(), places, places)
    return collector.finish(Numbered(truth, groups), broken=[])


def figures_of(answers: MultilabelAnswers) -> MultilabelFigures:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing reaches the console
        return multilabel_figures(answers, names(answers.labels.shape[1]))["fused"]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("thresholds", [None, [0.2, 0.35, 0.5, 0.65, 0.8, 0.9]])
def test_every_figure_is_that_of_the_libraries(temperature: float, thresholds: list[float] | None) -> None:
    """Also with an image without labels, and with a class that is never predicted."""
    logits, truth = make(300, 6)
    truth[:5] = False
    logits[:, 2] -= 9
    answers = answers_of(logits, truth, thresholds=thresholds, temperature=temperature)
    p = torch.tensor(logits / temperature).sigmoid().numpy()
    said = p >= np.array(thresholds or [0.5] * 6)
    figures = figures_of(answers)
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(truth, said, zero_division=0)
    overall = sklearn.precision_recall_fscore_support(truth, said, average="micro")
    cp, cr = precision.mean(), recall.mean()
    wanted = {
        "map": sklearn.average_precision_score(truth, p, average="macro"),
        "auroc": sklearn.roc_auc_score(truth, p, average="macro"),
        "class_precision": cp,
        "class_recall": cr,
        "class_f1": 2 * cp * cr / (cp + cr),
        **dict(zip(("overall_precision", "overall_recall", "overall_f1"), overall, strict=False)),
        "brier": float(((p - truth) ** 2).mean()),
        "log_loss": np.mean([sklearn.log_loss(truth[:, k], p[:, k]) for k in range(6)]),
        "ece": float(
            torchmetrics.binary_calibration_error(
                torch.tensor(p).flatten(), torch.tensor(truth).flatten(), n_bins=15
            )
        ),
    }
    assert wanted.keys() == {metric.name for metric in MULTILABEL_METRICS}
    for name, value in wanted.items():
        assert getattr(figures, name).value == pytest.approx(value, abs=2e-6), name
    for k, own in enumerate(figures.classes.values()):
        assert own is not None and own.images == truth[:, k].sum()
        expected = {
            "precision": precision[k],
            "recall": recall[k],
            "f1": f1[k],
            "auroc": sklearn.roc_auc_score(truth[:, k], p[:, k]),
            "average_precision": sklearn.average_precision_score(truth[:, k], p[:, k]),
        }
        assert expected.keys() == {metric.name for metric in MULTILABEL_CLASS_METRICS}
        for name, value in expected.items():
            assert getattr(own, name).value == pytest.approx(value, abs=2e-6), (k, name)
    assert figures.classes["class 2"].precision.value == 0  # type: ignore[union-attr]


def test_figures_are_torchmetrics_too() -> None:
    logits, truth = make(400, 5)
    p, true = torch.tensor(logits).sigmoid(), torch.tensor(truth).long()
    figures = figures_of(answers_of(logits, truth))
    for name, function, average in (
        ("map", torchmetrics.multilabel_average_precision, "macro"),
        ("auroc", torchmetrics.multilabel_auroc, "macro"),
        ("class_precision", torchmetrics.multilabel_precision, "macro"),
        ("class_recall", torchmetrics.multilabel_recall, "macro"),
        ("overall_precision", torchmetrics.multilabel_precision, "micro"),
        ("overall_recall", torchmetrics.multilabel_recall, "micro"),
        ("overall_f1", torchmetrics.multilabel_f1_score, "micro"),
    ):
        wanted = float(function(p, true, num_labels=5, average=average))
        assert getattr(figures, name).value == pytest.approx(wanted, abs=1e-5), name


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_resamples(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of every resample, computed by scikit-learn from images that are drawn again."""
    for name in ("RESAMPLES", "FEWEST_RESAMPLES"):
        monkeypatch.setattr(intervals, name, 40)
    logits, truth = make(60, 3, seed=1)
    groups = [str(i // 3) for i in range(60)] if grouped else None
    p, said = torch.tensor(logits).sigmoid().numpy(), logits >= 0
    figures = figures_of(answers_of(logits, truth, groups=groups))
    drawn: dict[str, list[float]] = {"map": [], "overall_f1": [], "brier": []}
    for weights in Resamples(60, groups=groups, classes=3):
        for column in weights.T:
            rows = np.repeat(np.arange(60), column.astype(int))
            drawn["map"].append(sklearn.average_precision_score(truth[rows], p[rows], average="macro"))
            drawn["overall_f1"].append(sklearn.f1_score(truth[rows], said[rows], average="micro"))
            drawn["brier"].append(float(((p[rows] - truth[rows]) ** 2).mean()))
    for name, values in drawn.items():
        low, high = percentiles(np.array(values))
        found = getattr(figures, name)
        assert (found.low, found.high) == pytest.approx((float(low), float(high)), abs=1e-5), name


def test_a_class_that_no_image_has_is_in_no_mean_but_counts_overall() -> None:
    logits, truth = make(200, 4)
    truth[:, 3] = False
    figures, without = (figures_of(answers_of(logits[:, :k], truth[:, :k])) for k in (4, 3))
    assert figures.classes["class 3"] is None
    for name in ("map", "auroc", "class_precision", "class_recall", "class_f1", "overall_recall"):
        assert getattr(figures, name).value == pytest.approx(getattr(without, name).value), name
    assert figures.overall_precision.value < without.overall_precision.value  # type: ignore[operator]


def test_what_is_undefined() -> None:
    logits, _ = make(20, 3)
    nothing = figures_of(answers_of(logits, np.zeros((20, 3), bool)))
    assert nothing.map == nothing.class_f1 == nothing.overall_recall == nothing.overall_f1 == UNDEFINED
    everything = figures_of(answers_of(logits, np.ones((20, 3), bool)))
    assert everything.map == everything.auroc == UNDEFINED, "no image without the class to rank behind"
    assert everything.overall_precision.value == 1
    silent = figures_of(answers_of(logits - 50, make(20, 3)[1]))
    assert silent.overall_f1.value == silent.class_f1.value == 0
    one = figures_of(answers_of(logits[:1], np.array([[True, False, True]])))
    assert one.brier.value is not None and one.brier.low is None


def test_answers_joined_and_at_another_temperature_are_those_collected_so() -> None:
    logits, truth = make(90, 4)
    kind = SeveralLabels([0.3, 0.5, 0.6, 0.7], temperature=2.0)
    whole = answers_of(logits, truth, thresholds=[0.3, 0.5, 0.6, 0.7], temperature=2.0)
    parts = [
        at_temperature(answers_of(logits[rows], truth[rows]), 2.0, kind)
        for rows in (slice(0, 40), slice(40, 90))
    ]
    joined = join(parts)
    assert joined.labels.tolist() == truth.tolist()
    assert joined.heads["fused"].present.tolist() == whole.heads["fused"].present.tolist()
    assert np.allclose(joined.heads["fused"].probabilities(), whole.heads["fused"].probabilities())
    assert figures_of(joined).brier == figures_of(whole).brier


def test_labels_of_the_other_kind() -> None:
    with pytest.raises(UserError, match="any number of labels"):
        OneLabel().truth(torch.zeros(2, 3), 3)
    assert SeveralLabels([0.5] * 3).truth(torch.tensor([2, 0]), 3).tolist() == [
        [False, False, True],
        [True, False, False],
    ]


# ---- thresholds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_higher_f1(seed: int) -> None:
    """Of all that give other answers, probabilities that occur several times included."""
    rng = np.random.default_rng(seed)
    truth = rng.random(40) < 0.25
    truth[0] = True
    p = np.round(np.clip(rng.normal(0.35 + 0.2 * truth, 0.2), 0, 1), 2)
    found = best_threshold(p, truth)
    assert 0 < found < 1
    every = np.r_[1e-6, np.unique(p)[np.unique(p) > 0], 0.999999]
    scores = [sklearn.f1_score(truth, p >= threshold, zero_division=0) for threshold in every]
    assert sklearn.f1_score(truth, p >= found) == pytest.approx(max(scores))


def test_of_equally_good_thresholds_the_one_nearest_to_a_half() -> None:
    truth = np.array([False, False, True, True])
    assert best_threshold(np.array([0.1, 0.2, 0.8, 0.9]), truth) == pytest.approx(0.5)
    # F1 is 0.8 with the first two or three, 0.6 and 0.3 being the thresholds.
    p, truth = np.array([0.9, 0.7, 0.5, 0.1]), np.array([True, False, True, False])
    assert best_threshold(p, truth) == pytest.approx(0.3)
    p, truth = np.array([0.9, 0.8, 0.7, 0.6, 0.2]), np.array([True, False, True, False, False])
    assert best_threshold(p, truth) == pytest.approx(0.65)
    assert best_threshold(np.array([0.4, 0.2]), np.array([True, True])) == pytest.approx(0.1), "all have it"
    assert best_threshold(np.zeros(3), np.array([True, False, False])) == 0.5, "nothing tells them apart"
    assert 0 < best_threshold(np.ones(3), np.array([True, False, False])) < 1


def test_a_class_without_a_positive_image_keeps_a_half_and_is_named() -> None:
    logits, truth = make(100, 3)
    truth[:, 1] = False
    p = torch.tensor(logits).sigmoid().numpy()
    found = fit_class_thresholds(p, truth, input_size=(64, 48))
    assert found.values[1] == 0.5 and found.positives[1] == 0 and found.input_size == (64, 48)
    assert found.positives[0] == truth[:, 0].sum()
    assert unfitted_note(found, ("cat", "dog", "emu")) == (
        "no validation image has the class dog, whose threshold stays 0.5"
    )
    assert unfitted_note(ClassThresholds((0.5,), (3,), (32, 32)), ("cat",)) is None


def test_thresholds_travel_in_the_spec() -> None:
    thresholds = ClassThresholds((0.25, 0.5, 0.125), (4, 0, 9), (64, 48))
    spec = ModelSpec("m", classes=("a", "b", "c"), multilabel=True, thresholds=thresholds)
    read = ModelSpec.from_json(spec.to_json())
    assert read == spec and read.class_thresholds == (0.25, 0.5, 0.125)
    older = json.loads(ModelSpec("m", classes=("a",)).to_json())
    del older["multilabel"]
    assert ModelSpec.from_json(json.dumps(older)).multilabel is False
    assert ModelSpec("m", classes=("a", "b"), multilabel=True).class_thresholds == (0.5, 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": [0.5, 0.5]},
        {"values": [0.5, 0.5, 1.0]},
        {"values": [0.5, "0.5", 0.5]},
        {"values": 0.5},
        {"positives": [1, 2]},
        {"positives": [1, 2, -1]},
        {"positives": [1, 2, 1.5]},
        {"input_size": [64]},
        {"values": None},
    ],
    ids=str,
)
def test_damaged_thresholds_are_one_line(changes: dict[str, Any]) -> None:
    spec = ModelSpec("m", classes=("a", "b", "c"), multilabel=True)
    values = json.loads(spec.to_json())
    good = {"values": [0.5, 0.5, 0.5], "positives": [1, 2, 3], "input_size": [64, 64]}
    values["thresholds"] = {k: v for k, v in (good | changes).items() if v is not None}
    with pytest.raises(UserError, match=r"^thresholds: ") as error:
        ModelSpec.from_json(json.dumps(values))
    assert "\n" not in str(error.value)


def test_the_other_kind_of_thresholds() -> None:
    values = json.loads(ModelSpec("m", classes=("a", "b", "c")).to_json())
    values["thresholds"] = {"values": [0.5, 0.5, 0.5], "positives": [1, 2, 3], "input_size": [64, 64]}
    with pytest.raises(UserError, match=r"^thresholds: "):
        ModelSpec.from_json(json.dumps(values))
    values["multilabel"] = "yes"
    with pytest.raises(UserError, match="multilabel must be true or false"):
        ModelSpec.from_json(json.dumps(values))


def test_honest_figures_are_at_thresholds_of_the_other_half() -> None:
    logits, truth = make(80, 3, seed=4)
    answers = answers_of(logits, truth)
    found = at_fitted_thresholds(answers, seed=1)
    assert found is not None
    p = answers.heads["fused"].probabilities()
    for fitted, held_out in KFold(2, shuffle=True, random_state=1).split(truth):
        for k in range(3):
            threshold = best_threshold(p[fitted, k].astype(float), truth[fitted, k])
            wanted = p[held_out, k] >= threshold
            assert found.heads["fused"].present[held_out, k].tolist() == wanted.tolist()
    assert figures_of(found).map == figures_of(answers).map


# ---- calibration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_one_with_the_lowest_cross_entropy(temperature: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(-1, 1.5, (2000, 4))
    truth = rng.random((2000, 4)) < 1 / (1 + np.exp(-true))
    logits = torch.tensor(true * temperature, dtype=torch.float32)

    def loss(t: float) -> float:
        p = 1 / (1 + np.exp(-logits.double().numpy() / t))
        return float(-np.where(truth, np.log(p), np.log1p(-p)).mean())

    found = fit_temperature(logits, torch.tensor(truth))
    assert found == pytest.approx(temperature, rel=0.1)
    assert found == pytest.approx(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x, rel=1e-3)
    calibration = calibrate(logits, torch.tensor(truth))
    assert calibration.temperature == found
    assert calibration.after is not None and calibration.after.nll <= calibration.before.nll + 1e-3
    assert calibration.before.nll == pytest.approx(loss(1.0), rel=1e-5)
    assert sum(each.count for each in calibration.before.bins) == 8000
    wanted = torchmetrics.binary_calibration_error(
        logits.sigmoid().flatten(), torch.tensor(truth).flatten(), n_bins=15
    )
    assert calibration.before.ece == pytest.approx(float(wanted), abs=1e-5)


def test_why_no_temperature_is_fitted() -> None:
    logits, truth = make(49, 3)
    few = calibrate(torch.tensor(logits), torch.tensor(truth))
    assert few.temperature == 1 and few.note == "49 images are too few to fit a temperature (50 are needed)"
    right = calibrate(torch.where(torch.tensor(make(60, 3)[1]), 5.0, -5.0), torch.tensor(make(60, 3)[1]))
    assert right.temperature == 1 and right.note is not None and right.note.startswith("0 of 180 answers")


def test_small_figures_have_intervals_that_can_be_told_apart() -> None:
    by_name = {metric.name: metric for metric in MULTILABEL_METRICS}
    assert by_name["brier"].text(Figure(0.0971, 0.0958, 0.1012)) == "0.097 [0.096, 0.101]"
    assert by_name["map"].text(Figure(0.529, 0.5171, 0.5494)) == "52.9 [51.7, 54.9]"
