"""TIFFs of every layout, compared with the values that went in."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from conformer_vision.data.images import BrokenImageError, open_image


def _tiff(values: NDArray[Any], **options: Any) -> bytes:
    buffer = BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def must_be_read(kind: str, order: str, channels: int, options: dict[str, Any]) -> bool:
    """Layouts that programs write every day."""
    plain = options["photometric"] != "miniswhite" and "planarconfig" not in options
    if kind in ("uint8", "uint16"):
        return kind == "uint8" or plain
    return kind in ("int16", "int32", "float32") and plain and channels == 1 and order == "<"


@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (1, {"photometric": "minisblack"}),
        (1, {"photometric": "miniswhite"}),
        (3, {"photometric": "rgb"}),
        (3, {"photometric": "rgb", "planarconfig": "separate"}),
        (3, {"photometric": "rgb", "planarconfig": "separate", "compression": "deflate"}),
        (1, {"photometric": "minisblack", "compression": "deflate", "predictor": True}),
        (1, {"photometric": "minisblack", "tile": (16, 16)}),
    ],
)
def test_tiffs_are_right_or_refused(kind: str, order: str, channels: int, options: dict[str, Any]) -> None:
    """Compared with the values that went in, by the rules of `open_image`."""
    top = {"uint8": 255, "int8": 127, "uint16": 65535, "int16": 32767, "float32": 1, "float64": 1}.get(
        kind, 60_000
    )
    if options.get("predictor") and kind.startswith("float"):
        pytest.skip("tifffile needs another package to write it")
    values = np.random.default_rng(0).random((32, 48, channels)) * top
    values = np.squeeze(values.astype(kind))
    stored = np.moveaxis(values, -1, 0) if options.get("planarconfig") else values
    try:
        read = np.asarray(open_image(_tiff(stored, byteorder=order, **options)), float)
    except BrokenImageError:
        assert not must_be_read(kind, order, channels, options)
        return
    wanted = values * 255.0 / (65535 if top > 255 else top)
    if options["photometric"] == "miniswhite":
        wanted = wanted.max() - wanted if kind != "uint8" else 255 - wanted
    wanted = np.broadcast_to(wanted.reshape(32, 48, channels), (32, 48, 3))
    assert np.abs(read - wanted).max() <= 1


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_pages_of_a_tiff(kind: str) -> None:
    pages = (np.random.default_rng(0).random((3, 16, 16)) * 100).astype(kind)
    with pytest.raises(BrokenImageError, match="it is a TIFF of 3 pages; save each one as a file of its own"):
        open_image(_tiff(pages, photometric="minisblack"))
    buffer = BytesIO()
    with tifffile.TiffWriter(buffer) as writer:  # with a thumbnail
        writer.write(pages[0])
        writer.write(pages[1, ::2, ::2], subfiletype=1)
    assert open_image(buffer.getvalue()).size == (16, 16)
