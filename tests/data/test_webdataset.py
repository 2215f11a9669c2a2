import gzip
import json
import os
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.errors import UserError
from contracts.stream import StreamContract
from streamed import colour, numbers, opened_stream, problem, read, write_shards, write_tar

datasets = pytest.importorskip("datasets")
Encode = Callable[..., bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class TestWebDataset(StreamContract):
    def write(self, root: Path, lengths: list[int], **options: Any) -> str:
        return write_shards(root, lengths, **options)


def problems(items: list[Any]) -> list[str]:
    return [found for item in items if (found := problem(item))]


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pyd", "pickle", "pth", "npy"])
def test_nothing_is_unpickled(tmp_path: Path, encode: Encode, kind: str) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    files = [(f"0.{kind}", bomb), ("0.cls", b"0"), ("0.png", encode(colour(0)))]
    write_tar(tmp_path / "s" / "a.tar", files)
    (tmp_path / "s" / "classes.txt").write_text("x\ny\n")
    try:
        items = read(opened_stream(f"wds/{tmp_path}/s"))
    except UserError as error:
        assert "a.tar cannot be read" in str(error) and "\n" not in str(error)
    else:
        assert numbers(items) == [0]
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # the bomb works
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("kind", "labels", "found"),
    [
        ("cls", [b" 1\n", b"0", b"7", b"-1"], [1, 0, "nor the number of one", "nor the number"]),
        ("txt", ["ü\n".encode(), b"x", b"?"], [2, 0, "is neither a class"]),
        (
            "json",
            [b'{"label": "y"}', b'{"label": "z"}'],
            [1, "is neither a class"],
        ),
        ("json", [b'{"name": "x"}', b'{"label": "y"}', b"{"], ["it has no label", 1, "it has no label"]),
        ("cls", [b"y", b"+2"], [1, 2]),
        ("json", [b'{"label": 2, "more": 0}', b'{"label": 1, "more": 1}'], [2, 1]),
    ],
)
@pytest.mark.parametrize("suffix", ["PNG", "tiff"])
def test_kinds_of_labels_and_images(
    tmp_path: Path, encode: Encode, kind: str, labels: list[bytes], found: list[Any], suffix: str
) -> None:
    files = []
    for number, label in enumerate(labels):
        image = encode(colour(number), kind=suffix.upper())
        files += [(f"d/{number}.{suffix}", image), (f"d/{number}.{kind}", label)]
    write_tar(tmp_path / "a.tar", files)
    (tmp_path / "classes.txt").write_text("x\ny\nü\n", encoding="utf-8")
    items = read(opened_stream(f"wds/{tmp_path}/a.tar"))
    for number, (item, wanted) in enumerate(zip(items, found, strict=True)):
        assert item.name.lower() == f"a.tar/d/{number}.{suffix}".lower()
        if isinstance(wanted, int):
            assert (item.label, numbers([item])) == (wanted, [number])
        else:
            assert item.label == -1 and wanted in problem(item)


def test_samples_that_lack_something(tmp_path: Path, encode: Encode) -> None:
    whole = [(f"{n}.{kind}", data) for n in range(5) for kind, data in (("png", encode()), ("cls", b"0"))]
    write_tar(
        tmp_path / "a.tar",
        [*whole, ("5.png", encode()), ("6.cls", b"0"), ("README", b""), ("7.png", encode()), ("7.cls", b"1")],
    )
    (tmp_path / "classes.txt").write_text("x\ny\n")
    items = read(opened_stream(f"wds/{tmp_path}"))
    assert [number for number, item in enumerate(items) if problems([item])] == [5, 6]
    assert problems(items) == [
        "a.tar/5.png: it has no label (.cls, .json, .txt)",
        "a.tar/6.cls: it has no image of a format that is read, only 6.cls",
    ]
    assert items[-1].label == 1


@pytest.mark.parametrize(
    "keys",
    [
        [f"img.{n}" for n in range(40)],
        [f"photo.of.{n:03d}.jpeg" for n in range(40)],
        [f"d.x/a.b{n}" for n in range(40)],
        ["a", *(f"a.{n}" for n in range(39))],
        [*(f"a.{n}" for n in range(39)), "a"],
        ["a", "a.b", "a.b.c", "a.b.c.d"],
        ["1.5", "1.50", "1.5.0", "15"],
    ],
)
@pytest.mark.parametrize("label_first", [True, False])
def test_keys_with_dots(tmp_path: Path, encode: Encode, keys: list[str], label_first: bool) -> None:
    files = []
    for number, key in enumerate(keys):
        sample = [(f"{key}.cls", str(number % 2).encode()), (f"{key}.PNG", encode(colour(number)))]
        files += sample if label_first else sample[::-1]
    write_tar(tmp_path / "a.tar", files)
    items = read(opened_stream(f"wds/{tmp_path}/a.tar"))
    assert [item.name for item in items] == [f"a.tar/{key}.PNG" for key in keys]
    assert numbers(items) == list(range(len(keys)))
    assert [item.label for item in items] == [number % 2 for number in range(len(keys))]


def test_other_files_of_a_sample(tmp_path: Path, encode: Encode) -> None:
    """Masks, metadata and a second form of the label are left alone, whatever their place."""
    extra = encode("white")
    files: list[tuple[str, bytes]] = []
    for number in range(6):
        sample = [
            ("jpg", encode(colour(number), kind="PNG")),
            ("cls", str(number % 2).encode()),
            ("mask.png", extra),
            ("json", b'{"width": 8}'),
            ("txt", b"a caption"),
            ("features.npy", b"?"),
        ]
        for suffix, data in sample[number % 2 :] + sample[: number % 2]:
            files.append((f"{number}.{suffix}", data))
    write_tar(tmp_path / "a.tar", files)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    items = read(opened_stream(f"wds/{tmp_path}/a.tar"))
    assert numbers(items) == list(range(6))
    assert [item.label for item in items] == [0, 1] * 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("0.png", b"?")], r"a\.tar/0\.png: it has no label \(\.cls, \.json, \.txt\); nor are"),
        ([("0.cls", b"0")], r"a\.tar/0\.cls: it has no image of a format that is read, only 0\.cls"),
        ([("0.cls", b"0"), ("0.CR2", b"?")], "it has no image of a format that is read, only 0.cls, 0.CR2"),
        ([("README", b"?")], r"a\.tar cannot be read \(it holds neither images nor labels\)"),
        ([], r"a\.tar cannot be read"),
    ],
)
def test_shards_of_another_layout(tmp_path: Path, files: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "a.tar", files)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    with pytest.raises(UserError, match=message) as caught:
        opened_stream(f"wds/{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_within_a_file(mode: str, tmp_path: Path) -> None:
    """The images before it are read, one more item names the shard, and the next one is read."""
    spec = write_shards(tmp_path / "s", [8, 2])
    whole = (tmp_path / "s" / "shard-000.tar").read_bytes()
    if mode == "w:gz":
        whole = gzip.compress(whole)
    stream = opened_stream(spec)
    for size in (len(whole) // 4, len(whole) // 2, len(whole) * 2 // 3):
        size = size // 512 * 512 + 40 if mode == "w" else size
        (tmp_path / "s" / "shard-000.tar").write_bytes(whole[:size])
        items = read(stream)
        good = [item for item in items if not problems([item])]
        found = numbers(good)
        assert found[-2:] == [8, 9] and found[:-2] == list(range(len(found) - 2))
        assert re.match(r"shard-000\.tar: (cannot be read from row|is truncated)", problems(items)[-1]), size
        shared = [item for part in range(3) for item in read(stream, part=part, parts=3)]
        assert sorted(item.name for item in shared) == sorted(item.name for item in items)


def test_a_shard_that_ends_early_is_named(tmp_path: Path) -> None:
    """tarfile takes a damaged header for the end; the number of images beside the shards tells."""
    spec = write_shards(tmp_path / "s", [8])
    info = {"splits": {"train": {"filenames": ["shard-000.tar"], "shard_lengths": [8]}}}
    (tmp_path / "s" / "_info.json").write_text(json.dumps(info))
    shard = tmp_path / "s" / "shard-000.tar"
    data = bytearray(shard.read_bytes())
    data[6 * 2048 : 6 * 2048 + 100] = b"?" * 100
    shard.write_bytes(data)
    items = read(opened_stream(spec))
    assert numbers(items[:-1]) == list(range(6))
    assert problems(items) == ["shard-000.tar: holds 6 images instead of 8"]


def test_a_shard_that_goes_missing(tmp_path: Path) -> None:
    stream = opened_stream(write_shards(tmp_path / "webdataset" / "set", [2, 2]))
    (tmp_path / "webdataset" / "set" / "shard-000.tar").unlink()
    items = read(stream)
    assert problems(items) == ["shard-000.tar: cannot be read from row 0 on (No such file or directory)"]
    assert numbers(items[1:]) == [2, 3]


def test_patterns_and_folders(tmp_path: Path, monkeypatch: Any) -> None:
    write_shards(tmp_path / "webdataset" / "set", [2, 2, 2])
    folder = tmp_path / "webdataset" / "set"
    for pattern, count in [
        ("shard-{000..001}.tar", 4),
        ("shard-00[12].tar", 4),
        ("*.tar", 6),
        ("shard-001.tar", 2),
    ]:
        assert len(read(opened_stream(f"wds/{folder}/{pattern}"))) == count
        assert len(read(opened_stream(f"WDS/set/{pattern}", data_dir=tmp_path / "webdataset"))) == count
    monkeypatch.chdir(folder)
    assert len(read(opened_stream("wds/."))) == 6
    for pattern in ("shard-{000..003}.tar", "none-*.tar", "shard-{0"):
        with pytest.raises(UserError, match=r"wds/"):
            opened_stream(f"wds/{folder}/{pattern}")
    for scheme, word in (("pipe:cat a.tar", "is not read"), ("s3://bucket/a.tar", "is not read")):
        with pytest.raises(UserError, match=word):
            opened_stream(f"wds/{scheme}")


def test_splits_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path / "webdataset" / "train", [3, 3])
    write_shards(tmp_path / "webdataset" / "val", [2], first=6)
    root = tmp_path / "webdataset"
    for spec in (root, f"{root}/{{train,val}}/shard-00*.tar"):
        parts = [numbers(read(opened_stream(f"wds/{spec}", split))) for split in ("train", "val", "all")]
        assert parts == [list(range(6)), [6, 7], list(range(8))]
    assert read(opened_stream(f"wds/{root}", "val"))[0].name == "val/shard-000.tar/0000.png"
    flat = tmp_path / "flat"
    flat.mkdir()
    for split in ("train", "val"):
        for path in (root / split).glob("*.tar"):
            path.rename(flat / f"set-{split}-{path.name}")
    (root / "train" / "classes.txt").rename(flat / "classes.txt")
    assert numbers(read(opened_stream(f"wds/{flat}", "val"))) == [6, 7]


def test_class_names(tmp_path: Path, encode: Encode) -> None:
    spec = write_shards(tmp_path / "webdataset" / "set", [5])
    folder = tmp_path / "webdataset" / "set"
    (folder / "classes.txt").unlink()
    assert opened_stream(spec).classes == ("0", "1", "2")  # by a pass over the labels
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"label": {"names": ["a", "b", "c"]}}}))
    assert opened_stream(spec).classes == ("a", "b", "c")
    info = {"classes": ["d", "e", "f"], "mirrorable": False}
    info["splits"] = {"train": {"filenames": ["shard-000.tar"], "shard_lengths": [5]}}  # type: ignore[assignment]
    (folder / "_info.json").write_text(json.dumps(info))
    stream = opened_stream(spec)
    assert (stream.classes, stream.mirrorable, stream.length) == (("d", "e", "f"), False, 5)
    for split in ("train", "val"):
        stream = opened_stream(spec, split, val_fraction=0.4)
        assert stream.length == {"train": 3, "val": 2}[split]  # about, as it is cut
    for text, words in [("a\nb\na\n", "names the class 'a' twice"), ("\n", "holds no list of class names")]:
        (folder / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=words):
            opened_stream(spec)
    (folder / "classes.txt").unlink()
    (folder / "_info.json").write_text("{")
    with pytest.raises(UserError, match=r"_info\.json is not JSON"):
        opened_stream(spec)
    text = tmp_path / "text"
    write_tar(text / "a.tar", [("0.txt", b"b"), ("0.png", encode()), ("1.txt", b"a"), ("1.png", encode())])
    assert opened_stream(f"wds/{text}").classes == ("a", "b")
    assert opened_stream(f"wds/{text}", classes=["b", "c", "a"]).classes == ("b", "c", "a")


def test_shards_that_are_left_out_are_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    """Where the lengths of the shards are known, as beside those that `write_shards` writes."""
    spec = write_shards(tmp_path / "s", [10, 10, 10])
    info = {
        "splits": {
            "train": {"filenames": [f"shard-{n:03d}.tar" for n in range(3)], "shard_lengths": [10] * 3}
        }
    }
    (tmp_path / "s" / "_info.json").write_text(json.dumps(info))
    monkeypatch.setattr("conformer_vision.data.sharded.SHUFFLE_BLOCK", 5)
    stream = opened_stream(spec)
    whole = [item.name for item in read(stream, seed=3)]
    first = whole[0].partition("/")[0]
    (tmp_path / "s" / first).unlink()
    assert [item.name for item in read(stream, seed=3, start=13)] == whole[13:]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the folder of the test on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_from_a_web_server(server: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_shards(tmp_path / "webdataset" / "set", [3, 3, 1])
    stream = opened_stream(f"wds/{server}/webdataset/set/shard-{{000..002}}.tar")
    assert stream.classes == ("x", "y", "z")
    assert numbers(read(stream)) == list(range(7))
    assert sorted(numbers(read(stream, seed=2))) == list(range(7))
    folder = tmp_path / "webdataset" / "set"
    data = (folder / "shard-001.tar").read_bytes()
    (folder / "shard-001.tar").write_bytes(data[:3000])
    (folder / "shard-002.tar").unlink()
    items = read(stream)
    assert [item.name for item in items[-2:]] == ["shard-001.tar", "shard-002.tar"]
    assert len(problems(items)) == 2 and "404" not in problems(items)[0]
    (folder / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"no classes\.txt beside the shards"):
        opened_stream(f"wds/{server}/webdataset/set/shard-000.tar")
    assert (
        opened_stream(f"wds/{server}/webdataset/set/shard-000.tar", classes=("x", "y", "z")).classes[0] == "x"
    )
    with pytest.raises(UserError, match="not the address of a tar shard"):
        opened_stream(f"wds/{server}/webdataset/set")
