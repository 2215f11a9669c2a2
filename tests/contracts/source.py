"""What every source of images by number promises; inherited by the tests of each form."""

import hashlib
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data import BrokenImageError, ImageSource, class_counts, open_image
from conformer_vision.data.base import SubsetSource, classes_of
from conformer_vision.data.unlabelled import JoinedSource
from conformer_vision.errors import UserError
from conformer_vision.geometry import Box, Kept, Size
from image_sets import opened
from photos import jpeg, photo
from streamed import NAMES, colour, encode

IMAGES = 24


def digest(source: ImageSource) -> str:
    """Of every image with its label and name."""
    found = hashlib.sha256()
    for index in range(0, len(source), max(len(source) // 24, 1)):
        image, label = source[index]
        found.update(image.tobytes() + f"{image.mode}{image.size}{label}{source.name(index)}".encode())
    return found.hexdigest()


def several(count: int) -> list[list[str]]:
    """The labels of images that have several: that of `SourceContract`, one more, or none."""
    names = [[NAMES[number % 3], *([NAMES[number % 4 - 1]] * (number % 4 > 0))] for number in range(count)]
    return [[] if number % 7 == 6 else [*dict.fromkeys(each)] for number, each in enumerate(names)]


def _need(size: Size) -> Kept:
    return Kept(Box(0, 0, *size), (8, 8))


class SourceContract:
    """A subclass says how images 0, 1, ... of the labels 0, 1, 2, 0, ... named x, y, z are written.

    `write` takes a folder and the images' files, and gives the spec; all that belongs to training, where
    the form keeps splits. With several labels per image, they are those of `several`.
    """

    options: dict[str, Any] = {}  # noqa: RUF012  # of `open_images`
    keeps_files = True
    grows = True
    own_splits = False
    multilabel = False

    def write(self, root: Path, files: list[bytes]) -> Any:
        raise NotImplementedError

    def open(self, spec: Any, split: str = "all", **options: Any) -> ImageSource:
        return opened(spec, split, **self.options, **options)

    def written(self, root: Path, changes: dict[int, bytes] | None = None, *, images: int = IMAGES) -> Any:
        files = [encode(colour(number)) for number in range(images)]
        for number, data in (changes or {}).items():
            files[number] = data
        return self.write(root, files)

    def names(self, source: ImageSource) -> list[str]:
        return [source.name(index) for index in range(len(source))]

    def test_images_labels_and_names(self, tmp_path: Path) -> None:
        source = self.open(self.written(tmp_path))
        assert len(source) == len(source.labels) == len(set(self.names(source)))
        assert len(source) >= IMAGES
        assert source.multilabel == self.multilabel == isinstance(source.labels[0], tuple)
        assert class_counts(source).all() and len(class_counts(source)) == len(source.classes)
        for index in range(IMAGES):
            image, label = source[index]
            assert (image.mode, image.info) == ("RGB", {})
            assert label == source.labels[index]
        if source.classes == NAMES:
            shown = [source[index][0].getpixel((0, 0))[0] for index in range(IMAGES)]  # type: ignore[index]
            assert sorted(shown) == list(range(IMAGES))
            labels: list[Any] = [number % 3 for number in shown]
            if self.multilabel:
                names = several(IMAGES)
                labels = [tuple(sorted(map(NAMES.index, names[number]))) for number in shown]
            assert labels == list(source.labels[:IMAGES])

    def test_any_process_reads_the_same(self, tmp_path: Path) -> None:
        source = self.open(self.written(tmp_path))
        here = digest(source)
        stored = pickle.dumps(source)
        assert digest(pickle.loads(stored)) == here
        subset = SubsetSource(source, range(len(source) - 1, -1, -2))
        assert digest(pickle.loads(pickle.dumps(subset))) == digest(subset) != here
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(digest, [source] * 3) == [here] * 3

    def test_splits_are_disjoint_and_stable(self, tmp_path: Path) -> None:
        spec = self.written(tmp_path)
        train, val, both = (
            self.names(self.open(spec, split, val_fraction=0.25)) for split in ("train", "val", "all")
        )
        assert train and val and sorted(train + val) == sorted(both)
        assert self.names(self.open(spec, "val", val_fraction=0.25)) == val
        assert self.open(spec, "val").is_cut == (not self.own_splits)
        if not self.own_splits:
            assert self.names(self.open(spec, "val", val_fraction=0.25, seed=1)) != val
            assert len(both) / 12 <= len(val) <= len(both) / 2

    def test_what_is_added_moves_no_other_image(self, tmp_path: Path) -> None:
        """Nor does another place."""
        if self.own_splits or not self.grows:
            pytest.skip("has splits of its own, or stays as it is")
        before, after = (self.written(tmp_path / name, images=n) for name, n in (("a", IMAGES), ("b", 40)))
        for options in ({"val_fraction": 0.5}, {"folds": 2, "fold": 1}):
            old, new = (self.shown(self.open(spec, "val", **options)) for spec in (before, after))
            assert old == {number for number in new if number < IMAGES}
            assert 0 < len(old) < len(new) < 30

    def shown(self, source: ImageSource) -> set[int]:
        """The numbers of the images, by their colours."""
        return {source.image(index).getpixel((0, 0))[0] for index in range(len(source))}  # type: ignore[index, misc]

    def test_every_image_is_held_out_in_one_fold(self, tmp_path: Path) -> None:
        spec = self.written(tmp_path)
        held_out: list[str] = []
        for fold in range(4):
            train, val = (self.open(spec, split, folds=4, fold=fold) for split in ("train", "val"))
            assert not set(self.names(train)) & set(self.names(val))
            assert val.is_cut and SubsetSource(val, [0]).is_cut
            assert class_counts(train).all()
            held_out += self.names(val)
        assert sorted(held_out) == sorted(self.names(self.open(spec, folds=4)))

    def test_classes_are_matched_by_name(self, tmp_path: Path) -> None:
        spec = self.written(tmp_path)
        source = self.open(spec)
        own = source.classes
        wanted = (*["new"] * ("label_column" not in self.options), *reversed(own))
        other = self.open(spec, classes=wanted)
        assert other.classes == wanted
        assert [{wanted[each] for each in classes_of(label)} for label in other.labels] == [
            {own[each] for each in classes_of(label)} for label in source.labels
        ]
        with pytest.raises(UserError, match=f"does not know the class {own[-1]}"):
            self.open(spec, classes=own[:-1])

    def test_the_file_is_the_image(self, tmp_path: Path) -> None:
        source = self.open(self.written(tmp_path))
        for index in range(3):
            file = source.file(index)
            assert (file is not None) == self.keeps_files
            if file is not None:
                assert open_image(file).tobytes() == source.image(index).tobytes()

    def test_a_need_reaches_the_file(self, tmp_path: Path) -> None:
        if not self.keeps_files:
            pytest.skip("keeps no files that could be decoded in part")
        source = self.open(self.written(tmp_path, {4: jpeg(photo((64, 64)))}))
        for each in (source, SubsetSource(source, range(len(source))), JoinedSource(source, source)):
            assert sorted({each.image(index).width for index in range(len(each))}) == [8, 64]
            assert sorted({each.image(index, _need).width for index in range(len(each))}) == [8, 16]

    def test_a_broken_image_is_named_and_no_other_suffers(self, tmp_path: Path) -> None:
        if not self.keeps_files:
            pytest.skip("keeps no files that could be broken")
        source = self.open(self.written(tmp_path, {4: encode(colour(4))[:40]}))
        broken = []
        for index in range(len(source)):
            try:
                source[index]
            except BrokenImageError as error:
                broken.append(source.name(index))
                assert source.name(index) in str(error) and "\n" not in str(error)
        assert len(broken) == 1
