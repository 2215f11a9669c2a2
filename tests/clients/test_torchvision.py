"""torchvision's detectors on a Conformer: its feature levels behind torchvision's own pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from clients import HEIGHT, NAME, WIDTH, fresh_process, images, three_steps

pytest.importorskip("transformers", reason="the clients are tested together; make test-clients installs them")

TARGETS = [
    {
        "boxes": torch.tensor([[10.0, 20.0, 150.0, 200.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, HEIGHT, WIDTH, dtype=torch.uint8),
    }
    for _ in range(2)
]


class Pyramid(nn.Module):
    """A backbone as torchvision's detectors want it: named maps of equal width."""

    def __init__(self, name: str, width: int = 32) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), width, LastLevelMaxPool())
        self.out_channels = width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict((str(level), each) for level, each in enumerate(self.body(x)))
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid


SIZE: dict[str, Any] = {"num_classes": 3, "min_size": HEIGHT, "max_size": WIDTH}


def faster_rcnn() -> nn.Module:
    return FasterRCNN(Pyramid(NAME), box_detections_per_img=5, box_score_thresh=0.0, **SIZE)


def retina_net() -> nn.Module:
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    return RetinaNet(Pyramid(NAME), anchor_generator=anchors, score_thresh=0.0, detections_per_img=5, **SIZE)


def mask_rcnn() -> nn.Module:
    return MaskRCNN(Pyramid(NAME), box_detections_per_img=5, box_score_thresh=0.0, **SIZE)


AGAIN = """
import sys
import torch
sys.path += [sys.argv[1], sys.argv[2]]
import conformer_vision
import test_torchvision
model = getattr(test_torchvision, sys.argv[3])()
saved = torch.load(sys.argv[4], weights_only=True)
model.load_state_dict(saved["state"])
with torch.inference_mode():
    torch.save(model.eval()(saved["images"]), sys.argv[5])
"""


@pytest.mark.parametrize("build", [faster_rcnn, retina_net, mask_rcnn])
def test_three_steps(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = build()
    batch = list(images())
    three_steps(model, lambda: sum(model(batch, TARGETS).values(), torch.tensor(0.0)))
    model.eval()
    with torch.inference_mode():
        found = model(batch)
    assert all(each["boxes"].isfinite().all() for each in found)
    assert len(found[0]["boxes"]) > 0
    torch.save({"state": model.state_dict(), "images": batch}, tmp_path / "saved.pt")
    here = Path(__file__).parent
    support = here.parent / "support"
    fresh_process(AGAIN, here, support, build.__name__, tmp_path / "saved.pt", tmp_path / "answer.pt")
    answer = torch.load(tmp_path / "answer.pt", weights_only=True)
    for actual, expected in zip(answer, found, strict=True):
        torch.testing.assert_close(actual, expected)
