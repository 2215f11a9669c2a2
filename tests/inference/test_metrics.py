"""Figures against scikit-learn and torchmetrics; intervals against a naive loop and by counting."""

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn import metrics as sklearn
from torchmetrics.functional import classification as torchmetrics

from conformer_vision.data import ImageSource
from conformer_vision.inference.answers import Answers, Collector, join
from conformer_vision.inference.heads import HeadAnswers, OneLabel
from conformer_vision.inference.intervals import TOP5_FROM, Figure, Resamples, percentiles, share, wilson
from conformer_vision.inference.metrics import CLASS_METRICS, METRICS, HeadFigures, head_figures
from conformer_vision.inference.ranking import rank

Array = np.ndarray[Any, Any]


class Numbered(ImageSource):
    """A source that only names its images, and may group them."""

    def __init__(self, labels: Array, classes: int, groups: list[str] | None) -> None:
        super().__init__(names(classes), labels.tolist())
        self.groups = groups

    def image(self, index: int, need: Any = None) -> Image.Image:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return f"{index}.png"


def answers_of(
    logits: Array, labels: Array, *, groups: list[str] | None = None, temperature: float = 1.0
) -> Answers:
    """The answers of one head, collected in two batches."""
    collector = Collector(len(labels), kind=OneLabel(), classes=logits.shape[1], temperature=temperature)
    for part in np.array_split(np.arange(len(labels)), min(2, len(labels))):
        places = torch.from_numpy(part)
        given = {"fused": torch.tensor(logits[part], dtype=torch.float32)}
        collector.add(given, torch.from_numpy(labels[part]), places, places)
    return collector.finish(Numbered(labels, logits.shape[1], groups), broken=[])


def make(
    n: int, k: int, *, classes: int | None = None, skill: float = 1.5, seed: int = 0
) -> tuple[Array, Array]:
    """Logits and labels of n images, of the first classes alone, that agree more or less."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes or k, n)
    logits = rng.normal(size=(n, k)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    return logits.astype(float), labels


def names(k: int) -> list[str]:
    return [f"class {i}" for i in range(k)]


def figures_of(answers: Answers, k: int) -> HeadFigures:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing reaches the console
        return head_figures(answers, names(k))["fused"]


def by_scikit_learn(p: Array, labels: Array) -> dict[str, float]:
    """The figures of `HeadFigures` by name, and of `ClassFigures` by class and name."""
    predicted, present = p.argmax(axis=1), np.unique(labels)
    everything = range(p.shape[1])
    own: dict[str, Any] = {"labels": present, "zero_division": 0}
    ranked = {
        name: [function(labels == k, p[:, k]) for k in present]
        for name, function in (
            ("auroc", sklearn.roc_auc_score),
            ("average_precision", sklearn.average_precision_score),
        )
    }
    by_class = dict(
        zip(
            ("precision", "recall", "f1"),
            sklearn.precision_recall_fscore_support(labels, predicted, average=None, **own),
            strict=False,
        )
    )
    top5 = np.argsort(-p, axis=1)[:, :5]
    one_hot = np.eye(p.shape[1])[labels]
    found = {
        "top1": sklearn.accuracy_score(labels, predicted),
        "top5": float((top5 == labels[:, None]).any(axis=1).mean()),
        "balanced_accuracy": sklearn.recall_score(labels, predicted, average="macro", **own),
        "precision": sklearn.precision_score(labels, predicted, average="macro", **own),
        "f1": sklearn.f1_score(labels, predicted, average="macro", **own),
        **{name: float(np.mean(values)) for name, values in ranked.items()},
        "kappa": sklearn.cohen_kappa_score(labels, predicted),
        "brier": float(((p - one_hot) ** 2).sum(axis=1).mean()),
        "log_loss": sklearn.log_loss(labels, p, labels=everything),
        "ece": float(
            torchmetrics.multiclass_calibration_error(
                torch.tensor(p), torch.tensor(labels), num_classes=p.shape[1], n_bins=15
            )
        ),
    }
    for name, values in (by_class | ranked).items():
        found |= {f"{k}/{name}": float(value) for k, value in zip(present, values, strict=True)}
    return found


def by_name(figures: HeadFigures) -> dict[str, Figure]:
    found = {metric.name: figures.of(metric) for metric in METRICS}
    for name, own in figures.classes.items():
        if own is not None:
            number = name.removeprefix("class ")
            found |= {f"{number}/{metric.name}": own.of(metric) for metric in CLASS_METRICS}
    return found


@pytest.mark.parametrize(("n", "k", "classes"), [(300, 12, None), (80, 15, 9), (200, 11, 3)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_every_figure_is_that_of_the_libraries(
    n: int, k: int, classes: int | None, temperature: float
) -> None:
    """Also with classes that have no images but are predicted, and with ones that are never predicted."""
    logits, labels = make(n, k, classes=classes)
    logits[:, 0] -= 9
    p = torch.tensor(logits / temperature).softmax(dim=1).numpy()
    found = by_name(figures_of(answers_of(logits, labels, temperature=temperature), k))
    wanted = by_scikit_learn(p, labels)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].value == pytest.approx(value, abs=2e-6), name
    assert found["0/precision"].value == found["0/recall"].value == 0


def test_figures_are_torchmetrics_too() -> None:
    """Whose macro means leave out the classes that are in no image and no prediction."""
    logits, labels = make(400, 6)
    p, true = torch.tensor(logits).softmax(dim=1), torch.tensor(labels)
    figures = figures_of(answers_of(logits, labels), 6)
    for name, function in (
        ("balanced_accuracy", torchmetrics.multiclass_recall),
        ("precision", torchmetrics.multiclass_precision),
        ("f1", torchmetrics.multiclass_f1_score),
        ("auroc", torchmetrics.multiclass_auroc),
        ("average_precision", torchmetrics.multiclass_average_precision),
    ):
        wanted = float(function(p, true, num_classes=6, average="macro"))
        assert getattr(figures, name).value == pytest.approx(wanted, abs=1e-5), name
    assert figures.kappa.value == pytest.approx(
        float(torchmetrics.multiclass_cohen_kappa(p, true, num_classes=6)), abs=1e-5
    )


@pytest.mark.parametrize("k", [2, 5, TOP5_FROM - 1])
def test_no_top5_of_few_classes(k: int) -> None:
    logits, labels = make(40, k)
    assert figures_of(answers_of(logits, labels), k).top5 == Figure(None, None, None)


def test_two_classes_rank_alike() -> None:
    logits, labels = make(90, 2)
    first, second = (own.auroc for own in figures_of(answers_of(logits, labels), 2).classes.values() if own)
    assert first.value == pytest.approx(second.value, abs=1e-9)


# ---- what is undefined, and what is not known ------------------------------------------------------


def test_one_class_only() -> None:
    logits, labels = make(30, 4, classes=1)
    figures = figures_of(answers_of(logits, labels), 4)
    for name in ("auroc", "average_precision"):
        assert getattr(figures, name) == Figure(None, None, None)
    assert figures.kappa.value == 0, "no agreement beyond chance"
    assert figures.classes["class 2"] is None
    alone = figures_of(answers_of(np.eye(4)[[1, 1, 1]] * 9, np.ones(3, int)), 4)
    assert alone.kappa == Figure(None, None, None), "chance itself agrees"


def test_one_image() -> None:
    figures = figures_of(answers_of(np.array([[3.0, 0, 0]]), np.array([0])), 3)
    assert figures.top1 == share(1, 1)
    assert figures.top1.low == pytest.approx(0.2065, abs=1e-4)
    for metric in METRICS:
        if metric.name not in ("top1", "top5", "auroc", "average_precision", "kappa"):
            assert figures.of(metric).value is not None
            assert (figures.of(metric).low, figures.of(metric).high) == (None, None), metric.name


def test_all_right_is_not_certain() -> None:
    labels = np.arange(36) % 4
    figures = figures_of(answers_of(np.eye(4)[labels] * 5, labels), 4)
    found = binomtest(36, 36).proportion_ci(method="wilson")
    assert (figures.top1.low, figures.top1.high) == pytest.approx((found.low, found.high))
    own = figures.classes["class 1"]
    assert own is not None and own.recall.low == pytest.approx(
        binomtest(9, 9).proportion_ci(method="wilson").low
    )
    for name in ("f1", "balanced_accuracy", "auroc", "kappa"):
        assert getattr(figures, name) == Figure(1.0, None, None), "every resample says the same"


def test_all_right_by_groups_counts_groups() -> None:
    labels = np.arange(36) % 4
    groups = [str(i // 12) for i in range(36)]
    figures = figures_of(answers_of(np.eye(4)[labels] * 5, labels, groups=groups), 4)
    assert figures.top1.low == pytest.approx(binomtest(3, 3).proportion_ci(method="wilson").low)
    one = figures_of(answers_of(*make(20, 4), groups=["one"] * 20), 4)
    assert (one.top1.low, one.f1.low, one.log_loss.high) == (None, None, None), "one group tells nothing"


def test_wilson_is_scipys() -> None:
    for right, images in ((0, 1), (1, 3), (33, 36), (36, 36), (9000, 10_000)):
        found = binomtest(right, images).proportion_ci(method="wilson")
        assert tuple(map(float, wilson(right / images, images))) == pytest.approx((found.low, found.high))
    assert share(0, 0) == Figure(None, None, None)


# ---- intervals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_a_naive_loop(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which repeats every image as often as a resample has it, and asks the libraries."""
    monkeypatch.setattr("conformer_vision.inference.intervals.RESAMPLES", 40)
    monkeypatch.setattr("conformer_vision.inference.intervals._CHUNK", 60 * 15)  # three parts
    logits, labels = make(60, 11, classes=4)
    groups = [f"patient {i}" for i in np.random.default_rng(1).integers(0, 14, 60)] if grouped else None
    found = by_name(figures_of(answers_of(logits, labels, groups=groups), 11))
    p = torch.tensor(logits).softmax(dim=1).numpy()
    resamples = Resamples(60, groups=groups, classes=11)
    assert resamples.units == (len(set(groups)) if groups else 60)
    samples = []
    for weights in resamples:
        for column in weights.T:
            rows = np.repeat(np.arange(60), column.astype(int))
            samples.append(by_scikit_learn(p[rows], labels[rows]))
    assert len(samples) == 40

    def bounds(name: str) -> tuple[float, float]:
        low, high = np.quantile([each[name] for each in samples], [0.025, 0.975])
        return float(low), float(high)

    # Shares have Wilson's interval unless groups are drawn, and that of ECE is reversed.
    by_bootstrap = ["f1", "auroc", "average_precision", "kappa", "log_loss", "brier", "2/f1", "1/auroc"]
    for name in by_bootstrap + ["top1", "1/recall", "1/precision"] * grouped:
        assert (found[name].low, found[name].high) == pytest.approx(bounds(name), abs=2e-5), name
    ece, (low, high) = found["ece"], bounds("ece")
    assert ece.low is not None and ece.value is not None and ece.high is not None
    reverse = max(2 * ece.value - high, 0), max(2 * ece.value - low, ece.value)
    assert (ece.low, ece.high) == pytest.approx(reverse, abs=2e-5)
    assert ece.low <= ece.value <= ece.high


def test_ties_are_counted_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    scores = rng.integers(0, 6, (200, 3)) / 5
    weights = rng.integers(0, 4, (200, 5)).astype(float)
    areas, precisions = rank(lambda k: scores[:, k], labels, range(3), weights)
    for k in range(3):
        for column, row in zip(weights.T, range(5), strict=True):
            wanted = sklearn.roc_auc_score(labels == k, scores[:, k], sample_weight=column)
            assert areas[k, row] == pytest.approx(wanted)
            wanted = sklearn.average_precision_score(labels == k, scores[:, k], sample_weight=column)
            assert precisions[k, row] == pytest.approx(wanted)


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % of 60 trials, give or take: an honest interval holds it in fewer than 50 once in 5,000."""
    monkeypatch.setattr("conformer_vision.inference.intervals.RESAMPLES", 100)
    whole = by_name(figures_of(answers_of(*make(60_000, 3, seed=10_000)), 3))
    shown = [metric.name for metric in METRICS if metric.name not in ("top5", "ece")]
    held = Counter[str]()
    for seed in range(60):
        found = by_name(figures_of(answers_of(*make(120, 3, seed=seed)), 3))
        for name in (*shown, "1/recall", "1/precision", "1/f1"):
            each, truth = found[name], whole[name].value
            assert each.low is not None and each.high is not None and truth is not None
            held[name] += each.low <= truth <= each.high
    assert len(held) == 12 and min(held.values()) >= 50, held


def test_the_ece_of_a_calibrated_model_is_mostly_found_to_be_near_zero() -> None:
    """Gaps of bins are noise here, which the percentiles of resamples would double instead of remove."""
    rng = np.random.default_rng(0)
    near_zero = 0
    for _ in range(20):
        logits = rng.normal(size=(200, 3)) * 2
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        labels = (p.cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)
        ece = figures_of(answers_of(logits, labels), 3).ece
        assert ece.value is not None and ece.value > 0.02 and ece.low is not None
        near_zero += ece.low < 0.01
    assert near_zero > 10


def test_groups_widen_the_intervals() -> None:
    """Images of one patient are right or wrong together: so many patients count, not so many images."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 30), 20)
    wrong = np.repeat(rng.random(30) < 0.3, 20)
    logits = np.eye(2)[np.where(wrong, 1 - labels, labels)] * 3
    groups = [f"patient {i // 20}" for i in range(600)]
    alone, together = (figures_of(answers_of(logits, labels, groups=g), 2).top1 for g in (None, groups))
    assert alone.value == together.value
    widths = [f.high - f.low for f in (alone, together) if f.high is not None and f.low is not None]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(20), rel=0.15)


def test_resamples_are_the_same_in_every_run_and_fewer_for_large_sets() -> None:
    first, second = (np.concatenate(list(Resamples(50, seed=1)), axis=1) for _ in range(2))
    assert np.array_equal(first, second) and first.shape == (50, 1000)
    assert (first.sum(axis=0) == 50).all() and len(np.unique(first, axis=1).T) > 990
    assert Resamples(10_000, classes=200).count == 1000
    assert Resamples(50_000, classes=1000).count == 200


def test_percentiles_of_what_is_undefined_now_and_then() -> None:
    samples = np.array([[1.0, 2, 3, np.nan], [1, np.nan, np.nan, np.nan], [2, 2, 2, 2]])
    low, high = percentiles(samples)
    assert (low[0], high[0]) == pytest.approx(tuple(np.quantile([1, 2, 3], [0.025, 0.975])))
    assert np.isnan([low[1], high[1], low[2], high[2]]).all()


# ---- parts of the answers --------------------------------------------------------------------------


def test_more_logits_than_memory_is_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are then those of an evenly drawn part, all else of all images."""
    logits, labels = make(90, 4)
    whole = figures_of(answers_of(logits, labels), 4)
    monkeypatch.setattr("conformer_vision.inference.answers.MOST_KEPT", 4 * 30)
    answers = answers_of(logits, labels)
    assert answers.kept.tolist() == list(range(0, 90, 3)) and not answers.whole
    part = figures_of(answers, 4)
    for metric in METRICS:
        if metric.name not in ("auroc", "average_precision"):
            assert part.of(metric) == whole.of(metric)
    p = torch.tensor(logits[::3]).softmax(dim=1).numpy()
    assert part.auroc.value == pytest.approx(by_scikit_learn(p, labels[::3])["auroc"])


def test_joined_answers_are_those_of_one_pass() -> None:
    logits, labels = make(70, 5)
    whole = answers_of(logits, labels, temperature=2.0, groups=[str(i // 3) for i in range(70)])
    halves = [
        answers_of(logits[rows], labels[rows], temperature=2.0, groups=[str(i // 3) for i in rows])
        for rows in (np.arange(40), np.arange(40, 70))
    ]
    both = join(halves)
    assert both.kept.tolist() == list(range(70)) and both.groups == whole.groups
    found, wanted = by_name(figures_of(both, 5)), by_name(figures_of(whole, 5))
    for name, figure in wanted.items():
        assert found[name].value == pytest.approx(figure.value, abs=1e-6), name


def test_equal_logits_are_ordered_as_argmax_does() -> None:
    answers = answers_of(np.zeros((3, 12)), np.array([0, 4, 5]))
    head: HeadAnswers = answers.heads["fused"]
    assert head.rank.tolist() == [0, 4, 5] and head.predicted.tolist() == [0, 0, 0]
    figures = figures_of(answers, 12)
    assert (figures.top1.value, figures.top5.value) == pytest.approx((1 / 3, 2 / 3))
    assert figures.log_loss.value == pytest.approx(np.log(12))
