"""Weights of the classes in the loss: against scikit-learn's, and against torch's weighted cross-entropy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig
from conformer_vision.training.class_weights import class_weights
from conformer_vision.training.losses import WeightedCrossEntropy
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.parts import prepare
from option_tools import batch, shows
from streamed import NAMES, write_shards

Tiny = Callable[..., TrainConfig]
CLASSES = ("a", "b", "c")


def images(labels: Sequence[int], classes: Sequence[str] = CLASSES) -> Any:
    return SimpleNamespace(labels=tuple(labels), classes=tuple(classes), multilabel=False)


def table(path: Path, *lines: str, header: str = "class,weight") -> str:
    file = path / "weights.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return str(file)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = [0] * 70 + [1] * 25 + [2] * 5
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    found = class_weights("balanced", images(labels))
    assert found is not None
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)
    assert float(found[labels].mean()) == pytest.approx(1)
    assert class_weights("none", images(labels)) is None


def test_a_class_without_images_has_the_weight_1() -> None:
    found = class_weights("balanced", images([0] * 6 + [2] * 2))
    assert found is not None
    assert found.tolist() == pytest.approx([8 / (2 * 6), 1, 8 / (2 * 2)])


def test_weights_of_a_file_are_scaled_to_a_mean_of_1(tmp_path: Path) -> None:
    """In any order of lines and columns, as spreadsheets write them."""
    file = table(tmp_path, "30;c", "10;a", "10;b", header="Weight;Class")
    found = class_weights(file, images([0, 0, 0, 2]))
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([10.0, 10.0, 30.0]) / 15)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,1", "b,2"], "has no weight of the class c; add a line for each"),
        (["a,1", "b,2", "c,1", "d,1"], "line 5: the data has no class 'd'"),
        (["a,1", "b,-2", "c,1"], "line 3: the weight '-2' must be a finite number above 0"),
        (["a,1", "b,nan", "c,1"], "line 3: the weight 'nan' must be"),
        (["a,1", "b,inf", "c,1"], "line 3: the weight 'inf' must be"),
        (["a,0", "b,1", "c,1"], "line 2: the weight '0' must be"),
        (["a,x", "b,1", "c,1"], "line 2: the weight 'x' must be"),
        (["a,1", "a,2", "b,1", "c,1"], "line 3: a second weight of the class 'a'; keep one"),
        ([], "has no weight of the class a, b, c"),
    ],
    ids=str,
)
def test_a_file_that_does_not_fit(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_weights(table(tmp_path, *lines), images([0, 1, 2]))


def test_no_such_file_and_no_such_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class_weights blanced: no such file; give balanced, none, or a CSV"):
        class_weights("blanced", images([0, 1]))
    with pytest.raises(UserError, match="its first line must be class,weight, not name,weight"):
        class_weights(table(tmp_path, header="name,weight"), images([0, 1]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs(smoothing: float) -> None:
    """Of labels the sum of weighted losses by the number of images; of soft targets torch's own mean."""
    torch.manual_seed(0)
    logits, labels, weight = torch.randn(8, 3), torch.arange(8) % 3, torch.tensor([0.5, 2.0, 1.0])
    loss = WeightedCrossEntropy(weight, label_smoothing=smoothing)
    if not smoothing:
        wanted = cross_entropy(logits, labels, weight=weight, reduction="sum") / 8
        torch.testing.assert_close(loss(logits, labels), wanted)
    spread = one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    by_hand = -(weight * spread * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(logits, labels), by_hand)
    soft = torch.randn(8, 3).softmax(1)
    wanted = cross_entropy(logits, soft, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, soft), wanted)


def test_parts_of_a_batch_add_up_to_its_loss() -> None:
    """So accumulated batches and several processes train as one."""
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3), torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    loss = WeightedCrossEntropy(torch.tensor([0.5, 2.0, 1.0]))
    parts = (loss(logits[:4], labels[:4]) + loss(logits[4:], labels[4:])) / 2
    torch.testing.assert_close(parts, loss(logits, labels))


@shows("class_weights")
@pytest.mark.parametrize("changes", [{}, {"mixup": 0.4, "cutmix": 0.4, "label_smoothing": 0.1}], ids=str)
def test_both_heads_have_the_weighted_loss_and_validation_has_not(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    logged: dict[str, Any] = {}
    monkeypatch.setattr(ClassifierModule, "log", lambda self, name, value, **_: logged.update({name: value}))
    file = table(tmp_path, "red,1", "green,2", "blue,6")
    options = {"label_smoothing": 0.0, "drop_path_rate": 0.0} | changes
    module = prepare(tiny(**options, class_weights=file)).module.train()
    module.trainer = SimpleNamespace(global_step=0, world_size=1)  # type: ignore[assignment]
    weight = torch.tensor([6.0, 2.0, 1.0]) / 3  # blue, green, red, equally many of each
    drawn, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    targets: list[Tensor] = []
    mix = module.mixup
    if mix is not None:

        def noting(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            mixed, soft = mix(images, target)
            targets.append(soft)
            return mixed, soft

        module.mixup = noting
    loss = module.training_step(batch(drawn.clone(), labels), 0)
    assert module.inputs is not None
    with torch.no_grad():
        heads = module.model(module.inputs.images)
    soft = targets[0] if targets else one_hot(labels, 3).float()
    wanted = sum(cross_entropy(head, soft, weight=weight) for head in heads) / 2
    torch.testing.assert_close(loss.detach(), wanted)
    with torch.no_grad():
        module.eval().validation_step(batch(drawn, labels), 0)
        module.on_validation_epoch_end()
        plain = [cross_entropy(head, labels) for head in module.model.forward_branches(drawn)]
    torch.testing.assert_close(logged["val_loss"], sum(plain) / 2)


def test_a_stream_takes_the_weights_of_a_file_alone(tiny: Tiny, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": write_shards(tmp_path, [12, 12]), "epoch_images": 8}
    with pytest.raises(UserError, match="class_weights balanced: a stream does not know how many images"):
        prepare(tiny(**options, class_weights="balanced"))
    file = table(tmp_path, *(f"{name},{number}" for number, name in enumerate(NAMES, start=1)))
    loss: Any = prepare(tiny(**options, class_weights=file)).module.train_loss
    assert float(loss.criterion.weight.mean()) == pytest.approx(1)


def test_not_both_balanced(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="sampling and class_weights balanced both even out the classes"):
        tiny(sampling="balanced", class_weights="balanced")
