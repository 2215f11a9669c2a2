"""What every stream of images promises; inherited by the tests of each form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from conformer_vision.data import ImageStream
from conformer_vision.errors import UserError
from streamed import encode, numbers, opened_stream, problem, read


class Readers(IterableDataset[tuple[int, str, int]]):
    """Every worker reads its part."""

    def __init__(self, stream: ImageStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[int, str, int]]:
        info = get_worker_info()
        assert info is not None
        for item in self.stream.read(seed=1, part=info.id, parts=info.num_workers):
            yield info.id, item.name, item.label


class StreamContract:
    """A subclass says how a set of images 0, 1, ... of the labels 0, 1, 2, 0, ... is written.

    `write` takes a folder and the lengths of the shards, and gives the spec.
    """

    def write(self, root: Path, lengths: list[int], **options: Any) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _small_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("conformer_vision.data.sharded.SHUFFLE_BLOCK", 5)

    @pytest.mark.parametrize("lengths", [[7], [6, 3], [5, 5, 5, 1]], ids=len)
    def test_every_image_once_in_any_number_of_parts(self, tmp_path: Path, lengths: list[int]) -> None:
        stream = opened_stream(self.write(tmp_path / "s", lengths))
        assert stream.classes == ("x", "y", "z")
        for parts in range(1, 6):
            for seed in (None, 0, 3):
                items = [
                    item for part in range(parts) for item in read(stream, seed=seed, part=part, parts=parts)
                ]
                found = numbers(items)
                assert sorted(found) == list(range(sum(lengths))), (parts, seed)
                assert [item.label for item in items] == [number % 3 for number in found]
                assert len({item.name for item in items}) == len(items)
        assert numbers(read(stream)) == list(range(sum(lengths)))

    def test_start_equals_dropping_images_and_decodes_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from conformer_vision.data import stream as streams

        stream = opened_stream(self.write(tmp_path / "s", [9, 9, 4]))
        monkeypatch.setattr(streams, "open_image", None)
        for seed, part, parts in ((None, 0, 1), (1, 0, 1), (None, 2, 5), (1, 1, 2)):
            whole = read(stream, seed=seed, part=part, parts=parts)
            for start in range(len(whole) + 2):
                rest = read(stream, seed=seed, part=part, parts=parts, start=start)
                names = [item.name for item in whole[start:]]
                assert [item.name for item in rest] == names, (seed, part, start)

    def test_seed_decides_the_order(self, tmp_path: Path) -> None:
        stream = opened_stream(self.write(tmp_path / "s", [20, 20, 20]))

        def order(seed: int | None) -> list[int]:
            return numbers(read(stream, seed=seed))

        assert order(1) == order(1) != order(2)
        assert order(None) == list(range(60))
        # Shards are permuted, and images within them.
        shards = {tuple(dict.fromkeys(number // 20 for number in order(seed))) for seed in range(6)}
        assert len(shards) > 2
        assert sum(abs(a - b) > 1 for a, b in zip(order(1), order(1)[1:], strict=False)) > 30

    def test_workers_read_disjoint_parts(self, tmp_path: Path) -> None:
        stream = opened_stream(self.write(tmp_path / "s", [5, 5, 2]))
        here = [[item.name for item in read(stream, seed=1, part=part, parts=2)] for part in range(2)]
        loader = DataLoader(Readers(stream), batch_size=None, num_workers=2, multiprocessing_context="fork")
        there: list[list[str]] = [[], []]
        for worker, name, _ in loader:
            there[worker].append(name)
        assert there == here

    def test_one_split_is_cut_in_two(self, tmp_path: Path) -> None:
        spec = self.write(tmp_path / "s", [40] * 3)

        def held_out(spec: str, split: str = "val", seed: int = 0) -> list[int]:
            stream = opened_stream(spec, split, val_fraction=0.2, seed=seed)
            items = [item for part in range(3) for item in read(stream, seed=0, part=part, parts=3)]
            return sorted(numbers(items))

        val = held_out(spec)
        assert sorted(held_out(spec, "train") + val) == list(range(120))
        assert len(val) == pytest.approx(24, rel=0.5)
        assert val == held_out(spec) != held_out(spec, seed=1)
        longer = self.write(tmp_path / "longer", [40] * 4)  # what is added moves no other image
        assert [number for number in held_out(longer) if number < 120] == val

    def test_classes_of_a_model_are_matched_by_name(self, tmp_path: Path) -> None:
        spec = self.write(tmp_path / "s", [4])
        stream = opened_stream(spec, classes=("w", "z", "y", "x"))
        assert stream.classes == ("w", "z", "y", "x")
        assert [item.label for item in read(stream)] == [3, 2, 1, 3]
        with pytest.raises(UserError, match="does not know the class z"):
            opened_stream(spec, classes=("x", "y"))

    def test_what_is_refused(self, tmp_path: Path) -> None:
        spec = self.write(tmp_path / "s", [4])
        with pytest.raises(UserError, match="cannot be cut into folds"):
            opened_stream(spec, "train", folds=5)
        stream = opened_stream(spec)
        for arguments in ({"part": 2, "parts": 2}, {"part": -1, "parts": 2}, {"part": 0, "parts": 0}):
            with pytest.raises(UserError, match="part"):
                read(stream, **arguments)
        with pytest.raises(UserError, match="start -1"):
            read(stream, start=-1)
        for missing in (f"{spec.partition('/')[0]}/", f"{spec}-missing"):
            with pytest.raises(UserError) as caught:
                opened_stream(missing)
            assert "\n" not in str(caught.value) and missing.partition("/")[0] in str(caught.value)

    def test_a_broken_image_is_an_item(self, tmp_path: Path) -> None:
        spec = self.write(tmp_path / "s", [4], images={1: encode((1, 0, 7))[:40], 2: b""})
        items = read(opened_stream(spec))
        assert [problem(item) != "" for item in items] == [False, True, True, False]
        assert [item.label for item in items] == [0, 1, 2, 0]
        for item in items[1:3]:
            assert problem(item).startswith(item.name) and "\n" not in problem(item)
