"""Draw what the networks of benchmarks/dense.py answer for test images.

    python docs/figures/dense.py DIR/localization

Rows from above: the images, their true masks, and the answers of the networks in the order of their table:
masks and, for the one that starts from the bundled weights, boxes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from conformer_vision.files import atomic_path  # noqa: E402
from dense import ROWS, TASKS, Set, normalizer, read_set  # noqa: E402

LEAST_SCORE = 0.3
"""Of a box that is drawn."""
COLORS = np.random.default_rng(7).integers(60, 256, (64, 3)).astype(np.uint8)


def draw_figure(data: Path, weights: Path, path: Path, *, number: int = 6) -> None:
    """Draw test images, their true masks, and what the trained networks answer."""
    test = read_set(data, "test")
    places = torch.linspace(0, len(test) - 1, 2 * number + 1).round().long()[1::2].tolist()
    few = Set(
        test.images[places],
        test.masks[places],
        [test.boxes[place] for place in places],
        [test.labels[place] for place in places],
        test.classes,
    )
    plain = [image.permute(1, 2, 0).numpy() for image in few.images]
    rows = [plain, [painted(i, m.numpy()) for i, m in zip(plain, few.masks, strict=True)]]
    for row in ROWS:
        for name, make in TASKS.items():
            file = weights / f"{name}--{row.name.replace(' ', '-')}--0.safetensors"
            if not file.is_file() or (name == "detection" and not row.pretrained):
                continue
            task = make()
            model = task.build(row, few).eval()
            model.load_state_dict(load_file(file))
            answers = task.answers(model, few, normalizer(row.encoder))
            draw = painted if name == "segmentation" else boxed
            rows.append([draw(i, a) for i, a in zip(plain, answers, strict=True)])
    sheet = np.concatenate([np.concatenate(each, axis=1) for each in rows], axis=0)
    image = Image.fromarray(sheet)
    with atomic_path(path) as temporary:
        image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS).save(
            temporary, quality=88
        )


def painted(image: NDArray[np.uint8], mask: Any) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) with its mask (H, W) over it, a colour per class."""
    mask = np.asarray(mask)
    blended = 0.35 * image + 0.65 * COLORS[mask]
    result: NDArray[np.uint8] = np.where(mask[..., None] > 0, blended, image).astype(np.uint8)
    return result


def boxed(image: NDArray[np.uint8], found: dict[str, Tensor]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) with its boxes, a colour per class."""
    result = image.copy()
    for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
        if score >= LEAST_SCORE:
            left, top, right, bottom = box.round().int().clamp(0, len(image) - 1).tolist()
            for line in (np.s_[top : bottom + 1, [left, right]], np.s_[[top, bottom], left : right + 1]):
                result[line] = COLORS[label]
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw the answers of benchmarks/dense.py")
    parser.add_argument("data", type=Path, help="folder that localization_set.py wrote")
    parser.add_argument("--weights", type=Path, default=Path("runs/dense"), help="where trained weights are")
    parser.add_argument("--out", type=Path, default=HERE / "dense.jpg", help="the file to write")
    options = parser.parse_args()
    draw_figure(options.data, options.weights, options.out)


if __name__ == "__main__":
    main()
