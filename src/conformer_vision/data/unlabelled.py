"""Images without labels, to train on beside labelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError, option

from .base import NOT_COUNTED, ImageSource
from .find import find_images, find_parquet
from .folder import FileSource
from .opening import open_images, require_source

if TYPE_CHECKING:
    from PIL import Image

    from conformer_vision.geometry import Need


class JoinedSource(ImageSource):
    """Labelled images, and behind them others, whose label is `NOT_COUNTED`, also beside several per image.

    Args:
        labelled: whose classes these are.
        unlabelled: whose labels are ignored.
    """

    def __init__(self, labelled: ImageSource, unlabelled: ImageSource) -> None:
        labels = [*labelled.labels, *[NOT_COUNTED] * len(unlabelled)]
        super().__init__(labelled.classes, labels, multilabel=labelled.multilabel)
        self.mirrorable, self.is_cut = labelled.mirrorable, labelled.is_cut
        self._labelled, self._unlabelled = labelled, unlabelled

    def _place(self, index: int) -> tuple[ImageSource, int]:
        first = len(self._labelled)
        return (self._labelled, index) if index < first else (self._unlabelled, index - first)

    def image(self, index: int, need: Need | None = None) -> Image.Image:
        """The RGB image."""
        source, place = self._place(index)
        return source.image(place, need)

    def file(self, index: int) -> Path | bytes | None:
        """The image's file in its source."""
        source, place = self._place(index)
        return source.file(place)

    def name(self, index: int) -> str:
        """The image's name in its source."""
        source, place = self._place(index)
        return source.name(place)


def open_unlabelled(spec: str | Path, *, data_dir: str | Path | None = None) -> ImageSource:
    """Open images whose labels are unknown or ignored.

    Args:
        spec: a folder of images, at any depth, or anything that `open_images` takes.
        data_dir: as in `open_images`.

    Raises:
        UserError: nothing there, no image in it, or a stream.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir() and not find_parquet(folder) and not (folder / "dataset_info.json").is_file():
        paths = [str(path) for path in find_images(folder)]
        if not paths:
            raise UserError(
                f"{option('unlabelled')} {spec} holds no images of a format that is read; "
                "give a folder that does, or leave it out"
            )
        return FileSource(("unlabelled",), paths, [0] * len(paths))
    return require_source(open_images(str(spec), "all", data_dir=data_dir), name=spec)
