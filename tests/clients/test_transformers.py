"""transformers: Conformers by name in its wrappers of timm, once conformer_vision is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from clients import (
    HEIGHT,
    NAME,
    SHALLOW,
    WIDTH,
    WITHOUT,
    check_gradients,
    check_losses,
    fresh_process,
    images,
    padded,
    three_steps,
)
from conformer_vision import Conformer

transformers = pytest.importorskip("transformers", reason=WITHOUT)

LABELS = {0: "cat", 1: "dog", 2: "owl"}
BOXES = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}] * 2


# ---- classification --------------------------------------------------------------------------------


def classifier() -> Any:
    config = transformers.TimmWrapperConfig.from_dict(
        {
            "architecture": NAME,
            "num_classes": 3,
            "label_names": list(LABELS.values()),
            "model_args": {**SHALLOW, "depths": [2, 1, 2]},
            "pretrained_cfg": {"input_size": [3, HEIGHT, WIDTH], "crop_pct": 1.0, "crop_mode": "squash"},
        }
    )
    return transformers.TimmWrapperForImageClassification(config)


class Photos(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": images()[index % 2], "labels": index % 3}


class Seen(transformers.TrainerCallback):  # type: ignore[misc]
    """Looks at the gradients of the third step."""

    steps = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps += 1
        if self.steps == 3:
            check_gradients(model)


AGAIN = """
import sys
import conformer_vision
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
import torch
from PIL import Image
folder, photo, answer = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
with torch.inference_mode():
    logits = model(**processor(Image.open(photo), return_tensors="pt")).logits
(first, *_) = pipeline("image-classification", model=folder)(photo)
torch.save({"logits": logits, "label": first["label"], "score": first["score"]}, answer)
"""


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_trainer(checkpointing: bool, tmp_path: Path) -> None:
    model = classifier()
    args = transformers.TrainingArguments(
        output_dir=tmp_path / "run",
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_checkpointing=checkpointing,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-3,
        disable_tqdm=True,
    )
    seen = Seen()
    trainer = transformers.Trainer(model=model, args=args, train_dataset=Photos(), callbacks=[seen])
    trainer.train()
    check_losses([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert seen.steps == 3
    assert model.timm_model.grad_checkpointing == ("full" if checkpointing else "off")
    if not checkpointing:
        return
    folder, photo, answer = tmp_path / "run" / "checkpoint-3", tmp_path / "photo.png", tmp_path / "answer.pt"
    pixels = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(photo)
    prepared = transformers.AutoImageProcessor.from_pretrained(folder)(Image.open(photo), return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**prepared).logits
    fresh_process(AGAIN, folder, photo, answer)
    found = torch.load(answer, weights_only=True)
    torch.testing.assert_close(found["logits"], logits)
    assert found["label"] == LABELS[int(logits.argmax())]
    assert found["score"] == pytest.approx(float(logits.softmax(1).max()), abs=1e-5)


# ---- backbone --------------------------------------------------------------------------------------


def backbone(indices: list[int]) -> Any:
    return transformers.TimmBackboneConfig(backbone=NAME, out_indices=indices)


SMALL: dict[str, Any] = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 10}
HEADS: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_layers": 1}


def with_norms(model: Any) -> Any:
    """Give a detector that freezes its norms some that are not zero.

    nano's begin at zero, so that nothing behind them would ever learn (docs/backbone.md).
    """
    started = timm.create_model(NAME, num_classes=0, zero_init_last=False)
    backbone = next(part for part in model.modules() if isinstance(part, Conformer))
    lacks, unknown = backbone.load_state_dict(started.state_dict(), strict=False)
    assert not lacks and all(name.startswith("norm.") for name in unknown)
    return model


def detr() -> Any:
    config = transformers.DetrConfig(
        backbone_config=backbone([4]), encoder_layers=1, num_labels=3, **SMALL, **HEADS
    )
    return with_norms(transformers.DetrForObjectDetection(config))


def rt_detr() -> Any:
    config = transformers.RTDetrConfig(
        backbone_config=backbone([2, 3, 4]),
        encoder_in_channels=[192, 384, 384],
        decoder_in_channels=[32] * 3,
        encoder_hidden_dim=32,
        num_denoising=4,
        num_labels=3,
        **SMALL,
        **HEADS,
    )
    return with_norms(transformers.RTDetrForObjectDetection(config))


def uper_net() -> Any:
    config = transformers.UperNetConfig(
        backbone_config=backbone([1, 2, 3, 4]), hidden_size=32, num_labels=3, use_auxiliary_head=False
    )
    return transformers.UperNetForSemanticSegmentation(config)


def mask2former() -> Any:
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone([1, 2, 3, 4]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        num_labels=3,
        train_num_points=64,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


MASKS: dict[str, Any] = {
    "mask_labels": [torch.ones(1, HEIGHT, WIDTH)] * 2,
    "class_labels": [torch.tensor([1])] * 2,
}
USES: dict[str, tuple[Any, Tensor, dict[str, Any]]] = {
    "DETR": (detr, images(), {"labels": BOXES}),
    "RT-DETR": (rt_detr, padded(), {"labels": BOXES}),
    "UperNet": (uper_net, images(), {"labels": torch.zeros(2, HEIGHT, WIDTH, dtype=torch.long)}),
    "Mask2Former": (mask2former, images(), MASKS),
}
RELOAD = """
import sys
import conformer_vision
import torch, transformers
name, folder, inputs, answer = sys.argv[1:]
model = getattr(transformers, name).from_pretrained(folder).eval()
with torch.inference_mode():
    found = model(pixel_values=torch.load(inputs))
torch.save(next(found[key] for key in ("logits", "class_queries_logits") if key in found), answer)
"""


@pytest.mark.parametrize("client", USES)
def test_backbone(client: str, tmp_path: Path) -> None:
    build, x, target = USES[client]
    model = build()
    three_steps(model, lambda: model(pixel_values=x, **target).loss, lr=1e-4)
    model.eval()
    with torch.inference_mode():
        found = model(pixel_values=x)
    expected = next(found[key] for key in ("logits", "class_queries_logits") if key in found)
    model.save_pretrained(tmp_path / "saved")
    torch.save(x, tmp_path / "x.pt")
    fresh_process(RELOAD, type(model).__name__, tmp_path / "saved", tmp_path / "x.pt", tmp_path / "answer.pt")
    torch.testing.assert_close(torch.load(tmp_path / "answer.pt"), expected, rtol=1e-4, atol=1e-4)


BUNDLED = "conformer_nano_patch8_64"


def test_from_pretrained_blanks_the_statistics_and_the_recipe_does_not() -> None:
    """The pitfall that docs/backbone.md names: transformers resets the BatchNorms that timm has loaded."""
    source = timm.create_model(BUNDLED, pretrained=True, features_only=True)
    blank = transformers.TimmBackbone.from_pretrained(BUNDLED, out_indices=[0, 1, 2, 3])
    norm = next(each for each in blank.modules() if isinstance(each, torch.nn.BatchNorm2d))
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))

    config = transformers.TimmBackboneConfig(backbone=BUNDLED, out_indices=[0, 1, 2, 3])
    right = transformers.TimmBackbone(config)
    right._backbone.load_state_dict(source.state_dict())
    with torch.inference_mode():
        maps = right.eval()(images()).feature_maps
        for actual, expected in zip(maps, source.eval()(images()), strict=True):
            torch.testing.assert_close(actual, expected)
