"""Whole files that are wrong in what they say, not in their bytes: members, columns, metadata, states."""

from __future__ import annotations

import io
import json
import random
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import good
import mutate
from PIL import Image

# fmt: off
LABELS = (
    b"", b"-1", b"3", b"9" * 30, b"nan", b"1.0", b"\xff\xfe", b"ant", b"[1]", b"true", b"null", b"{}",
    b"\0", b'{"label": {"a": 1}}', b'{"label": 1e999}', b'{"label": "bee"}', b"[" * 100_000,
    b'{"a":' * 5000, b"x" * (1 << 21), b'{"label": 1', b"2\n", b" 2 ", b"NaN", b'{"label": NaN}',
    b'{"label": true}', b'{"label": ' + b"9" * 5000 + b"}", b"9" * 5000, b'{"label": -0.0}', b'"ant"',
    b"\xe7\x8a\xac",
)
# fmt: on
# fmt: off
NAMES = (
    "../../x.png", "/etc/x.png", "x" * 300 + ".png", "\udcff.png", "a\nb.png", ".hidden.png",
    "__MACOSX/x.png", "d/" * 900 + "x.png", "d/" * 3000 + "x.png", "a/b/../c.png", "a//b.png",
    "./a/./b.png", "C:\\x.png", "train/ant/0.png", "val/ant/0.png", "set/ant/0.png", "set", "set/ant",
    "set/ant/0.png/1.png", ".png", "a.png/", "a\\b.png",
)
# fmt: on
# fmt: off
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 70, 1e999, float("nan"), "", "x", [], {}, [[]], {"a": 1}, "犬", "ant", 10**9,
)
# fmt: on


def image(rng: random.Random) -> tuple[str, bytes]:
    """File suffix and bytes of a whole image that is very long, or large though its file is small."""
    sizes = [(65_000, 1), (1, 65_000), (3, 20_000), (4000, 4000), (4000, 4000), (13_000, 13_000)]
    mode, suffix = rng.choice(
        [("RGB", ".png"), ("1", ".png"), ("P", ".gif"), ("RGBA", ".png"), ("F", ".tif")]
    )
    options = {"compression": "tiff_adobe_deflate"} if mode == "F" else {}
    return suffix, good.encoded(Image.new(mode, rng.choice(sizes)), suffix, options)


def archive(rng: random.Random, kind: str) -> bytes:
    """A zip or tar (see `good.archive`) with members of odd names, kinds and declared sizes."""
    buffer = io.BytesIO()
    names = [f"set/{name}/{number}.png" for name in good.CLASSES for number in range(3)]
    for _ in range(rng.choice([1, 1, 3])):
        names.insert(rng.randrange(len(names)), rng.choice(NAMES))
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])) as packed:
            for number, name in enumerate(names):
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                if rng.random() < 0.03:
                    info.external_attr = (stat.S_IFLNK | 0o777) << 16
                packed.writestr(info, good.plain_image(number))
        return buffer.getvalue()
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
    formats = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    with tarfile.open(fileobj=buffer, mode=kind, format=rng.choice(formats)) as tar:  # type: ignore[call-overload]
        for number, name in enumerate(names):
            data = good.plain_image(number)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if rng.random() < 0.03:
                member.type, member.linkname = rng.choice(kinds), "set/ant/0.png"
            if rng.random() < 0.02:
                member.size = rng.choice([1 << 33, 1 << 62, 0, 1])
                tar.fileobj.write(member.tobuf(tar.format, tar.encoding, tar.errors) + data)  # type: ignore[union-attr]
            else:
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shard(rng: random.Random) -> bytes:
    """A tar of samples with odd labels, and sometimes labels or images left out, keys repeated."""
    buffer = io.BytesIO()
    suffix = rng.choice(["cls", "cls", "json", "txt"])
    harm = rng.choice([0.0, 0.1])
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(9):
            label = rng.choice(LABELS) if rng.random() < 0.3 else b"%d" % (number % 3)
            files = [
                (f"{number:03d}.png", good.plain_image(number)),
                (f"{number:03d}.{suffix}", label),
            ]
            if rng.random() < harm:
                files.pop(rng.randrange(2))
            if rng.random() < harm and files:
                files.append(files[0])
            if rng.random() < harm:
                files.append((rng.choice(NAMES), b"x"))
            if rng.random() < harm / 2:
                files.append((f"{number:03d}.pyd", b"cos\nsystem\n(S'false'\ntR."))
            for name, data in files:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet(rng: random.Random) -> bytes:
    """A parquet file whose columns, values or metadata are odd, or whose bytes are damaged."""
    import pyarrow as pa

    columns = good.parquet_columns()
    draw = rng.random()
    if draw < 0.5:
        return mutate.damage(rng, good.parquet(columns))
    cell = rng.randrange(len(columns["label"]))
    if draw < 0.6:
        image = [
            {"bytes": None, "path": None},
            {"bytes": b"", "path": "x"},
            None,
            {"bytes": None, "path": "/dev/zero"},
        ]
        columns["image"][cell] = rng.choice(image)
    elif draw < 0.75:
        wrong: list[Any] = [
            *([None, -1, 3, 1 << 62, 0][number] for number in range(5)),
        ]
        columns["label"][cell] = rng.choice(wrong)
    elif draw < 0.9:
        size = len(columns["label"])
        labels: list[Any] = [
            *([1.5] * size, ["ant"] * size, ["a", "b", "c"] * 3, [None] * size, [[1]] * size, [True] * size),
            *(
                [b"x"] * size,
                pa.array(["a", "b", None] * 3).dictionary_encode(),
                pa.array([1] * size, pa.uint64()),
            ),
            *(pa.array([2**64 - 1] * size, pa.uint64()), [{"a": 1}] * size, ["犬", "\n", ""] * 3),
        ]
        columns["label"] = rng.choice(labels)
        if rng.random() < 0.3:
            columns["split"] = rng.choice(
                [["train", "val", "x"] * 3, ["train"] * size, [1] * size, ["val"] * size]
            )
    else:
        images: list[Any] = [["x"] * 9, [b""] * 9, [1] * 9, [[b"x"]] * 9, [{"bytes": "x"}] * 9, [None] * 9]
        columns["image"] = rng.choice(images)
        if rng.random() < 0.3:
            columns = {rng.choice(["x", "img", "IMAGE", ""]): columns["image"], "label": columns["label"]}
    if rng.random() < 0.1:
        columns = {name: values[:0] for name, values in columns.items()}
    return good.parquet(columns, names=rng.random() < 0.6)


def run_file(rng: random.Random, path: Path, words: Sequence[str]) -> bytes:
    """Another content for a file of a run folder."""
    data = path.read_bytes()
    if path.suffix in (".yaml", ".csv", ".txt"):
        return mutate.damage_text(rng, data.decode(), words)
    draw = rng.random()
    if path.suffix == ".safetensors" and draw < 0.5:
        return _safetensors(rng, data)
    if path.suffix == ".ckpt" and draw < 0.4:
        return _checkpoint(rng, path)
    return mutate.damage(rng, data)


def _safetensors(rng: random.Random, data: bytes) -> bytes:
    """Other values in the header, or in the model spec inside it."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.7:
        spec = json.loads(header["__metadata__"]["conformer_vision"])
        for _ in range(rng.choice([1, 1, 2])):
            name = rng.choice(sorted(spec))
            old = spec[name]
            if isinstance(old, list) and old and rng.random() < 0.5:
                old[rng.randrange(len(old))] = rng.choice(VALUES)
            elif isinstance(old, dict):
                old[rng.choice(["depths", "embed_dim", "x", "patch_size", "num_heads"])] = rng.choice(VALUES)
            elif rng.random() < 0.1:
                del spec[name]
            else:
                spec[name] = rng.choice(VALUES)
        header["__metadata__"]["conformer_vision"] = json.dumps(spec)
    else:
        name = rng.choice(sorted(header.keys() - {"__metadata__"}))
        changes: list[dict[str, Any]] = [
            *(
                {"dtype": "F16"},
                {"dtype": "X"},
                {"shape": [1 << 40]},
                {"shape": [-1]},
                {"data_offsets": [0, 1 << 50]},
            ),
            *({"data_offsets": [8, 0]}, {"shape": []}, {"shape": [[1]]}),
        ]
        header[name] |= rng.choice(changes)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _checkpoint(rng: random.Random, path: Path) -> bytes:
    """A state with a value of its first three levels left out or exchanged."""
    import torch

    state = torch.load(path, weights_only=True)
    place: Any = state
    for _ in range(rng.randrange(3)):
        inner = [value for value in place.values() if isinstance(value, dict) and value]
        if not inner:
            break
        place = rng.choice(inner)
    name = rng.choice(list(place))
    if rng.random() < 0.4:
        del place[name]
    else:
        place[name] = rng.choice(VALUES)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def folder(rng: random.Random, root: Path, listed: Path, originals: Sequence[tuple[str, bytes]]) -> None:
    """Changes a folder of class folders, or the list of exclusions beside it."""
    images = sorted(root.rglob("*.png"))
    draw = rng.randrange(9)
    if draw == 0:
        rng.choice(images).unlink()
    elif draw == 1:
        for path in rng.sample(images, rng.choice([1, 20, len(images)])):
            path.write_bytes(mutate.damage_image(rng, rng.choice(originals)[1], [originals[0][1]]))
    elif draw == 2:
        shutil.rmtree(root / rng.choice(good.CLASSES))
    elif draw == 3:
        (root / "dog").mkdir()
        (root / "dog" / "0.png").write_bytes(good.plain_image(0))
    elif draw == 4:
        shutil.rmtree(root)
        if rng.random() < 0.5:
            root.mkdir()
    elif draw == 5:
        (root / "loose.png").write_bytes(good.plain_image(0))
    elif draw == 6:
        listed.unlink()
    elif draw == 7:
        words = [str(path) for path in images]
        listed.write_bytes(mutate.damage_text(rng, listed.read_text(encoding="utf-8"), words))
    else:
        rows = ["image,reason", *(f"{path}," for path in images[rng.choice([0, 5, 12]) :])]
        listed.write_text("\n".join(rows), encoding="utf-8")
