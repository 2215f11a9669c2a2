import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError

pytest.importorskip("litdata")
Encode = Callable[..., bytes]


def read(stream: Any, **options: Any) -> list[Any]:
    return list(stream.read(**({"seed": None, "part": 0, "parts": 1} | options)))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def edit_index(folder: Path, change: Callable[[Any], None]) -> None:
    index = folder / "index.json"
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))


def test_pickled_samples_are_refused_and_not_run(tmp_path: Path, tools: Any, encode: Encode) -> None:
    exploded = tmp_path / "exploded"
    sample = {"image": encode(), "label": 0, "more": Bomb(str(exploded))}
    folder = tools.write_litdata(tmp_path / "set", [sample], per_chunk=2)
    (folder / "classes.txt").write_text("x\ny\n")
    with pytest.raises(UserError, match=r"hold pickle, which can run code.*write them again") as caught:
        read(tools.open(f"litdata/{folder}"))
    assert "\n" not in str(caught.value)
    for name in ("graph", "graph:pickle", "pickle:1", "unheard_of"):
        edit_index(
            folder, lambda content, name=name: content["config"].update(data_format=["bytes", "int", name])
        )
        with pytest.raises(UserError, match="which can run code"):
            tools.open(f"litdata/{folder}")
    assert not exploded.exists()
    # Read as litdata does, it goes off.
    edit_index(folder, lambda content: content["config"].update(data_format=["bytes", "int", "pickle"]))
    import litdata

    _ = litdata.StreamingDataset(str(folder))[0]
    assert exploded.exists()


def test_trees_that_name_functions_are_refused(tmp_path: Path, tools: Any, encode: Encode) -> None:
    folder = tools.write_litdata(tmp_path / "set", [{"image": encode(), "label": 0}] * 2, per_chunk=2)

    def name_a_function(content: Any) -> None:
        tree = json.loads(content["config"]["data_spec"])
        tree[1]["type"] = "collections.defaultdict"
        context = {"default_factory_module": "antigravity", "default_factory_name": "x"}
        tree[1]["context"] = json.dumps(context | {"dict_context": ["image", "label"]})
        content["config"]["data_spec"] = json.dumps(tree)

    edit_index(folder, name_a_function)
    with pytest.raises(UserError, match="not dicts of image and label"):
        tools.open(f"litdata/{folder}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["chunks"][0].update(filename="../chunk-0-0.bin"), "not a file of the folder"),
        (lambda c: c["chunks"][0].update(chunk_size=-1), "not a file of the folder"),
        (lambda c: c["config"].update(item_loader="TokensLoader"), "tokens"),
        (lambda c: c["config"].update(encryption={"level": "sample"}), "encrypted"),
        (lambda c: c["config"].update(compression="zstd"), "compressed"),
        (lambda c: c["config"].update(data_format=["bytes"]), "which can run code"),
        (lambda c: c["config"].pop("data_spec"), "not an index of litdata"),
        (lambda c: c.clear(), "not an index of litdata"),
        (lambda c: c.update(config=None), "not an index of litdata"),
    ],
)
def test_indexes_that_cannot_be(
    change: Callable[[Any], None], words: str, tmp_path: Path, tools: Any, encode: Encode
) -> None:
    folder = tools.write_litdata(tmp_path / "set", [{"image": encode(), "label": 0}] * 2, per_chunk=2)
    edit_index(folder, change)
    with pytest.raises(UserError, match=words) as caught:
        tools.open(f"litdata/{folder}")
    assert "index.json" in str(caught.value)


def test_kinds_of_images(tmp_path: Path, tools: Any, encode: Encode) -> None:
    """PIL images of several modes, litdata's own JPEG, and paths."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("RGB", (8, 4), "red").save(tmp_path / "side.jpg", exif=exif)
    sets = {
        "pil": Image.new("RGBA", (4, 3), (255, 0, 0, 0)),
        "grey": Image.new("L", (4, 3), 9),
        "deep": Image.new("I;16", (4, 3), 257 * 5),
        "jpeg": Image.open(tmp_path / "side.jpg"),
        "path": "a.png",
    }
    found = {}
    for name, image in sets.items():
        folder = tools.write_litdata(tmp_path / name, [{"image": image, "label": 1}], per_chunk=1)
        if name == "path":
            (folder / "a.png").write_bytes(encode((5, 0, 7)))
        (folder / "classes.txt").write_text("x\ny\n")
        (item,) = read(tools.open(folder))  # the folder alone says what it is
        assert not isinstance(item.image, BrokenImageError), item.image
        assert item.image.mode == "RGB" and item.label == 1
        found[name] = item.image
    assert found["pil"].getpixel((0, 0)) == (255, 255, 255)  # transparent on white
    assert found["grey"].getpixel((0, 0)) == (9, 9, 9)
    assert found["deep"].getpixel((0, 0)) == (5, 5, 5)
    assert found["jpeg"].size == (4, 8)
    assert found["path"].getpixel((0, 0)) == (5, 0, 7)


def test_labels_and_class_names(tmp_path: Path, tools: Any, encode: Encode) -> None:
    samples = [{"image": encode(), "label": name} for name in ("b", "a", "c")]
    folder = tools.write_litdata(tmp_path / "names", samples, per_chunk=2)
    stream = tools.open(folder)
    assert stream.classes == ("a", "b", "c")
    assert [item.label for item in read(stream)] == [1, 0, 2]
    (folder / "classes.txt").write_text("b\na\n")
    items = read(tools.open(folder))
    assert [item.label for item in items] == [0, 1, -1]
    assert "label 'c' is none of the classes" in str(items[2].image)
    numbers = [{"image": encode(), "label": number} for number in (3, 0)]
    assert tools.open(tools.write_litdata(tmp_path / "n", numbers, per_chunk=2)).classes == (
        "0",
        "1",
        "2",
        "3",
    )
    other = tools.write_litdata(tmp_path / "o", [{"image": encode(), "label": 0}], per_chunk=2)
    with pytest.raises(UserError, match="its samples have no image, they have image, label"):
        tools.open(other)


def test_folders_for_train_and_val(tmp_path: Path, tools: Any, write_set: Any) -> None:
    write_set("litdata", [3, 3], folder="train")
    write_set("litdata", [2], folder="validation", first=6)
    root = tmp_path / "litdata"
    parts = [tools.open(f"litdata/{root}", split) for split in ("train", "val", "all")]
    assert [tools.numbers(read(part)) for part in parts] == [list(range(6)), [6, 7], list(range(8))]
    assert [(part.length, part.parts) for part in parts] == [(6, 2), (2, 1), (8, 3)]
    assert tools.open("litdata/train", data_dir=root).length == 6


def test_chunks_that_are_damaged(tmp_path: Path, tools: Any, write_set: Any) -> None:
    stream = tools.open(write_set("litdata", [3, 3, 3]))
    folder = tmp_path / "litdata" / "set"
    chunk = folder / "chunk-0-1.bin"
    data = chunk.read_bytes()

    def problems() -> list[str]:
        items = read(stream)
        assert tools.numbers(items[:3] + items[6:]) == [0, 1, 2, 6, 7, 8]
        assert [item.name for item in items[3:6]] == [f"chunk-0-1.bin/{place}" for place in range(3)]
        assert len(read(stream, seed=1, start=2)) == 7
        return [str(item.image) for item in items[3:6]]

    chunk.write_bytes(data[:-20])
    assert all("truncated" in problem for problem in problems())
    chunk.unlink()
    assert all("No such file" in problem for problem in problems())
    chunk.write_bytes(b"\xff" * len(data))
    found = problems()
    assert all("cannot be read" in problem for problem in found), found


def test_reading_leaves_the_folder_and_the_environment_alone(
    tmp_path: Path, tools: Any, write_set: Any
) -> None:
    spec = write_set("litdata", [3, 3])
    folder = tmp_path / "litdata" / "set"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = dict(os.environ)
    read(tools.open(spec), seed=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert dict(os.environ) == environment


def test_what_is_left_out_is_not_read(tmp_path: Path, tools: Any, write_set: Any, monkeypatch: Any) -> None:
    from conformer_vision.data.streams.litdata import LitdataFolder

    stream = tools.open(write_set("litdata", [10, 10, 10]))
    touched: list[int] = []
    original = LitdataFolder.open

    def counting(folder: LitdataFolder) -> Any:
        sample = original(folder)
        return lambda number: touched.append(number) or sample(number)

    monkeypatch.setattr(LitdataFolder, "open", counting)
    assert len(read(stream, seed=3, start=26)) == len(touched) == 4
    touched.clear()
    assert len(read(stream, part=1, parts=6)) == len(touched) == 5
