"""What is read from the answers, on answers made by hand."""

from collections.abc import Iterator

import pytest
import torch

from conformer_vision.data.stream import ImageStream, StreamedImage
from conformer_vision.inference.answers import Answers, Collector
from conformer_vision.inference.evaluation import Evaluation
from conformer_vision.inference.heads import OneLabel
from conformer_vision.inference.metrics import head_figures
from conformer_vision.report.analysis import (
    Outcome,
    class_rows,
    outcome_of,
    study_branches,
    worst_errors,
)


class Stream(ImageStream):
    """A stream that only says that its images have no names."""

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        raise NotImplementedError


def logits(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows).log()  # so that the softmax gives these shares


CONV = logits((0.9, 0.1, 0), (0.6, 0.4, 0), (0.2, 0.8, 0), (0.1, 0.9, 0), (0, 0.3, 0.7), (0, 1, 0))
TRANS = logits((0.8, 0.2, 0), (0.3, 0.7, 0), (0.6, 0.4, 0), (0.3, 0.7, 0), (0.6, 0.4, 0), (0.2, 0.8, 0))
FUSED = logits((0.85, 0.15, 0), (0.45, 0.55, 0), (0.4, 0.6, 0), (0.2, 0.8, 0), (0.3, 0.4, 0.3), (0.1, 0.9, 0))
LABELS = torch.tensor([0, 0, 0, 0, 1, 1])


def answers_of(heads: dict[str, torch.Tensor]) -> Answers:
    """Six images in two batches, the third of them broken, of which four have their logits kept."""
    collector = Collector(6, kind=OneLabel(), classes=3, temperature=2.0)
    for start, stop, gap in ((0, 2, 0), (2, 6, 1)):
        places = torch.arange(start, stop) + gap
        part = {name: logits[start:stop] for name, logits in heads.items()}
        collector.add(part, LABELS[start:stop], places + 100, places)
    return collector.finish(Stream(), broken=[])


def outcome() -> Outcome:
    return outcome_of(answers_of({"conv": CONV, "trans": TRANS, "fused": FUSED}))


def test_collected_in_order() -> None:
    found = outcome()
    assert found.labels.tolist() == LABELS.tolist()
    assert found.order.tolist() == [0, 1, 3, 4, 5, 6]
    assert found.indices.tolist() == [100, 101, 103, 104, 105, 106]
    assert torch.equal(found.logits, FUSED), "as they are, without the temperature"
    assert found.branches["conv"].classes.tolist() == [0, 0, 1, 1, 2, 1]
    assert torch.allclose(found.branches["trans"].probabilities, torch.tensor([0.8, 0.7, 0.6, 0.7, 0.6, 0.8]))
    fused = found.fused(2.0)
    assert fused.classes.tolist() == [0, 1, 1, 1, 1, 1]
    root = torch.tensor([0.85, 0.15]).sqrt()
    assert torch.isclose(fused.probabilities[0], root[0] / root.sum())


def test_a_part_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformer_vision.inference.answers.MOST_KEPT", 3 * 3 * 2)
    found = outcome()
    assert found.order.tolist() == [0, 4] and torch.equal(found.logits, FUSED[::3])
    assert found.branches["conv"].classes.tolist() == [0, 1]


def test_worst_errors_first_and_wrong_ones_only() -> None:
    assert worst_errors(outcome(), temperature=1.0, most=9) == [3, 2, 1]
    assert worst_errors(outcome(), temperature=1.0, most=2) == [3, 2]


def test_branches() -> None:
    study = study_branches(outcome(), most=5)
    assert study is not None
    counts = {name: (case.count, case.fused_right, case.rows) for name, case in study.cases.items()}
    assert counts == {
        "both": (2, 2, [0, 5]),  # the prediction is less sure of the first
        "conv": (1, 0, [1]),
        "trans": (1, 0, [2]),
        "neither": (2, 1, [3, 4]),  # both branches are surer of the first
    }
    assert (study.different, study.conv_right, study.trans_right) == (3, 1, 1)
    assert (study.fused_right, study.fused_neither) == (1, 1)
    few = study_branches(outcome(), most=1)
    assert few is not None and few.cases["both"].rows == [0] and few.cases["both"].count == 2


def test_one_head_has_no_branches() -> None:
    assert study_branches(outcome_of(answers_of({"fused": FUSED})), most=5) is None


def test_classes_worst_first_and_empty_ones_last() -> None:
    confusion = {"a": {"a": 5, "b": 2, "c": 1}, "c": {"a": 4, "b": 1, "c": 5}, "d": {"d": 7}}
    pairs = [
        ("abcd".index(true), "abcd".index(predicted))
        for true, row in confusion.items()
        for predicted, count in row.items()
        for _ in range(count)
    ]
    labels, predicted = torch.tensor(pairs).T
    collector = Collector(len(pairs), kind=OneLabel(), classes=4, temperature=1.0)
    collector.add({"fused": torch.eye(4)[predicted]}, labels, labels, labels)
    answers = collector.finish(Stream(), broken=[])
    evaluation = Evaluation(
        25, 25, None, tuple("abcd"), 1.0, 25.0, [], answers, head_figures(answers, "abcd"), confusion
    )
    rows = class_rows(evaluation)
    f1 = [row.figures and row.figures.f1.value for row in rows]
    assert [(row.name, row.right, row.images) for row in rows] == [
        ("a", 5, 8),
        ("c", 5, 10),
        ("d", 7, 7),
        ("b", 0, 0),
    ]
    assert f1 == [pytest.approx(10 / 17), pytest.approx(10 / 16), 1.0, None]
    assert [row.rival and (row.rival.predicted, row.rival.images) for row in rows] == [
        ("b", 2),
        ("a", 4),
        None,
        None,
    ]
