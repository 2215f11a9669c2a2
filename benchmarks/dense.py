r"""Train a segmentation and a detection network with a Conformer inside, beside others in equal time.

    python benchmarks/localization_set.py DIR/tiny-imagenet-200 DIR/localization \
        --size 96 --shape ellipse --soft 2
    python benchmarks/dense.py --data DIR/localization --run segmentation
    python benchmarks/dense.py --data DIR/localization --run detection
    python docs/figures/dense.py DIR/localization

Run it with the libraries of ``make test-clients`` (``.venv-clients/bin/python``). Segmentation is the Unet of
segmentation_models.pytorch, detection the FasterRCNN of torchvision, both as docs/backbone.md builds them.
Each row trains for ``--minutes`` of processor time, whatever a network makes of it, and is stored in results/
with its weights when it is complete; the same command goes on with the rows that are left.

- *mIoU*: intersection over union of the 20 classes and the background over all pixels of the test images,
  with a 95 % interval from 1,000 bootstrap resamples of the images. *Object*: the same of everything that is
  not background, whatever its class.
- *AP*, *AP50*: COCO's average precision by torchmetrics, with intervals from 100 resamples of the images.
  *AP50 of objects*: the same with one class for all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from conformer_vision.explain.coco import RunLengths
from conformer_vision.files import atomic_path
from stored import RESULTS, provenance

WARMUP = 0.05
"""Share of the time in which the learning rate rises."""
LEVELS = (1, 2, 3)
"""Feature levels that the detectors take: 1/4, 1/8 and 1/16 of the image."""
WIDTH = 96
"""Channels of the detectors' pyramid."""


@dataclass(frozen=True)
class Row:
    """A network of a table."""

    name: str
    encoder: str
    pretrained: bool = False
    lr: float = 1e-3


ROWS = (
    Row("conformer from the bundled weights", "conformer_nano_patch8_64", pretrained=True),
    Row("conformer from scratch", "conformer_nano_patch8_64"),
    Row("resnet18 from scratch", "resnet18"),
)


@dataclass(frozen=True)
class Set:
    """A split of the localisation set, in memory."""

    images: Tensor
    """(N, 3, H, W) uint8."""
    masks: Tensor
    """(N, H, W) uint8: 0 for the background, and the class from 1."""
    boxes: list[Tensor]
    """Per image (n, 4): left, top, right, bottom."""
    labels: list[Tensor]
    """Per image (n,): the class from 1."""
    classes: list[str]

    def __len__(self) -> int:
        return len(self.images)


def read_set(folder: Path, split: str) -> Set:
    """Read a split with its masks and boxes."""
    content = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    places = {image["id"]: place for place, image in enumerate(content["images"])}
    pixels = [
        np.asarray(Image.open(folder / split / each["file_name"]).convert("RGB"))
        for each in content["images"]
    ]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    masks = np.zeros((len(images), *images.shape[2:]), np.uint8)
    boxes: list[list[list[float]]] = [[] for _ in pixels]
    labels: list[list[int]] = [[] for _ in pixels]
    for each in content["annotations"]:
        place, number = places[each["image_id"]], each["category_id"] + 1
        run_lengths = RunLengths(*each["segmentation"]["size"], each["segmentation"]["counts"])
        masks[place][run_lengths.mask()] = number
        x, y, width, height = each["bbox"]
        boxes[place].append([x, y, x + width, y + height])
        labels[place].append(number)
    return Set(
        images,
        torch.from_numpy(masks),
        [torch.tensor(each, dtype=torch.float32) for each in boxes],
        [torch.tensor(each) for each in labels],
        [each["name"] for each in content["categories"]],
    )


class Pyramid(nn.Module):
    """A backbone as torchvision's detectors want it: named maps of equal width."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.body = timm.create_model(
            row.encoder, pretrained=row.pretrained, features_only=True, out_indices=LEVELS
        )
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), WIDTH, LastLevelMaxPool())
        self.out_channels = WIDTH

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the pyramid's maps of images (B, 3, H, W)."""
        maps = OrderedDict((str(level), each) for level, each in enumerate(self.body(x)))
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid


class Segmentation:
    """Unet of segmentation_models.pytorch."""

    batch = 32
    dice = smp.losses.DiceLoss("multiclass")

    def build(self, row: Row, data: Set) -> nn.Module:
        """Build the network with the initial weights of a row."""
        model: nn.Module = smp.Unet(
            f"tu-{row.encoder}",
            encoder_weights="imagenet" if row.pretrained else None,
            encoder_depth=4,
            decoder_channels=(128, 64, 32, 16),
            classes=1 + len(data.classes),
        )
        return model

    def loss(
        self, model: nn.Module, data: Set, rows: Tensor, normalize: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Compute the loss of a batch, half of it mirrored."""
        images, masks = normalize(data.images[rows]), data.masks[rows].long()
        half = len(rows) // 2
        images = torch.cat([images[:half], images[half:].flip(3)])
        masks = torch.cat([masks[:half], masks[half:].flip(2)])
        logits = model(images).float()
        # Nine pixels in ten are background, which satisfies cross-entropy alone for a long time.
        loss: Tensor = nn.functional.cross_entropy(logits, masks) + self.dice(logits, masks)
        return loss

    @torch.inference_mode()
    def answers(self, model: nn.Module, data: Set, normalize: Callable[[Tensor], Tensor]) -> list[Any]:
        """Return the masks (H, W) of all images."""
        return [
            mask
            for rows in torch.arange(len(data)).split(self.batch)
            for mask in model(normalize(data.images[rows])).argmax(1).to(torch.uint8)
        ]

    def metrics(self, answers: list[Tensor], data: Set) -> dict[str, Any]:
        """Compute mIoU with its interval."""
        number = 1 + len(data.classes)
        found = torch.stack(answers)
        exact = MulticlassJaccardIndex(number)(found.long(), data.masks.long())
        counts = np.stack(
            [
                np.bincount(
                    number * truth.numpy().ravel().astype(int) + answer.numpy().ravel(), minlength=number**2
                )
                for truth, answer in zip(data.masks, answers, strict=True)
            ]
        ).reshape(-1, number, number)
        draw = np.random.default_rng(0)
        drawn = [counts[draw.integers(0, len(counts), len(counts))].sum(0) for _ in range(1000)]
        return {
            "miou": float(exact),
            "miou_interval": interval([mean_iou(each) for each in drawn]),
            "object_iou": object_iou(counts.sum(0)),
            "object_iou_interval": interval([object_iou(each) for each in drawn]),
        }


def interval(resampled: Sequence[float]) -> list[float]:
    """Return the 95 % interval of resampled figures."""
    bounds: list[float] = np.quantile(resampled, (0.025, 0.975)).tolist()
    return bounds


def object_iou(confusion: NDArray[np.int64]) -> float:
    """Return the intersection over union of all that is not background (the first class)."""
    return float(confusion[1:, 1:].sum() / (confusion.sum() - confusion[0, 0]))


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Return the mean intersection over union of the classes that occur."""
    inside = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - inside
    return float((inside[union > 0] / union[union > 0]).mean())


class Detection:
    """FasterRCNN of torchvision."""

    batch = 16

    def build(self, row: Row, data: Set) -> nn.Module:
        """Build the network with the initial weights of a row."""
        config = timm.get_pretrained_cfg(row.encoder)
        edge = data.images.shape[2]
        return FasterRCNN(
            Pyramid(row),
            num_classes=1 + len(data.classes),
            min_size=edge,
            max_size=edge,
            image_mean=config.mean,
            image_std=config.std,
            rpn_anchor_generator=AnchorGenerator(((16,), (32,), (48,), (64,)), ((0.5, 1.0, 2.0),) * 4),
            box_detections_per_img=20,
            rpn_batch_size_per_image=64,
            box_batch_size_per_image=64,
        )

    def loss(
        self, model: nn.Module, data: Set, rows: Tensor, normalize: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Compute the loss of a batch, half of it mirrored; the detector normalises itself."""
        images, targets = [], []
        for place, row in enumerate(rows.tolist()):
            image, boxes = data.images[row].float() / 255, data.boxes[row].clone()
            if place % 2:
                image = image.flip(2)
                boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
            images.append(image)
            targets.append({"boxes": boxes, "labels": data.labels[row]})
        losses: dict[str, Tensor] = model(images, targets)
        return torch.stack(list(losses.values())).sum()

    @torch.inference_mode()
    def answers(self, model: nn.Module, data: Set, normalize: Callable[[Tensor], Tensor]) -> list[Any]:
        """Return boxes, labels and scores of all images."""
        return [
            found
            for rows in torch.arange(len(data)).split(self.batch)
            for found in model([image.float() / 255 for image in data.images[rows]])
        ]

    def metrics(self, answers: list[dict[str, Tensor]], data: Set) -> dict[str, Any]:
        """Compute COCO's average precision with intervals."""
        truth = [{"boxes": b, "labels": n} for b, n in zip(data.boxes, data.labels, strict=True)]
        plain = [
            [each | {"labels": torch.zeros_like(each["labels"])} for each in side]
            for side in (answers, truth)
        ]

        def precision(rows: Sequence[int]) -> list[float]:
            found = []
            for side in ((answers, truth), plain):
                metric = MeanAveragePrecision()
                metric.update(*([each[row] for row in rows] for each in side))
                found.append(metric.compute())
            return [float(found[0]["map"]), float(found[0]["map_50"]), float(found[1]["map_50"])]

        draw = np.random.default_rng(0)
        whole = precision(range(len(data)))
        drawn = [precision(draw.integers(0, len(data), len(data)).tolist()) for _ in range(100)]
        columns = zip(("ap", "ap50", "ap50_objects"), whole, zip(*drawn, strict=True), strict=True)
        return {
            name: value
            for key, exact, resampled in columns
            for name, value in ((key, exact), (f"{key}_interval", interval(resampled)))
        }


Task = Segmentation | Detection
TASKS: dict[str, Callable[[], Task]] = {"segmentation": Segmentation, "detection": Detection}


def normalizer(encoder: str) -> Callable[[Tensor], Tensor]:
    """Return what turns bytes (B, 3, H, W) into the input of an encoder."""
    config = timm.get_pretrained_cfg(encoder)
    mean, std = (torch.tensor(each)[:, None, None] for each in (config.mean, config.std))
    return lambda images: (images / 255 - mean) / std


def orders(number: int, batch: int) -> Iterator[Tensor]:
    """Yield batches of row numbers without end, in another order in every epoch."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(number, generator=generator).split(batch)[: number // batch]


def train(task: Task, row: Row, data: Set, *, minutes: float) -> tuple[nn.Module, int]:
    """Train a network for so much processor time; return it and the number of images it has seen."""
    torch.manual_seed(0)
    model = task.build(row, data).train().to(memory_format=torch.channels_last)
    normalize = normalizer(row.encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=row.lr, weight_decay=0.05)
    begin, seconds, seen, said = time.process_time(), 60 * minutes, 0, 0.0
    for rows in orders(len(data), task.batch):
        done = (time.process_time() - begin) / seconds
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = row.lr * min(done / WARMUP, 1, (1 - done) / (1 - WARMUP))
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(model, data, rows, normalize)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        seen += len(rows)
        if done >= said:
            print(f"{row.name}: {done:.0%}, {seen:,} images, loss {loss.item():.3f}", flush=True)
            said += 0.1
    return model.eval(), seen


def run(name: str, row: Row, data: Path, weights: Path, *, minutes: float, results: Path) -> dict[str, Any]:
    """Train and evaluate what is not stored yet."""
    slug = f"{name}--{row.name.replace(' ', '-')}--0"
    stored = results / f"{slug}.json"
    if not stored.is_file():
        task = TASKS[name]()
        model, seen = train(task, row, read_set(data, "train"), minutes=minutes)
        test = read_set(data, "test")
        answers = task.answers(model, test, normalizer(row.encoder))
        weights.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, weights / f"{slug}.safetensors")
        result = {
            "table": name,
            "name": row.name,
            "seed": 0,
            "model": row.encoder,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "minutes": minutes,
            "images_seen": seen,
            "test_images": len(test),
            **task.metrics(answers, test),
            **provenance(),
        }
        with atomic_path(stored) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Segmentation and detection with a Conformer inside")
    parser.add_argument("--data", type=Path, required=True, help="folder that localization_set.py wrote")
    parser.add_argument("--run", choices=list(TASKS), required=True, help="table to train and to evaluate")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--minutes", type=float, default=15.0, help="processor time of each training")
    parser.add_argument("--weights", type=Path, default=Path("runs/dense"), help="where trained weights are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are stored")
    options = parser.parse_args()
    where = {"minutes": options.minutes, "results": options.results}
    for row in ROWS:
        if options.only in row.name:
            found = run(options.run, row, options.data, options.weights, **where)
            values = {key: value for key, value in found.items() if key.startswith(("miou", "ap"))}
            print(row.name, json.dumps(values))


if __name__ == "__main__":
    main()
