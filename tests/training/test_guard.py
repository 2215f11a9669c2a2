"""A training that diverges: where it began is named, and the last good state is kept."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformer_vision.cli import main
from conformer_vision.data import datamodule
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.guard import TrainingDivergedError
from conformer_vision.training.losses import BranchLoss
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.run import resume
from conformer_vision.weights import load_model

pytestmark = pytest.mark.usefixtures("without_curves")
Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
AT = 6
"""Steps done when it happens: in the second epoch of four steps."""


class Poison(torch.autograd.Function):
    """Leaves the values as they are and makes the gradient not a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * torch.nan


@pytest.fixture
def diverging(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[TrainingDivergedError, dict[str, Any]]]:
    """Trains and lets ``harm`` the module after so many steps; what is raised, and not_finite.json."""

    def start(
        harm: Callable[[ClassifierModule, Any], None], **changes: Any
    ) -> tuple[TrainingDivergedError, dict[str, Any]]:
        step = ClassifierModule.training_step

        def training_step(self: ClassifierModule, batch: Any, number: int) -> Tensor:
            if self.trainer.global_step == AT:
                harm(self, batch)
            return step(self, batch, number)

        monkeypatch.setattr(ClassifierModule, "training_step", training_step)
        output = tmp_path / "run"
        settings = {"epochs": 3, "max_steps": None, "lr": 0.01, "warmup_epochs": 0.0, "output": str(output)}
        with pytest.raises(TrainingDivergedError) as caught:
            train(tiny(**settings | changes))
        text = (output / "not_finite.json").read_text(encoding="utf-8")
        assert "NaN" not in text
        report = json.loads(text)
        line = str(caught.value)
        assert "\n" not in line
        assert f"training diverged in epoch 2 at step {AT} (lr " in line
        assert report["remedy"] in line
        assert (report["epoch"], report["step"], report["precision"]) == (
            2, AT, changes.get("precision", "32"),
        )  # fmt: skip
        assert 0 < report["lr"] < 0.01
        return caught.value, report

    return start


def of_module(name: str) -> Callable[[ClassifierModule, Any], None]:
    """From now on the module's output is infinite in one place."""

    def poison(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = output if isinstance(output, Tensor) else output[0]
        first = torch.where(torch.arange(first.numel()).reshape(first.shape) == 0, torch.inf, first)
        return first if isinstance(output, Tensor) else (first, *output[1:])

    return lambda module, batch: void(module.model.get_submodule(name).register_forward_hook(poison))


def void(_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("stem.conv", "stem"),
        ("patch_embed", "transformer branch"),
        ("blocks.1.bottleneck.conv2", "convolution branch"),
        ("blocks.2.fusion.conv1", "convolution branch"),
        ("blocks.2.transformer.mlp.fc1", "transformer branch"),
        ("blocks.2.fcu_down", "coupling from the convolution to the transformer branch"),
        ("blocks.2.fcu_up", "coupling from the transformer to the convolution branch"),
        ("conv_head", "convolution branch"),
        ("trans_head", "transformer branch"),
    ],
)
def test_the_first_module_is_named(diverging: Callable[..., Any], name: str, branch: str) -> None:
    error, report = diverging(of_module(name))
    assert report["what"] == "output"
    assert report["module"] == name
    assert report["branch"] == branch
    assert f"the output of {name} ({branch}) is the first that is not finite" in str(error)
    assert "lower lr (to " in report["remedy"]


def test_images(diverging: Callable[..., Any], images: Path) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        batch.images[2, 0, 3, 3] = torch.nan

    error, report = diverging(harm)
    assert (report["what"], report["module"], report["branch"]) == ("input", "", "")
    assert "the images of the batch hold values that are not finite" in str(error)
    assert len(report["images"]) == 8
    assert all(Path(name).is_file() for name in report["images"])
    assert "lr" not in report["remedy"].split()


def test_weights(diverging: Callable[..., Any]) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        with torch.no_grad():
            module.model.blocks[3].transformer.attn.qkv.weight[1, 2] = torch.inf

    error, report = diverging(harm)
    assert report["what"] == "weights"
    assert report["module"] == "blocks.3.transformer.attn.qkv.weight"
    assert report["branch"] == "transformer branch"
    assert "the weights blocks.3.transformer.attn.qkv.weight (transformer branch)" in str(error)


def test_loss_alone(diverging: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        forward = BranchLoss.forward
        monkeypatch.setattr(BranchLoss, "forward", lambda *inputs: forward(*inputs) * torch.inf)

    error, report = diverging(harm)
    assert (report["what"], report["branch"]) == ("loss", "")
    assert "all outputs are finite, the loss is not" in str(error)


def test_gradient_alone(diverging: Callable[..., Any]) -> None:
    """From the head on; of all parameters before it, the first in the network's order is named."""

    def harm(module: ClassifierModule, batch: Any) -> None:
        module.model.trans_head.register_forward_pre_hook(lambda _, inputs: (Poison.apply(inputs[0]),))

    error, report = diverging(harm)
    assert report["what"] == "gradient"
    assert "the loss is finite, the gradient of" in str(error)
    assert report["module"] == "cls_token", (
        "the class token is the first parameter that the head's input needs"
    )
    assert report["images"]


def test_gradient_of_one_parameter(diverging: Callable[..., Any]) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        weight = module.model.get_parameter("blocks.2.fcu_up.proj.weight")
        weight.register_hook(lambda gradient: gradient * torch.nan)

    _, report = diverging(harm)
    assert (report["what"], report["module"]) == ("gradient", "blocks.2.fcu_up.proj.weight")
    assert report["branch"] == "coupling from the transformer to the convolution branch"


def test_precision_is_named_with_its_remedy(diverging: Callable[..., Any]) -> None:
    _, report = diverging(of_module("conv_head"), precision="bf16-mixed")
    assert "use precision 32" in report["remedy"]
    assert report["module"] == "conv_head"


def test_a_network_without_branches(diverging: Callable[..., Any]) -> None:
    error, report = diverging(of_module("layer2.0.conv1"), model="resnet18", model_kwargs={})
    assert (report["module"], report["branch"]) == ("layer2.0.conv1", "")
    assert "the output of layer2.0.conv1 is the first" in str(error)


@pytest.mark.parametrize("save_minutes", [15.0, 1e-9])
def test_the_last_good_state_is_kept(
    diverging: Callable[..., Any], tiny: Tiny, tmp_path: Path, weights: Weights, save_minutes: float
) -> None:
    """Of the end of the epoch before, or of the step before: what a whole run has there."""
    good = 4 if save_minutes == 15 else AT
    diverging(of_module("stem.conv"), save_minutes=save_minutes)
    run = tmp_path / "run"
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert state["global_step"] == good
    kept = weights(run)
    assert all(tensor.isfinite().all() for tensor in kept.values() if tensor.is_floating_point())
    mine = {name.removeprefix("model."): tensor for name, tensor in state["state_dict"].items()}
    assert all(torch.equal(kept[name], mine[name]) for name in kept)
    load_model(run / "best.safetensors")
    assert len((run / "metrics.csv").read_text().splitlines()) == 2


def test_it_can_go_on_afterwards(
    diverging: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        batch.images.fill_(torch.nan)

    step = ClassifierModule.training_step
    diverging(harm)
    monkeypatch.setattr(ClassifierModule, "training_step", step)
    resume(tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 4


def test_parts_of_an_accumulated_step(diverging: Callable[..., Any], tmp_path: Path) -> None:
    _, report = diverging(of_module("trans_head"), accumulate=2)
    assert report["module"] == "trans_head"
    assert len(report["images"]) == 4


def test_exit_status(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step: there is no good state, but what was found is kept."""
    build = datamodule.build_transform

    def broken(**options: Any) -> Any:
        transform = build(**options)
        return (lambda image: transform(image) * torch.nan) if options["augment"] else transform

    monkeypatch.setattr(datamodule, "build_transform", broken)
    output, errors = tmp_path / "run", io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = main(
            [
                "train",
                f"--data={images}",
                "--model=conformer_nano_patch8_64",
                "--model_kwargs.depths=[2,1,2]",
                *("--input_size=32", "--batch_size=8", "--workers=0", "--device=cpu", f"--output={output}"),
            ]
        )
    assert status == 2
    line = errors.getvalue()
    assert line.startswith("error: training diverged in epoch 1 at step 0 (lr ")
    assert line.count("\n") == 1
    assert str(output / "not_finite.json") in line
    assert json.loads((output / "not_finite.json").read_text())["what"] == "input"
