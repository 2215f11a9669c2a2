"""fastai's vision_learner: by name; a function would be cut, and is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from clients import NAME, WITHOUT, check_gradients, check_losses, fresh_process, images

pytest.importorskip("fastai", reason=WITHOUT)

from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.learner import unet_learner, vision_learner


def loaders() -> Any:
    x = images()
    return DataLoaders.from_dsets([(x[i % 2], torch.tensor(i % 2)) for i in range(6)], [(x[0], 0)] * 2, bs=2)


def options() -> dict[str, Any]:
    return {"pretrained": False, "n_out": 2, "loss_func": CrossEntropyLossFlat()}


class Losses(Callback):  # type: ignore[misc]
    """Keeps the loss of each step, and looks at the gradients before they are cleared."""

    def before_fit(self) -> None:
        self.history: list[float] = []

    def before_step(self) -> None:
        self.history.append(self.learn.loss.item())
        if len(self.history) == 3:
            check_gradients(self.learn.model)


AGAIN = """
import sys
import torch
sys.path += [sys.argv[1], sys.argv[2]]
import conformer_vision
from test_fastai import learner_by_name
learner = learner_by_name(sys.argv[3])
learner.load("trained")
with torch.inference_mode():
    torch.save(learner.model.eval()(torch.load(sys.argv[4])), sys.argv[5])
"""


def learner_by_name(folder: Path | str) -> Any:
    return vision_learner(loaders(), NAME, path=folder, **options())


def test_by_name(tmp_path: Path) -> None:
    learner = learner_by_name(tmp_path)
    assert type(learner.model[0].model).__name__ == "Conformer"
    losses = Losses()
    learner.fit(1, cbs=losses)
    check_losses(losses.history)
    learner.save("trained")
    torch.save(images(), tmp_path / "images.pt")
    with torch.inference_mode():
        expected = learner.model.eval()(images())
    here = Path(__file__).parent
    places = here, here.parent / "support", tmp_path
    fresh_process(AGAIN, *places, tmp_path / "images.pt", tmp_path / "answer.pt")
    torch.testing.assert_close(torch.load(tmp_path / "answer.pt"), expected)


@pytest.mark.parametrize("learner", [vision_learner, unet_learner])
def test_by_function_is_refused(learner: Any) -> None:
    """Cut behind its last pooling, the network would be its stem alone."""
    with pytest.raises(RuntimeError, match="give its name instead of its function"):
        learner(loaders(), timm.model_entrypoint(NAME), **options())
