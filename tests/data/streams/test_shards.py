import json
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data.streams import write_shards
from conformer_vision.errors import UserError
from image_sets import opened

pytest.importorskip("webdataset")
ROOT = Path(__file__).resolve().parents[3]


def read(stream: Any, **options: Any) -> list[Any]:
    return list(stream.read(**({"seed": None, "part": 0, "parts": 1} | options)))


@pytest.mark.parametrize(("format", "prefix"), [("webdataset", "wds"), ("litdata", "litdata")])
def test_digits_come_back(format: Any, prefix: str, tmp_path: Path, tools: Any) -> None:  # noqa: A002
    """Real images, the same in every pixel."""
    pytest.importorskip(format)
    source = opened("digits", split="val")
    files = write_shards(source, tmp_path / "s", format=format, images_per_shard=50)
    assert len(files) == -(-len(source) // 50) and all(file.is_file() for file in files)
    stream = tools.open(f"{prefix}/{tmp_path}/s")
    assert (stream.classes, stream.length, stream.parts) == (source.classes, len(source), len(files))
    assert not stream.mirrorable
    wanted = Counter((source[index][0].tobytes(), source.labels[index]) for index in range(len(source)))
    for seed in (None, 1):
        items = read(stream, seed=seed)
        assert Counter((item.image.tobytes(), item.label) for item in items) == wanted
    # The order is drawn: every shard holds most classes.
    assert len({item.label for item in read(stream)[:50]}) > 7
    assert sorted(path.name for path in (tmp_path / "s").iterdir() if path.name.startswith(".")) == []


def test_image_files_go_in_as_they_are(
    tmp_path: Path, class_folders: Callable[..., Path], tools: Any
) -> None:
    root = class_folders(tmp_path / "in", ["a", "b"], 4)
    jpeg = root / "a" / "photo.JPG"
    source = opened("digits", split="val")
    source[0][0].save(jpeg, "JPEG", quality=50)
    source = opened(root, split="all")
    shards = [
        write_shards(source, tmp_path / name, format="webdataset", images_per_shard=4, seed=seed)
        for name, seed in (("s", 0), ("same", 0), ("other", 1))
    ]
    contents = [[file.read_bytes() for file in files] for files in shards]
    assert contents[0] == contents[1] != contents[2]
    assert any(jpeg.read_bytes() in content for content in contents[0])
    info = json.loads((tmp_path / "s" / "_info.json").read_text())["splits"]["train"]
    assert info["shard_lengths"] == [4, 4, 1] and info["filenames"][2] == "shard-000002.tar"
    items = read(tools.open(f"wds/{tmp_path}/s"))
    assert Counter(item.label for item in items) == {0: 5, 1: 4}
    assert sum(item.name.endswith(".jpg") for item in items) == 1


def test_timm_reads_them(tmp_path: Path) -> None:
    from timm.data import create_dataset

    source = opened("digits", split="val")
    write_shards(source, tmp_path / "s", format="webdataset", images_per_shard=60)
    dataset = create_dataset(
        "wds/s", root=str(tmp_path / "s"), split="train", is_training=False, batch_size=8
    )
    assert len(dataset) == len(source)
    found = Counter((image.tobytes(), label) for image, label in dataset)
    assert found == Counter((source[i][0].tobytes(), source.labels[i]) for i in range(len(source)))


def test_what_is_refused(tmp_path: Path) -> None:
    source = opened("digits", split="val")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for folder, options, words in [
        ("full", {}, "is not empty"),
        ("file", {}, "cannot make the folder"),
        ("s", {"images_per_shard": 0}, "images_per_shard 0"),
        ("s", {"format": "zip"}, "must be webdataset or litdata"),
    ]:
        arguments: Any = {"format": "webdataset", "images_per_shard": 5} | options
        with pytest.raises(UserError, match=words):
            write_shards(source, tmp_path / folder, **arguments)


def test_example(tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = ROOT / "examples" / "write_shards.py"
    arguments = ["digits", str(tmp_path / "s"), "--images_per_shard", "500"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.startswith("1797 images in 4 shards")
    assert tools.open(f"wds/{tmp_path}/s").length == 1797
