"""Good inputs of every kind that the package reads: what the fuzz run damages."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")
TINY: dict[str, Any] = {
    "model": "conformer_nano_patch8_64",
    "model_kwargs": {"depths": [2, 1, 2]},
    "input_size": 32,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
    "progress": "plain",
    "report": False,
}
"""A training of a second."""


def images() -> list[tuple[str, bytes]]:
    """File suffix and bytes of small images in every format, mode and compression that is read."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :80]
    smooth = np.stack([x * 3, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)
    rgb = Image.fromarray(smooth)
    noisy = Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8))
    deep = Image.fromarray((x * 800).astype(np.uint16))
    real = Image.fromarray((x / 80).astype(np.float32))
    clear = rgb.copy()
    clear.putalpha(Image.fromarray((y * 4).astype(np.uint8)))
    palette = rgb.quantize(17)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        (".jpg", rgb, {"quality": 90}),
        (".jpg", noisy, {"progressive": True}),
        (".jpg", rgb.convert("L"), {}),
        (".jpeg", rgb.convert("CMYK"), {}),
        (".jpg", rgb, {"exif": exif, "subsampling": 0}),
        (".png", rgb, {"exif": exif}),
        (".png", noisy, {}),
        (".png", clear, {}),
        (".png", palette, {}),
        (".png", palette, {"transparency": 0}),
        (".png", deep, {}),
        (".png", rgb.convert("1"), {}),
        (".png", rgb.convert("LA"), {}),
        (".webp", rgb, {}),
        (".webp", clear, {"lossless": True, "exif": exif}),
        (".webp", rgb, {"save_all": True, "append_images": [rgb.rotate(90, expand=False)]}),
        (".bmp", rgb, {}),
        (".bmp", palette, {}),
        (".bmp", rgb.convert("1"), {}),
        (".gif", palette, {}),
        (".gif", palette, {"save_all": True, "append_images": [palette.rotate(90)], "transparency": 3}),
        (".tif", rgb, {}),
        (".tif", deep, {}),
        (".tif", real, {"compression": "tiff_adobe_deflate"}),
        (".tif", rgb.convert("1"), {"compression": "group4"}),
        (".mpo", rgb, {"save_all": True, "append_images": [noisy]}),
    ]
    made += [
        (".tiff", rgb, {"compression": name})
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_lzw")
    ]
    return [(suffix, encoded(image, suffix, options)) for suffix, image, options in made]


def plain_image(number: int) -> bytes:
    """A small PNG; every number gives another, of the colour of its class."""
    colours = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
    noise = np.random.default_rng(number).integers(-40, 41, (36, 40, 3))
    return encoded(Image.fromarray((np.array(colours[number % 3]) + noise).astype(np.uint8)), ".png", {})


def class_folders(root: Path, count: int = 12) -> Path:
    """A folder of `CLASSES` with ``count`` images each."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(plain_image(3 * number + label))
    return root


def table(folder: Path, *, separator: str = ",") -> str:
    """A table of the images of `class_folders`."""
    lines = [separator.join(["path", "label", "split"])]
    for name in CLASSES:
        for number in range(4):
            lines.append(
                separator.join([str(folder / name / f"{number}.png"), name, ["train", "val"][number // 3]])
            )
    return "\n".join(lines) + "\n"


def exclusions(folder: Path) -> str:
    """A list of two images of `class_folders` to leave out."""
    return f'image,reason\n{folder}/ant/1.png,truncated\n"{folder}/bee/2.png",copy\n'


def archive(kind: str) -> bytes:
    """Class folders as a ``zip``, or as a tar of ``tarfile``'s mode: ``w``, ``w:gz``, ``w:bz2``, ``w:xz``."""
    buffer = io.BytesIO()
    members = [
        (f"set/{name}/{n}.png", plain_image(3 * n + i)) for i, name in enumerate(CLASSES) for n in range(3)
    ]
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for path, data in members:
                packed.writestr(path, data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:  # type: ignore[call-overload]
        for path, data in members:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shard(label: str = "cls", count: int = 9) -> bytes:
    """A tar in WebDataset's layout, with the labels in files ``.cls`` or ``.json``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(count):
            text = f"{number % 3}" if label == "cls" else f'{{"label": {number % 3}}}'
            for suffix, data in (("png", plain_image(number)), (label, text.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet_columns(count: int = 9) -> dict[str, Any]:
    """The columns of a set in the Hugging Face layout."""
    return {
        "image": [{"bytes": plain_image(number), "path": None} for number in range(count)],
        "label": [number % 3 for number in range(count)],
    }


def parquet(columns: dict[str, Any], *, names: bool = True) -> bytes:
    """A parquet file of them, with the names of the classes in its metadata or without."""
    import json

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


def encoded(image: Image.Image, suffix: str, options: dict[str, Any]) -> bytes:
    """The bytes of an image file; ``options`` are those of Pillow's ``save``."""
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
    buffer = io.BytesIO()
    image.save(buffer, kinds.get(suffix, suffix[1:].upper()), **options)
    return buffer.getvalue()
