import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError

pytest.importorskip("webdataset")
Encode = Callable[..., bytes]


def read(stream: Any, **options: Any) -> list[Any]:
    return list(stream.read(**({"seed": None, "part": 0, "parts": 1} | options)))


def problems(items: list[Any]) -> list[str]:
    return [str(item.image) for item in items if isinstance(item.image, BrokenImageError)]


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path: Path, tools: Any, encode: Encode) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    files = []
    for number in range(2):
        files += [(f"{number}.{kind}", bomb) for kind in ("pyd", "pickle", "pkl", "pth", "npy", "mp", "ten")]
        files += [(f"{number}.cls", str(number).encode()), (f"{number}.png", encode(tools.colour(number)))]
    files += [("2.pyd", bomb), ("2.cls", bomb), ("2.png", bomb), ("3.png", encode()), ("3.pickle", bomb)]
    tools.write_tar(tmp_path / "s" / "a.tar", files)
    (tmp_path / "s" / "classes.txt").write_text("x\ny\n")
    items = read(tools.open(f"wds/{tmp_path}/s"))
    assert tools.numbers(items[:2]) == [0, 1]
    assert [item.name for item in items] == [f"a.tar/{number}.png" for number in range(4)]
    assert "its label (cls) cannot be read" in str(items[2].image) or "none of the classes" in str(
        items[2].image
    )
    assert "a.tar/3.png: it has no label" in str(items[3].image)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # the bomb works
    assert (tmp_path / "exploded").exists()


def test_kinds_of_labels_and_images(tmp_path: Path, tools: Any, encode: Encode) -> None:
    image = [encode(tools.colour(number), kind=kind) for number, kind in enumerate(["PNG", "BMP", "TIFF"])]
    tools.write_tar(
        tmp_path / "a.tar",
        [
            ("d/0.PNG", image[0]),
            ("d/0.cls", b" 1\n"),
            ("d/1.json", b'{"label": "y"}'),
            ("d/1.bmp", image[1]),
            ("d/2.tiff", image[2]),
            ("d/2.txt", "ü\n".encode()),
            ("d/3.png", image[0]),
            ("d/3.cls", b"x"),
            ("d/3.txt", b"a caption, which is not the label"),
            ("d/4.json", b'{"label": 2}'),
            ("d/4.png", image[0]),
        ],
    )
    (tmp_path / "classes.txt").write_text("x\ny\nü\n", encoding="utf-8")
    items = read(tools.open(f"wds/{tmp_path}/a.tar"))
    assert [item.label for item in items] == [1, 1, 2, 0, 2]
    assert [item.name for item in items[:2]] == ["a.tar/d/0.png", "a.tar/d/1.bmp"]
    assert tools.numbers(items[:3]) == [0, 1, 2]


def test_samples_that_lack_something(tmp_path: Path, tools: Any, encode: Encode) -> None:
    tools.write_tar(
        tmp_path / "a.tar",
        [
            ("0.png", encode()),
            ("1.cls", b"0"),
            ("2.png", encode()),
            ("2.cls", b"7"),
            ("3.png", encode()),
            ("3.cls", b"-1"),
            ("4.png", encode()),
            ("4.json", b"{"),
            ("5.png", encode()),
            ("5.json", b'{"label": true}'),
            ("6.png", encode()),
            ("6.cls", b"\xff"),
            ("README", b""),
            ("7.png", encode()),
            ("7.cls", b"1"),
        ],
    )
    (tmp_path / "classes.txt").write_text("x\ny\n")
    items = read(tools.open(f"wds/{tmp_path}"))
    found = problems(items)
    expected = [
        "no label",
        "no image",
        "out of range",
        "out of range",
        "(json) cannot",
        "json has",
        "(cls) cannot",
    ]
    assert len(found) == len(expected) == len(items) - 1
    for number, (problem, words) in enumerate(zip(found, expected, strict=True)):
        assert problem.startswith(f"a.tar/{number}") and words in problem and "\n" not in problem
    assert items[-1].label == 1


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_anywhere(mode: str, tmp_path: Path, tools: Any, encode: Encode) -> None:
    """Whatever the place, the images before it are read, and one more item names the shard."""
    files = []
    for number in range(3):
        files += [(f"{number}.cls", b"0"), (f"{number}.png", encode(tools.colour(number)))]
    whole = tools.write_tar(tmp_path / "whole.tar", files, mode=mode).read_bytes()
    length = 3 * 512 + len(encode(tools.colour(0)))  # two headers, a label and an image
    end = len(whole) if mode != "w" else 3 * 2048 + 511  # in the mark that ends the archive
    shard = tmp_path / "s" / "a.tar"
    shard.parent.mkdir()
    (tmp_path / "s" / "classes.txt").write_text("x\ny\n")
    for size in [*range(0, end, 100), *range(512, end + 1, 512)] if mode == "w" else range(0, end, 7):
        shard.write_bytes(whole[:size])
        items = read(tools.open(f"wds/{shard}"))
        if mode == "w:gz" and not problems(items):  # what is cut off says only that all is well
            assert size > end / 2 and tools.numbers(items) == [0, 1, 2]
            continue
        good = items[:-1]
        assert tools.numbers(good) == list(range(len(good))), size
        assert [item.label for item in good] == [0] * len(good)
        if mode == "w":
            assert len(good) == sum(size >= 2048 * number + length for number in range(3)), size
        assert str(items[-1].image).startswith("a.tar: the shard cannot be read to its end"), size
        for parts in (2, 3):
            shared = [
                item
                for part in range(parts)
                for item in read(tools.open(f"wds/{shard}"), part=part, parts=parts)
            ]
            assert sorted(item.name for item in shared) == sorted(item.name for item in items)


def test_damaged_headers_and_other_files(tmp_path: Path, tools: Any, encode: Encode) -> None:
    files = [("0.cls", b"0"), ("0.png", encode(tools.colour(0))), ("1.cls", b"0"), ("1.png", encode())]
    whole = tools.write_tar(tmp_path / "a.tar", files).read_bytes()
    (tmp_path / "classes.txt").write_text("x\ny\n")
    cases = {
        "garbage": b"no archive at all" * 100,
        "header": whole[:2048] + b"?" * 512 + whole[2560:],
        "twice": tools.write_tar(tmp_path / "b.tar", [*files[:2], *files[2:], files[3]]).read_bytes(),
    }
    (tmp_path / "b.tar").unlink()
    for case, content in cases.items():
        (tmp_path / "a.tar").write_bytes(content)
        items = read(tools.open(f"wds/{tmp_path}/a.tar"))
        assert str(items[-1].image).startswith("a.tar: the shard cannot be read"), case
        assert tools.numbers(items[:-1]) == ([] if case == "garbage" else [0]), case
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(UserError, match="holds no shards"):
        tools.open(f"wds/{tmp_path}/a.tar")


def test_a_shard_that_goes_missing(tmp_path: Path, tools: Any, write_set: Any) -> None:
    stream = tools.open(write_set("webdataset", [2, 2]))
    (tmp_path / "webdataset" / "set" / "shard-000.tar").unlink()
    items = read(stream)
    assert problems(items) == [
        "shard-000.tar: the shard cannot be read to its end (No such file or directory)"
    ]
    assert tools.numbers(items[1:]) == [2, 3]
    # Both splits hear of it.
    for split in ("train", "val"):
        (tmp_path / "webdataset" / "set" / "shard-000.tar").write_bytes(b"")
        assert len(problems(read(tools.open(f"wds/{tmp_path}/webdataset/set", split)))) == 1


def test_patterns_and_folders(tmp_path: Path, tools: Any, write_set: Any, monkeypatch: Any) -> None:
    write_set("webdataset", [2, 2, 2])
    folder = tmp_path / "webdataset" / "set"
    for pattern, count in [
        ("shard-{000..001}.tar", 4),
        ("shard-00[12].tar", 4),
        ("*.tar", 6),
        ("shard-001.tar", 2),
    ]:
        assert len(read(tools.open(f"wds/{folder}/{pattern}"))) == count
        assert len(read(tools.open(f"WDS/set/{pattern}", data_dir=tmp_path / "webdataset"))) == count
    monkeypatch.chdir(folder)
    assert len(read(tools.open("wds/."))) == 6
    for pattern in ("shard-{000..003}.tar", "none-*.tar", "shard-{0"):
        with pytest.raises(UserError, match=r"wds/"):
            tools.open(f"wds/{folder}/{pattern}")
    for scheme, word in (("pipe:cat a.tar", "runs commands"), ("s3://bucket/a.tar", "is not read")):
        with pytest.raises(UserError, match=word):
            tools.open(f"wds/{scheme}")


def test_splits_by_name(tmp_path: Path, tools: Any, write_set: Any) -> None:
    write_set("webdataset", [3, 3], folder="train")
    write_set("webdataset", [2], folder="val", first=6)
    root = tmp_path / "webdataset"
    for spec in (root, f"{root}/{{train,val}}/shard-00*.tar"):
        parts = [tools.numbers(read(tools.open(f"wds/{spec}", split))) for split in ("train", "val", "all")]
        assert parts == [list(range(6)), [6, 7], list(range(8))]
    assert read(tools.open(f"wds/{root}", "val"))[0].name == "val/shard-000.tar/0000.png"
    flat = tmp_path / "flat"
    flat.mkdir()
    for split in ("train", "val"):
        for path in (root / split).glob("*.tar"):
            path.rename(flat / f"set-{split}-{path.name}")
    (root / "train" / "classes.txt").rename(flat / "classes.txt")
    assert tools.numbers(read(tools.open(f"wds/{flat}", "val"))) == [6, 7]


def test_class_names(tmp_path: Path, tools: Any, write_set: Any, encode: Encode) -> None:
    spec = write_set("webdataset", [5])
    folder = tmp_path / "webdataset" / "set"
    (folder / "classes.txt").unlink()
    assert tools.open(spec).classes == ("0", "1", "2")  # by a pass over the labels
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"label": {"names": ["a", "b", "c"]}}}))
    assert tools.open(spec).classes == ("a", "b", "c")
    info = {"classes": ["d", "e", "f"], "mirrorable": False}
    info["splits"] = {"train": {"filenames": ["shard-000.tar"], "shard_lengths": [5]}}  # type: ignore[assignment]
    (folder / "_info.json").write_text(json.dumps(info))
    stream = tools.open(spec)
    assert (stream.classes, stream.mirrorable, stream.length) == (("d", "e", "f"), False, 5)
    for split in ("train", "val"):
        stream = tools.open(spec, split, val_fraction=0.4)
        assert stream.length == len(read(stream))
    for text, words in [("a\nb\na\n", "names the class 'a' twice"), ("\n", "holds no list of class names")]:
        (folder / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=words):
            tools.open(spec)
    (folder / "classes.txt").unlink()
    (folder / "_info.json").write_text("{")
    with pytest.raises(UserError, match=r"_info\.json is not JSON"):
        tools.open(spec)
    text = tmp_path / "text"
    tools.write_tar(
        text / "a.tar", [("0.txt", b"b"), ("0.png", encode()), ("1.txt", b"a"), ("1.png", encode())]
    )
    assert tools.open(f"wds/{text}").classes == ("a", "b")
    assert tools.open(f"wds/{text}", classes=["b", "c", "a"]).classes == ("b", "c", "a")
    tools.write_tar(text / "b.tar", [("0.cls", b"1"), ("0.png", encode())])
    with pytest.raises(UserError, match="some labels are names"):
        tools.open(f"wds/{text}")


def test_what_is_left_out_is_not_read(tmp_path: Path, tools: Any, write_set: Any, monkeypatch: Any) -> None:
    from conformer_vision.data.streams.tar import Span

    stream = tools.open(write_set("webdataset", [10, 10]))
    sizes: list[int] = []
    original = Span.read
    monkeypatch.setattr(Span, "read", lambda span: sizes.append(span.size) or original(span))
    assert len(read(stream, seed=3, start=15)) == len(sizes) == 5
    sizes.clear()
    assert len(read(stream, part=1, parts=4)) == len(sizes) == 5


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


def test_from_a_web_server(server: str, tmp_path: Path, tools: Any, write_set: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_set("webdataset", [3, 3, 1])
    stream = tools.open(f"wds/{server}/webdataset/set/shard-{{000..002}}.tar")
    assert stream.classes == ("x", "y", "z") and stream.parts == 3
    assert tools.numbers(read(stream)) == list(range(7))
    assert sorted(tools.numbers(read(stream, seed=2))) == list(range(7))
    folder = tmp_path / "webdataset" / "set"
    data = (folder / "shard-001.tar").read_bytes()
    (folder / "shard-001.tar").write_bytes(data[:3000])
    (folder / "shard-002.tar").unlink()
    items = read(stream)
    assert [item.name for item in items[-2:]] == ["shard-001.tar", "shard-002.tar"]
    assert len(problems(items)) == 2 and "404" not in problems(items)[0]
    (folder / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"no classes\.txt beside the shards"):
        tools.open(f"wds/{server}/webdataset/set/shard-000.tar")
    assert tools.open(f"wds/{server}/webdataset/set/shard-000.tar", classes=("x", "y", "z")).classes[0] == "x"
    with pytest.raises(UserError, match="not the address of a tar shard"):
        tools.open(f"wds/{server}/webdataset/set")
