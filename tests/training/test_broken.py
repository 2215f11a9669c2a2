"""Broken images while training: named once, listed, and too many of them end the run."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conformer_vision.data.handover import Batch
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.broken import BrokenImages
from option_tools import shows

Tiny = Callable[..., TrainConfig]
TRAINER: Any = SimpleNamespace(is_global_zero=True)


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Callable[[int], Path]:
    """The images, so many of them cut off."""

    def make(count: int) -> Path:
        for number, source in enumerate(sorted(images.rglob("*.png"))):
            target = tmp_path / "data" / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes()[: 100 if number < count else None])
        return tmp_path / "data"

    return make


@shows("max_broken")
def test_few_are_skipped_and_many_end_the_run(
    tiny: Tiny, damaged: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 of 36 are 8.3 %."""
    data = damaged(3)
    config = tiny(
        data=str(data),
        epochs=3,
        max_steps=None,
        max_broken=0.09,
        val_fraction=0.3,
        output=str(tmp_path / "run"),
    )
    run = train(config)
    errors = capsys.readouterr().err.splitlines()
    listed = (run / "broken_images.txt").read_text().splitlines()
    assert len(listed) == len(set(listed)) == 3, "each is named once, in three epochs"
    assert errors == [f"skipped: {line}" for line in listed]
    assert all(str(data / "blue") in line for line in listed)
    with pytest.raises(UserError) as caught:
        train(config.with_options(max_broken=0.08, output=str(tmp_path / "other")))
    line = str(caught.value)
    assert "\n" not in line
    assert "3 of 36 images are broken, more than max_broken 0.08 allows; the first: " in line
    assert "check(data)" in line


def test_most_are_broken(tiny: Tiny, damaged: Callable[[int], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images are broken, more than max_broken 0\.01 allows"):
        train(tiny(data=str(damaged(30)), output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists(), "nothing was trained"


def batch(*broken: str, size: int = 4) -> Batch:
    return Batch(torch.zeros(size), torch.zeros(size), torch.zeros(size), list(broken))


def read(callback: BrokenImages, *broken: str, size: int = 4) -> None:
    callback.on_train_batch_start(TRAINER, None, batch(*broken, size=size), 0)  # type: ignore[arg-type]


def test_a_share_of_a_stream_is_of_those_read_so_far(tmp_path: Path) -> None:
    """Of a hundred at least: one broken image in the first batch says nothing."""
    callback = BrokenImages(tmp_path, images=None, most=0.02)
    read(callback, "a")
    read(callback, "b")
    with pytest.raises(UserError, match=r"3 of 100 images are broken, more than max_broken 0.02 allows"):
        read(callback, "c")
    later = BrokenImages(tmp_path, images=None, most=0.02)
    read(later, size=200)
    read(later, "a", "b", "c", "d")
    with pytest.raises(UserError, match="5 of 208 images are broken"):
        read(later, "e")


def test_none_or_all_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 1000 images are broken, more than max_broken 0 allows"):
        read(BrokenImages(tmp_path, images=1000, most=0.0), "a")
    read(BrokenImages(tmp_path, images=4, most=1.0), "a", "b", "c", "d")


def test_the_first_ten_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = BrokenImages(tmp_path, images=10_000, most=1.0)
    for number in range(0, 30, 3):
        read(callback, *(f"image {number + k}" for k in range(3)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:10] == [f"skipped: image {number}" for number in range(10)]
    assert lines[10:] == [f"skipped: more; all are listed in {tmp_path / 'broken_images.txt'}"]
    listed = (tmp_path / "broken_images.txt").read_text().splitlines()
    assert listed == [f"image {number}" for number in range(30)]


def test_known_ones_are_not_named_again_after_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = BrokenImages(tmp_path, images=100, most=0.03)
    read(callback, "a", "b")
    later = BrokenImages(tmp_path, images=100, most=0.03)
    later.load_state_dict(callback.state_dict())
    capsys.readouterr()
    read(later, "b", "a")
    assert capsys.readouterr().err == ""
    read(later, "c")
    assert (tmp_path / "broken_images.txt").read_text().splitlines() == ["a", "b", "c"]
    with pytest.raises(UserError, match="4 of 100 images"):
        read(later, "d")


def test_broken_validation_image_is_named_and_not_counted(
    tiny: Tiny, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In parts of their own, of which one of validation cannot be read."""
    data = tmp_path / "data"
    for part, numbers in (("train", range(10)), ("val", range(10, 12))):
        for name in ("blue", "red"):
            (data / part / name).mkdir(parents=True)
            for number in numbers:
                source = sorted((images / name).iterdir())[number]
                (data / part / name / f"{number}.png").write_bytes(source.read_bytes())
    (data / "val" / "red" / "10.png").write_bytes(b"broken")
    run = train(tiny(data=str(data), max_broken=0.05, output=str(tmp_path / "run")))
    assert "val/red/10.png" in capsys.readouterr().err.replace("\\", "/")
    names, values = ((run / "metrics.csv").read_text().splitlines()[i].split(",") for i in (0, -1))
    top1 = float(values[names.index("val_top1_fused")])
    assert any(top1 == pytest.approx(right / 3, abs=1e-4) for right in range(4)), "of three images"
