"""What is read from the answers, on answers made by hand."""

import torch

from conformer_vision.inference.evaluation import Answers
from conformer_vision.report.analysis import (
    Outcome,
    class_rows,
    first_choices,
    join,
    study_branches,
    worst_errors,
)


def logits(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows).log()  # so that the softmax gives these shares


CONV = logits((0.9, 0.1, 0), (0.6, 0.4, 0), (0.2, 0.8, 0), (0.1, 0.9, 0), (0, 0.3, 0.7), (0, 1, 0))
TRANS = logits((0.8, 0.2, 0), (0.3, 0.7, 0), (0.6, 0.4, 0), (0.3, 0.7, 0), (0.6, 0.4, 0), (0.2, 0.8, 0))
FUSED = logits((0.85, 0.15, 0), (0.45, 0.55, 0), (0.4, 0.6, 0), (0.2, 0.8, 0), (0.3, 0.4, 0.3), (0.1, 0.9, 0))
LABELS = torch.tensor([0, 0, 0, 0, 1, 1])


def outcome() -> Outcome:
    """Six images in two batches, the third of them broken."""
    parts = []
    for start, stop, gap in ((0, 2, 0), (2, 6, 1)):
        heads = {"conv": CONV[start:stop], "trans": TRANS[start:stop], "fused": FUSED[start:stop]}
        places = torch.arange(start, stop) + gap
        answers = Answers(heads, LABELS[start:stop], places + 100, places)
        parts.append(first_choices(answers, torch.ones(len(places), dtype=torch.bool)))
    return join(parts)


def test_collected_in_order() -> None:
    found = outcome()
    assert found.labels.tolist() == LABELS.tolist()
    assert found.order.tolist() == [0, 1, 3, 4, 5, 6]
    assert found.indices.tolist() == [100, 101, 103, 104, 105, 106]
    assert torch.equal(found.logits, FUSED)
    assert found.branches["conv"].classes.tolist() == [0, 0, 1, 1, 2, 1]
    assert torch.allclose(found.branches["trans"].probabilities, torch.tensor([0.8, 0.7, 0.6, 0.7, 0.6, 0.8]))
    fused = found.fused(2.0)
    assert fused.classes.tolist() == [0, 1, 1, 1, 1, 1]
    root = torch.tensor([0.85, 0.15]).sqrt()
    assert torch.isclose(fused.probabilities[0], root[0] / root.sum())


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
    answers = Answers({"fused": FUSED}, LABELS, torch.arange(6), torch.arange(6))
    alone = first_choices(answers, LABELS == 0)
    assert torch.equal(alone.logits, FUSED[:4]) and alone.order.tolist() == [0, 1, 2, 3]
    assert study_branches(alone, most=5) is None


def test_classes_worst_first_and_empty_ones_last() -> None:
    confusion = {"a": {"a": 5, "b": 2, "c": 1}, "c": {"a": 4, "b": 1, "c": 5}, "d": {"d": 7}}
    rows = class_rows(confusion, "abcd")
    assert [(row.name, row.right, row.total, row.top1) for row in rows] == [
        ("c", 5, 10, 0.5),
        ("a", 5, 8, 0.625),
        ("d", 7, 7, 1.0),
        ("b", 0, 0, None),
    ]
    assert [row.rival and (row.rival.predicted, row.rival.images) for row in rows] == [
        ("a", 4),
        ("b", 2),
        None,
        None,
    ]
