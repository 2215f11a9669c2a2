"""One way to open a stream, whatever form it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError

from .base import ImageStream, refuse_folds

if TYPE_CHECKING:
    from ..splits import Split, Splitting


def open_stream(
    spec: str | Path,
    *,
    split: Split,
    splitting: Splitting,
    classes: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
) -> ImageStream:
    """Opens one part of a set of labelled images that is read one image after the other.

    A set with parts for training and validation keeps them. Of one without, a share is held out:
    whole shards where there are enough of them, else images drawn in every shard.

    Args:
        spec: what holds the images.

            - ``hfids/NAME`` or ``hfids/NAME:CONFIG``, a set of the Hugging Face hub or a local folder
              that ``datasets`` can load (`hub.open_hub_stream`)
            - ``wds/PATTERN``, tar shards: a folder, a brace or glob pattern, or http(s) addresses
              (`webdataset.open_webdataset`)
        split: ``train`` or ``val``, or ``all`` for both together.
        splitting: share held out and the seed of the draw; no folds.
        classes: class names of a trained model; labels are matched to them by name.
        data_dir: the folder that relative paths of ``wds`` start from, and the cache
            of ``datasets`` for ``hfids``.

    Raises:
        UserError: nothing there, an unknown form, a format that would run code, folds, no class
            names; the line names it.
    """
    refuse_folds(splitting, origin=str(spec))
    base = None if data_dir is None else Path(data_dir).expanduser()
    prefix, slash, rest = ("", "", "") if isinstance(spec, Path) else spec.partition("/")
    if slash and prefix.lower() in ("hfids", "wds") and not rest:
        raise UserError(f"{spec} names nothing; give what to read after the slash")
    if slash and prefix.lower() == "hfids":
        from .hub import open_hub_stream

        return open_hub_stream(rest, split=split, splitting=splitting, classes=classes, data_dir=base)
    from .webdataset import open_webdataset

    return open_webdataset(rest, split=split, splitting=splitting, classes=classes, data_dir=base)
