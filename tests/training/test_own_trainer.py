"""The module in somebody else's lightning.Trainer, with plain batches of (images, labels)."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from command_line import NETWORK
from conformer_vision import ClassifierModule
from conformer_vision.errors import UserError
from conformer_vision.training.guard import Guard, TrainingDivergedError
from conformer_vision.training.seeding import StepSeeds

MODELS: dict[str, dict[str, Any]] = {
    "conformer_nano_patch8_64": NETWORK,
    "test_resnet": {},
}


def loader(poison: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 8
    if poison:
        images[9, 0, 0, 0] = torch.nan
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def module(name: str) -> ClassifierModule:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=8, **MODELS[name])
    return ClassifierModule(
        model,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
    )


def trainer(folder: Path, *, epochs: int, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*_pytree:FutureWarning")


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_validates_saves_and_resumes(name: str, tmp_path: Path) -> None:
    """By lightning's own checkpoint: what is resumed ends as what was trained in one go."""
    first = trainer(tmp_path, epochs=1, callbacks=[StepSeeds(0)])
    first.fit(module(name), loader(), loader())
    heads = ("conv", "trans", "fused") if name.startswith("conformer") else ("fused",)
    scores = {f"val_top1_{head}" for head in heads}  # top-5 says little of ten classes
    assert set(first.callback_metrics) == {"train_loss", "val_loss", *scores}
    saved = first.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    whole, rest = module(name), module(name)
    trainer(tmp_path, epochs=2, callbacks=[StepSeeds(0)]).fit(whole, loader(), loader())
    second = trainer(tmp_path, epochs=2, callbacks=[StepSeeds(0)])
    torch.manual_seed(99)
    second.fit(rest, loader(), loader(), ckpt_path=saved)
    assert second.global_step == 4
    ends = rest.state_dict()
    assert all(torch.equal(ends[key], tensor) for key, tensor in whole.state_dict().items())
    again = ClassifierModule.load_from_checkpoint(saved, model=module(name).model)
    found, wanted = (
        trainer(tmp_path, epochs=1).test(again, loader(), verbose=False)[0],
        first.callback_metrics,
    )
    for score in scores:
        assert found[score.replace("val", "test")] == pytest.approx(float(wanted[score]))
    assert found["test_loss"] == pytest.approx(float(wanted["val_loss"]), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_it_predicts_the_fused_logits(name: str, tmp_path: Path) -> None:
    classifier = module(name)
    parts: Any = trainer(tmp_path, epochs=1).predict(classifier, loader())
    images = torch.cat([batch[0] for batch in loader()])
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts), classifier.model.eval()(images))


def test_guard_names_what_is_not_finite(tmp_path: Path) -> None:
    classifier = module("test_resnet")
    with pytest.raises(TrainingDivergedError, match="images of the batch hold values that are not finite"):
        trainer(tmp_path, epochs=1, callbacks=[Guard()]).fit(classifier, loader(poison=True))
    weights = classifier.model.parameters()
    assert all(bool(weight.isfinite().all()) for weight in weights), "the step was not taken"


def test_an_optimizer_that_is_made_already(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.get_classifier().weight.detach().clone()
    trainer(tmp_path, epochs=1).fit(ClassifierModule(model, optimizer=optimizer), loader())
    assert not torch.equal(model.get_classifier().weight, before)


def test_number_of_classes_must_be_known() -> None:
    with pytest.raises(UserError, match="num_classes None: must be 2 or more"):
        ClassifierModule(nn.Linear(4, 2))
