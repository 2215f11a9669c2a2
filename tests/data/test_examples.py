"""The scripts in examples/ that write images and shards."""

import json
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data import open_image
from image_sets import opened
from streamed import encode, opened_stream, read
from write_images import write_images
from write_shards import write_shards

datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_digits_come_back(tmp_path: Path) -> None:
    """Real images, the same in every pixel."""
    source = opened("digits", split="val")
    files = write_shards(source, tmp_path / "s", images_per_shard=50)
    assert len(files) == -(-len(source) // 50) and all(file.is_file() for file in files)
    stream = opened_stream(f"wds/{tmp_path}/s")
    assert (stream.classes, stream.length) == (source.classes, len(source))
    assert not stream.mirrorable
    wanted = Counter((source[index][0].tobytes(), source.labels[index]) for index in range(len(source)))
    for seed in (None, 1):
        items = read(stream, seed=seed)
        assert Counter((item.image().tobytes(), item.label) for item in items) == wanted
    # The order is drawn: every shard holds most classes.
    assert len({item.label for item in read(stream)[:50]}) > 7
    assert sorted(path.name for path in (tmp_path / "s").iterdir() if path.name.startswith(".")) == []


def test_several_labels_come_back(tmp_path: Path) -> None:
    for row in range(4):
        (tmp_path / f"{row}.png").write_bytes(encode((row, 0, 0)))
    rows = ['0.png,"[""x"", ""z""]"', "1.png,[]", '2.png,"[""y""]"', '3.png,"[""x"", ""y"", ""z""]"']
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]))
    source = opened(tmp_path / "set.csv")
    write_shards(source, tmp_path / "s", images_per_shard=3)
    stream = opened_stream(f"wds/{tmp_path}/s")
    assert stream.multilabel and stream.classes == source.classes
    shown = {item.image().getpixel((0, 0))[0]: item.label for item in read(stream)}  # type: ignore[index]
    assert [shown[row] for row in range(4)] == list(source.labels) == [(0, 2), (), (1,), (0, 1, 2)]


def test_image_files_go_in_as_they_are(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    root = class_folders(tmp_path / "in", ["a", "b"], 4)
    (root / "a" / "0.png").rename(root / "a" / "0.PNG")
    source = opened(root)
    shards = [
        write_shards(source, tmp_path / name, images_per_shard=4, seed=seed)
        for name, seed in (("s", 0), ("same", 0), ("other", 1))
    ]
    contents = [[file.read_bytes() for file in files] for files in shards]
    assert contents[0] == contents[1] != contents[2]
    assert any((root / "a" / "0.PNG").read_bytes() in content for content in contents[0])
    info = json.loads((tmp_path / "s" / "_info.json").read_text())["splits"]["train"]
    assert info["shard_lengths"] == [4, 4] and info["filenames"][1] == "shard-000001.tar"
    items = read(opened_stream(f"wds/{tmp_path}/s"))
    assert Counter(item.label for item in items) == {0: 4, 1: 4}


def test_files_of_several_formats_go_in_as_png(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    """Samples of a shard have the same files; nothing is lost in a PNG."""
    root = class_folders(tmp_path / "in", ["a", "b"], 2)
    opened("digits", split="val")[0][0].save(root / "a" / "photo.jpg", "JPEG", quality=50)
    source = opened(root)
    write_shards(source, tmp_path / "s", images_per_shard=10)
    items = read(opened_stream(f"wds/{tmp_path}/s"))
    assert Counter(item.image().tobytes() for item in items) == Counter(
        source[index][0].tobytes() for index in range(5)
    )


def test_timm_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")  # what timm reads them with
    from timm.data import create_dataset

    source = opened("digits", split="val")
    write_shards(source, tmp_path / "s", images_per_shard=60)
    dataset = create_dataset(
        "wds/s", root=str(tmp_path / "s"), split="train", is_training=False, batch_size=8
    )
    assert len(dataset) == len(source)
    found = Counter((image.tobytes(), label) for image, label in dataset)
    assert found == Counter((source[i][0].tobytes(), source.labels[i]) for i in range(len(source)))


def test_images_are_drawn_by_seed(tmp_path: Path) -> None:
    source = opened("digits", split="val")
    paths = write_images(source, tmp_path / "new" / "images", count=12)
    assert sorted((tmp_path / "new" / "images").iterdir()) == sorted(set(paths)) and len(paths) == 12
    for path in paths:
        name, number = path.stem.split("_")
        image, label = source[int(number)]
        assert name == source.classes[label]
        assert open_image(path).tobytes() == image.tobytes()
    other = write_images(source, tmp_path / "other", count=12, seed=1)
    assert [path.name for path in other] != [path.name for path in paths]


def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = ROOT / "examples" / "write_shards.py"
    arguments = ["digits", str(tmp_path / "s"), "--images_per_shard", "500"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.startswith("1797 images in 4 shards")
    assert opened_stream(f"wds/{tmp_path}/s").length == 1797
