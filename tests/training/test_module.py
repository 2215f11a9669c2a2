"""The step of training and of validation, for networks with two heads and with one."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformer_vision.data.base import NOT_COUNTED
from conformer_vision.data.handover import Batch
from conformer_vision.inference.intervals import share, share_of_groups
from conformer_vision.training import TrainConfig
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.seeding import StepSeeds
from option_tools import batch, module

Tiny = Callable[..., TrainConfig]


def make(config: TrainConfig, num_classes: int) -> ClassifierModule:
    return module(config, num_classes=num_classes, steps_per_epoch=4)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a module logs, without a trainer."""
    values: dict[str, Any] = {}
    monkeypatch.setattr(ClassifierModule, "log", lambda self, name, value, **_: values.update({name: value}))
    return values


def make_batch(num_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6) % num_classes


def test_training_step_of_two_heads(tiny: Tiny, logged: dict[str, Any]) -> None:
    classifier = make(tiny(label_smoothing=0.0), 3).train()
    images, target = make_batch(3)
    loss = classifier.training_step(batch(images, target), 0)
    classifier.model.set_distilled_training(True)
    conv, trans = classifier.model(images)  # BatchNorm uses this batch's statistics, as before
    criterion = nn.CrossEntropyLoss()
    torch.testing.assert_close(loss, (criterion(conv, target) + criterion(trans, target)) / 2)
    assert logged["train_loss"] is loss
    loss.backward()
    unused = [name for name, parameter in classifier.model.named_parameters() if parameter.grad is None]
    assert not unused, "a branch does not learn"


@pytest.mark.parametrize("num_classes", [10, 11])
def test_validation_of_two_heads(tiny: Tiny, logged: dict[str, Any], num_classes: int) -> None:
    """Over an epoch of batches of different sizes, some of whose images do not count."""
    classifier = make(tiny(), num_classes).eval()
    images, target = make_batch(num_classes)
    target[4] = NOT_COUNTED
    counted = target != NOT_COUNTED
    with torch.no_grad():
        for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
            classifier.validation_step(batch(images[part], target[part]), 0)
        classifier.on_validation_epoch_end()
        branches = classifier.model.forward_branches(images)
    outputs = branches._asdict() | {"fused": classifier.model(images)}
    wanted = {"val_loss"} | {f"val_top1_{head}" for head in outputs}
    if num_classes == 11:  # of fewer classes top-5 says little
        wanted |= {f"val_top5_{head}" for head in outputs}
    assert logged.keys() == wanted
    for head, logits in outputs.items():
        right = (logits.argmax(1) == target)[counted].float().mean()
        torch.testing.assert_close(logged[f"val_top1_{head}"], right)
        if num_classes == 11:
            among = (logits.topk(5, dim=1).indices == target[:, None]).any(1)[counted].float().mean()
            torch.testing.assert_close(logged[f"val_top5_{head}"], among)
    criterion = nn.CrossEntropyLoss()  # never smoothed
    losses = [criterion(logits[counted], target[counted]) for logits in branches]
    torch.testing.assert_close(logged["val_loss"], (losses[0] + losses[1]) / 2)

    right = int((outputs["fused"].argmax(1) == target)[counted].sum())
    assert classifier.val_summary is not None
    assert classifier.val_summary.figures["top1_fused"] == share(right, int(counted.sum()))


def test_intervals_by_groups_draw_groups(tiny: Tiny, logged: dict[str, Any]) -> None:
    classifier = ClassifierModule(
        make(tiny(), 3).model, val_groups=["a", "b", "a", "c", "b", "c", "d"]
    ).eval()
    images, target = make_batch(3)
    target[4] = NOT_COUNTED
    numbers = torch.tensor([5, 4, 3, 2, 1, 0])
    with torch.no_grad():
        for _ in range(2):  # each validation begins anew
            for part in (slice(0, 4), slice(4, 6)):
                classifier.validation_step(Batch(images[part], target[part], numbers[part], []), 0)
            classifier.on_validation_epoch_end()
        right = (classifier.model(images).argmax(1) == target).int().tolist()
    # c: images 0 and 2; b: image 1; a: images 3 and 5; image 4 does not count, and of d there is none.
    wanted = share_of_groups([right[0] + right[2], right[1], right[3] + right[5]], [2, 1, 2])
    assert classifier.val_summary is not None
    assert classifier.val_summary.figures["top1_fused"] == wanted
    assert wanted.value == pytest.approx(float(logged["val_top1_fused"]))


def test_every_validation_begins_anew(tiny: Tiny, logged: dict[str, Any]) -> None:
    classifier = make(tiny(), 3).eval()
    images, target = make_batch(3)
    seen = []
    with torch.no_grad():
        for part in (slice(0, 2), slice(2, 6), slice(0, 2)):
            classifier.validation_step(batch(images[part], target[part]), 0)
            classifier.on_validation_epoch_end()
            seen.append(dict(logged))
    assert seen[0] == seen[2] != seen[1]


def test_network_with_one_head(tiny: Tiny, logged: dict[str, Any]) -> None:
    classifier = make(tiny(model="test_resnet", model_kwargs={}, label_smoothing=0.0), 3)
    images, target = make_batch(3)
    loss = classifier.train().training_step(batch(images, target), 0)
    torch.testing.assert_close(loss, nn.CrossEntropyLoss()(classifier.model(images), target))
    with torch.no_grad():
        classifier.eval().validation_step(batch(images, target), 0)
        classifier.on_validation_epoch_end()
    assert logged.keys() == {"train_loss", "val_loss", "val_top1_fused"}


def test_schedule_goes_through_a_checkpoint_as_plain_numbers(tiny: Tiny) -> None:
    """Otherwise the checkpoint could be read only by running code from it."""
    parts: Any = make(tiny(), 3).configure_optimizers()
    state = parts["lr_scheduler"]["scheduler"].state_dict()
    assert state.pop("lr_lambdas") == [None, None]
    assert all(isinstance(value, int | float | bool | list | str) for value in state.values())


def test_a_step_draws_from_a_seed_of_its_own(tiny: Tiny, logged: dict[str, Any]) -> None:
    """MixUp and stochastic depth are those of the epoch and the batch, whatever was drawn before."""
    classifier = make(tiny(mixup=0.5, cutmix=0.5, drop_path_rate=0.5), 3).train()
    images, target = make_batch(3)
    seeds = StepSeeds(0)
    trainer: Any = SimpleNamespace(global_rank=0, current_epoch=0)

    def loss(number: int) -> float:
        seeds.on_train_batch_start(trainer, classifier, None, number)
        return float(classifier.training_step(batch(images.clone(), target), number).detach())

    first = [loss(number) for number in range(4)]
    assert len(set(first)) == 4
    torch.manual_seed(99)
    assert [loss(number) for number in (3, 1, 0, 2)] == [first[number] for number in (3, 1, 0, 2)]
