"""Good inputs of every kind that the package reads: what the fuzz run damages."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")
NETWORK = {"depths": [2, 1, 2], "channel_ratio": 0.5, "embed_dim": 32, "num_heads": 2, "stem_width": 16}
TINY: dict[str, Any] = {
    "model": "conformer_nano_patch8_64",
    "model_kwargs": NETWORK,
    "input_size": 32,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
    "progress": "plain",
    "report": False,
}
"""A training of a second."""
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".mpo": "MPO",
}


def images() -> list[tuple[str, bytes]]:
    """File suffix and bytes of small images in every format, mode and compression that is read."""
    y, x = np.mgrid[:60, :80]
    rgb = Image.fromarray(np.stack([x * 3, y * 4, (x + y) * 2], axis=-1).astype(np.uint8))
    clear = rgb.copy()
    clear.putalpha(Image.fromarray((y * 4).astype(np.uint8)))
    deep, real = Image.fromarray((x * 800).astype(np.uint16)), Image.fromarray((x / 80).astype(np.float32))
    palette = rgb.quantize(17)
    made = []
    for image in (rgb, clear, palette, deep, real, *(rgb.convert(mode) for mode in ("1", "L", "LA", "CMYK"))):
        for suffix in _FORMATS:
            with contextlib.suppress(OSError, ValueError):  # no format has all modes
                made.append((suffix, encoded(image, suffix)))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
    made += [(suffix, encoded(rgb, suffix, exif=exif)) for suffix in (".jpg", ".png", ".webp")]
    made += [(suffix, encoded(rgb, suffix, **frames)) for suffix in (".webp", ".gif", ".mpo", ".png")]
    made.append((".jpg", encoded(rgb, ".jpg", progressive=True)))
    made.append((".png", encoded(palette, ".png", transparency=0)))
    made.append((".tif", encoded(rgb.convert("1"), ".tif", compression="group4")))
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made.append((".tif", encoded(rgb, ".tif", compression=name)))
    return made


def encoded(image: Image.Image, suffix: str, **options: Any) -> bytes:
    """The bytes of an image file; ``options`` are those of Pillow's ``save``."""
    buffer = io.BytesIO()
    image.save(buffer, _FORMATS[suffix], **options)
    return buffer.getvalue()


def plain_image(number: int) -> bytes:
    """A small PNG; every number gives another, of the colour of its class."""
    colours = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
    noise = np.random.default_rng(number).integers(-40, 41, (36, 40, 3))
    return encoded(Image.fromarray((np.array(colours[number % 3]) + noise).astype(np.uint8)), ".png")


def class_folders(root: Path, count: int = 12) -> Path:
    """A folder of `CLASSES` with ``count`` images each."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(plain_image(3 * number + label))
    return root


def table(folder: Path, *, separator: str = ",") -> str:
    """A table of the images of `class_folders`."""
    rows = [["path", "label", "split"]]
    for name in CLASSES:
        for number in range(4):
            rows.append([str(folder / name / f"{number}.png"), name, ["train", "val"][number // 3]])
    return "".join(separator.join(row) + "\n" for row in rows)


def exclusions(folder: Path) -> str:
    """A list of two images of `class_folders` to leave out."""
    return f'image,reason\n{folder}/ant/1.png,truncated\n"{folder}/bee/2.png",copy\n'


def members() -> list[tuple[str, bytes]]:
    """Names and contents of the images of an archive."""
    return [
        (f"set/{name}/{n}.png", plain_image(3 * n + i)) for i, name in enumerate(CLASSES) for n in range(3)
    ]


def archive(
    kind: str, files: Sequence[tuple[str, bytes]], change: Callable[[Any], None] = lambda info: None
) -> bytes:
    """Pack files as a ``zip``, or as a tar of ``tarfile``'s mode: ``w``, ``w:gz``, ``w:bz2``, ``w:xz``.

    Args:
        kind: see above.
        files: names and contents.
        change: may change the ``ZipInfo`` or ``TarInfo`` of each.
    """
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in files:
                entry = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                change(entry)
                packed.writestr(entry, data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:  # type: ignore[call-overload]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            change(member)
            header = member.tobuf(tar.format, tar.encoding, tar.errors)  # `addfile` refuses a wrong size
            tar.fileobj.write(header + data + bytes(-len(data) % tarfile.BLOCKSIZE))
    return buffer.getvalue()


def shard(label: str = "cls") -> bytes:
    """A tar in WebDataset's layout, with the labels in files ``.cls`` or ``.json``."""
    files = []
    for number in range(9):
        text = f"{number % 3}" if label == "cls" else f'{{"label": {number % 3}}}'
        files += [(f"{number:04d}.png", plain_image(number)), (f"{number:04d}.{label}", text.encode())]
    return archive("w", files)


def parquet_columns() -> dict[str, Any]:
    """The columns of a set of nine images in the Hugging Face layout."""
    return {
        "image": [{"bytes": plain_image(number), "path": None} for number in range(9)],
        "label": [number % 3 for number in range(9)],
    }


def parquet(columns: dict[str, Any], *, names: bool = True) -> bytes:
    """A parquet file of them, with the names of the classes in its metadata or without."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(made, buffer)
    return buffer.getvalue()


def recipe(data: Path) -> str:
    """A recipe that trains two steps."""
    return f"""\
# A short training.
data: {data}
model: conformer_nano_patch8_64
model_kwargs:
  depths: [2, 1, 2]
  embed_dim: 40
  channel_ratio: 0.5
input_size: 32
epochs: 2
max_steps: 2
batch_size: 8
workers: 0
device: cpu
lr: 0.001
weight_decay: 5e-2
optimizer: adamw
warmup_epochs: 0.5
label_smoothing: 0.1
mixup: 0.2
clip_grad: null
val_fraction: 0.2
seed: 3
progress: plain
report: false
loggers: []
augment:
  hflip: 0.5
  scale: [0.5, 1.0]
  re_prob: 0.1
"""
