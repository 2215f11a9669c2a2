"""Small data sets of every form, written on the spot."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[..., Path]
WriteParquet = Callable[..., Path]


def encode(colour: Any = "red", *, kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(name="encode")
def encode_fixture() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def write_image() -> WriteImage:
    """Writes an image of one colour, with its folders."""

    def write(path: Path, colour: Any = "red") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(colour))
        return path

    return write


@pytest.fixture
def class_folders(write_image: WriteImage) -> Callable[..., Path]:
    """Writes ``count`` images into a folder for each class."""

    def write(root: Path, classes: Sequence[str], count: int = 3) -> Path:
        for name in classes:
            for number in range(count):
                write_image(root / name / f"{number}.png", (number, 0, 0))
        return root

    return write


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteParquet:
    """Writes a parquet file in the Hugging Face image layout; `datasets` gets a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(
        name: str,
        labels: Sequence[Any],
        *,
        names: Sequence[str] | None = None,
        images: Sequence[bytes | None] | None = None,
        columns: tuple[str, str] = ("image", "label"),
        row_group: int = 4,
    ) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = [encode((row, 0, 0)) for row in range(len(labels))] if images is None else images
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {
                columns[0]: pa.array(
                    [
                        {"bytes": data, "path": None if data is None else f"{i}.png"}
                        for i, data in enumerate(images)
                    ],
                    image_type,
                ),
                columns[1]: pa.array(labels),
            }
        )
        if names is not None:
            features = datasets.Features(
                {columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=list(names))}
            )
            table = table.replace_schema_metadata(features.arrow_schema.metadata)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=row_group)
        return path

    return write


@pytest.fixture
def gradient() -> Image.Image:
    """32 × 32 RGB image in which every pixel is different."""
    y, x = np.mgrid[0:32, 0:32]
    return Image.fromarray(np.stack([y * 8, x * 8, (x + y) * 4], axis=-1).astype(np.uint8))
