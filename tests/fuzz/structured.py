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
    return suffix, good.encoded(Image.new(mode, rng.choice(sizes)), suffix, **options)


def archive(rng: random.Random, kind: str) -> bytes:
    """A zip or tar (see `good.archive`) with members of odd names, kinds and declared sizes."""
    files = good.members()
    for _ in range(rng.choice([1, 1, 3])):
        files.insert(rng.randrange(len(files)), (rng.choice(NAMES), good.plain_image(0)))
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]

    def change(member: Any) -> None:
        draw = rng.random()
        if isinstance(member, zipfile.ZipInfo):
            member.external_attr = (stat.S_IFLNK | 0o777) << 16 if draw < 0.03 else 0
        elif draw < 0.03:
            member.type, member.linkname = rng.choice(kinds), "set/ant/0.png"
        elif draw < 0.05:
            member.size = rng.choice([1 << 33, 1 << 62, 0, 1])

    return good.archive(kind, files, change)


def shard(rng: random.Random) -> bytes:
    """A tar of samples with odd labels, and sometimes labels or images left out, keys repeated."""
    suffix = rng.choice(["cls", "cls", "json", "txt"])
    harm = rng.choice([0.0, 0.1])
    files: list[tuple[str, bytes]] = []
    for number in range(9):
        label = rng.choice(LABELS) if rng.random() < 0.3 else b"%d" % (number % 3)
        sample = [(f"{number:03d}.png", good.plain_image(number)), (f"{number:03d}.{suffix}", label)]
        if rng.random() < harm:
            sample.pop(rng.randrange(2))
        if rng.random() < harm:
            sample.append(sample[0])
        if rng.random() < harm:
            sample.append((rng.choice(NAMES), b"x"))
        if rng.random() < harm / 2:
            sample.append((f"{number:03d}.pyd", b"cos\nsystem\n(S'false'\ntR."))
        files += sample
    return good.archive("w", files)


def parquet(rng: random.Random) -> bytes:
    """A parquet file whose columns, values or metadata are odd, or whose bytes are damaged."""
    import pyarrow as pa

    columns = good.parquet_columns()
    cell = rng.randrange(9)
    images: list[Any] = [["x"] * 9, [b""] * 9, [1] * 9, [[b"x"]] * 9, [{"bytes": "x"}] * 9, [None] * 9]
    image: list[Any] = [{"bytes": None, "path": path} for path in (None, "/dev/zero", "x")]
    labels: list[Any] = [[value] * 9 for value in (1.5, "ant", None, [1], True, b"x", {"a": 1})]
    labels += [["a", "b", "c"] * 3, ["犬", "\n", ""] * 3, pa.array(["a", "b", None] * 3).dictionary_encode()]
    labels += [pa.array([number] * 9, pa.uint64()) for number in (1, 2**64 - 1)]
    splits: list[Any] = [["train", "val", "x"] * 3, ["train"] * 9, [1] * 9, ["val"] * 9]
    match rng.choice(["bytes"] * 5 + ["image", "label", "labels", "images", "names"]):
        case "bytes":
            return mutate.damage(rng, good.parquet(columns))
        case "image":
            columns["image"][cell] = rng.choice([None, {"bytes": b"", "path": "x"}, *image])
        case "label":
            columns["label"][cell] = rng.choice([None, -1, 3, 1 << 62, 0])
        case "labels":
            columns["label"] = rng.choice(labels)
            if rng.random() < 0.3:
                columns["split"] = rng.choice(splits)
        case "images":
            columns["image"] = rng.choice(images)
        case _:
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
        changes: list[dict[str, Any]] = [{"dtype": kind} for kind in ("F16", "X")]
        changes += [{"shape": shape} for shape in ([1 << 40], [-1], [], [[1]])]
        changes += [{"data_offsets": places} for places in ([0, 1 << 50], [8, 0])]
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
