"""What is not finite is found late, and named as if it had been found at once."""

from typing import Any

import pytest
import timm
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conformer_vision import ClassifierModule
from conformer_vision.training import pace
from conformer_vision.training.guard import Guard, TrainingDivergedError
from conformer_vision.training.watch import Pass, Watch

AT = 5
"""Optimizer steps done when it happens, of 12 in an epoch."""
Weights = dict[str, Tensor]


def fit(*callbacks: Callback, poison: bool = False, **options: Any) -> ClassifierModule:
    """Train an epoch in one's own Trainer."""
    torch.manual_seed(0)
    images, labels = torch.randn(48, 3, 32, 32), torch.arange(48) % 4
    accumulate = options.get("accumulate_grad_batches", 1)
    if poison:
        images[(AT * accumulate + accumulate - 1) * 4 // accumulate, 0, 0, 0] = torch.nan
    model = timm.create_model("test_resnet", num_classes=4)
    module = ClassifierModule(
        model, optimizer=lambda each: torch.optim.AdamW(each.parameters(), lr=1e-3, weight_decay=0.1)
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    module.failed = None  # type: ignore[assignment]
    loader = DataLoader(TensorDataset(images, labels), batch_size=4 // accumulate)
    try:
        trainer.fit(module, loader)
    except TrainingDivergedError as error:
        module.failed = str(error)  # type: ignore[assignment]
    return module


class Harm(Callback):
    """Makes the gradient of one parameter not a number in one step."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == AT:
            pl_module.model.get_parameter("layer2.0.conv1.weight").grad[0] = torch.nan


@pytest.fixture(autouse=True)
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first step is looked at, and then the end."""
    monkeypatch.setattr(pace, "SECONDS", 1e6)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*_pytree:FutureWarning")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_step_is_named_and_the_weights_are_those_before_it(accumulate: int) -> None:
    """Though all steps after it spoiled them further."""
    options = {"accumulate_grad_batches": accumulate}
    failed = fit(Guard(), poison=True, **options)
    assert f"in epoch 1 at step {AT} (lr 0.001, 32)" in str(failed.failed)
    assert "the images of the batch hold values that are not finite" in str(failed.failed)
    before = fit(limit_train_batches=AT * accumulate, **options)
    assert before.failed is None
    assert all(map(torch.equal, failed.parameters(), before.parameters()))


def test_the_first_gradient_is_named() -> None:
    failed = fit(Guard(), Harm())
    assert f"at step {AT} " not in str(fit(Harm()).failed), "nothing looks without the guard"
    assert f"at step {AT} " in str(failed.failed)
    assert "the loss is finite, the gradient of layer2.0.conv1.weight is not" in str(failed.failed)
    assert all(map(torch.equal, failed.parameters(), fit(limit_train_batches=AT).parameters()))


def test_it_is_found_before_anything_is_saved(tmp_path: Any) -> None:
    class Saving(Callback):
        saved = 0

        def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")
            self.saved += 1

    failed, saving = fit(Guard(), saving := Saving(), poison=True), saving
    assert f"at step {AT} " in str(failed.failed)
    assert saving.saved == AT, "the step that spoils the weights is not saved"


def watched(
    losses: list[float], sizes: list[int], frozen: int | None = None
) -> tuple[Any, list[Tensor], Any]:
    """Passes of a network whose loss is multiplied by each of the numbers; what is found, and the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    optimizer, watch, weights = torch.optim.SGD(model.parameters(), lr=0.1), Watch(), []
    for number, (factor, size) in enumerate(zip(losses, sizes, strict=True)):
        model[0].requires_grad_(frozen is None or number >= frozen)
        images = torch.full((size, 1), float(number))
        weights.append(torch.cat([each.detach().flatten().clone() for each in model.parameters()]))
        optimizer.zero_grad()
        loss = model(images).square().mean() * factor
        watch.loss(Pass(1, number, 0.1, None, None), images, loss)
        loss.backward()
        watch.gradients(model)
        watch.before_step(model)
        optimizer.step()
    found = watch.found()
    return found, weights, torch.cat([each.detach().flatten() for each in model.parameters()])


@pytest.mark.parametrize("sizes", [[2] * 5, [2, 2, 2, 3, 3], [2, 3, 2, 3, 2]], ids=str)
@pytest.mark.parametrize("frozen", [None, 1, 2, 3, 4], ids="all learn from {}".format)
def test_images_of_other_sizes_and_layers_that_begin_to_learn(sizes: list[int], frozen: int | None) -> None:
    found, weights, now = watched([1, 1, float("inf"), 1, 1], sizes, frozen)
    assert (found.bad, found.at.step, found.parameter) == (True, 2, None)
    assert torch.equal(found.images, torch.full((sizes[2], 1), 2.0))
    assert torch.equal(now, weights[2])


def test_what_is_finite_is_left_alone() -> None:
    found, _, now = watched([1.0] * 3, [2] * 3)
    assert (found.bad, found.at.step) == (False, 2)
    assert bool(now.isfinite().all())
