"""Damage for files: what bytes, fields of headers and texts can suffer, drawn from a seeded generator."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

SIZES = (0, 1, 2, 255, 4095, 13_377, 20_000, 65_535)
"""Widths and heights to write into headers; 13,377 squared is just below the largest image decoded."""
_EXTREMES = {
    "B": (0, 1, 0x7F, 0x80, 0xFF),
    "H": (0, 1, 0x7FFF, 0x8000, 0xFFFF),
    "I": (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    "Q": (0, 1, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF),
}
"""Numbers that no file holds, by the code of their type in `struct`."""
_SIZE_CODES = ("<I", ">I", "<H", ">H")
_BOMB = b"comment\0\0" + zlib.compress(bytes(1 << 26))
_CHUNKS = (b"IDAT", b"PLTE", b"tRNS", b"IEND", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fdAT", b"gAMA")


def damage(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Damage the bytes of a file once or twice; ``others`` are files that it may be spliced with."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        if data:
            data = _damage_once(rng, data, others)
    return data


def _damage_once(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data))
    end = min(len(data), start + 1 + rng.randrange(rng.choice([4, 64, 1024])))
    piece = data[start:end]
    if others and rng.random() < 0.1:
        other = rng.choice(others)
        return data[:start] + other[rng.randrange(len(other)) :]
    match rng.choice(["bits", "header bits", "truncate", "cut", "repeat", "zeros", "noise", "field"]):
        case "bits":
            return flip_bits(rng, data)
        case "header bits":
            return flip_bits(rng, data[:128]) + data[128:]
        case "truncate":
            return data[:start]
        case "cut":
            return data[:start] + data[end:]
        case "repeat":
            return data[:end] + piece * rng.choice([1, 2, 30]) + data[end:]
        case "zeros":  # as a disk leaves them
            return data[:start] + bytes(len(piece)) + data[end:]
        case "noise":
            return data[:start] + rng.randbytes(len(piece)) + data[end:]
        case _:
            return extreme_fields(rng, data)


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip from one to 32 bits, anywhere."""
    changed = bytearray(data)
    for _ in range(1 << rng.randrange(6)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def extreme_fields(rng: random.Random, data: bytes) -> bytes:
    """Set numbers of the first or last 256 bytes to what no file holds."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        code = rng.choice(list(_EXTREMES))
        number = struct.pack(rng.choice("<>") + code, rng.choice(_EXTREMES[code]))
        first = 0 if rng.random() < 0.8 else max(len(data) - 256, 0)
        place = first + rng.randrange(256)
        data = data[:place] + number + data[place + len(number) :]
    return data


def damage_image(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage an image file: the size in its header, its chunks, or its bytes as of any file."""
    draw = rng.random()
    if draw < 0.3:
        changed = _other_size(rng, data)
        return changed if rng.random() < 0.7 else damage(rng, changed, others)
    if draw < 0.5 and data.startswith(b"\x89PNG"):
        return _png_chunks(rng, data)
    if draw < 0.52:
        return rng.choice([b"", b"\0" * 4096, b"not an image\n" * 20, rng.randbytes(2048), data + data])
    return damage(rng, data, others)


def damage_text(rng: random.Random, text: str, tokens: Sequence[str]) -> bytes:
    """Put tokens into a text, repeat, leave out or exchange its lines, or damage its bytes."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = rng.randrange(len(lines))
        draw = rng.randrange(6)
        if draw == 0:
            lines[place:place] = [lines[place]] * rng.choice([1, 2, 50])
        elif draw == 1:
            del lines[place]
            lines = lines or [""]
        elif draw == 2:
            other = rng.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        else:
            at = rng.randrange(len(lines[place]) + 1)
            end = at if draw == 3 else len(lines[place])
            lines[place] = lines[place][:at] + rng.choice(tokens) + lines[place][end:]
    data = rng.choice(["\n", "\n", "\n", "\r\n", "\r"]).join(lines).encode("utf-8", "surrogateescape")
    if rng.random() < 0.2:
        data = rng.choice([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"]) + damage(rng, data)
    return data


def _other_size(rng: random.Random, data: bytes) -> bytes:
    """Write another width or height where the header has the old one; a PNG's checksum is made to fit."""
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
    for old in size:
        new, found = rng.choice(SIZES), [code for code in _SIZE_CODES if struct.pack(code, old) in data]
        if found:
            code = rng.choice(found)
            data = data.replace(struct.pack(code, old), struct.pack(code, new), 1)
    if data.startswith(b"\x89PNG"):
        data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    return data


def _png_chunks(rng: random.Random, data: bytes) -> bytes:
    """Repeat, leave out, move, rename, blow up or damage a chunk; the checksums fit."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    moved = chunks[:place] + chunks[place + 1 :]
    moved.insert(rng.randrange(len(chunks)), chunks[place])
    chunks = rng.choice(
        [
            chunks[:place] + [chunks[place]] * rng.choice([2, 4, 1000]) + chunks[place + 1 :],
            chunks[:place] + chunks[place + 1 :],
            moved,
            [*chunks[:place], (rng.choice(_CHUNKS), body), *chunks[place + 1 :]],
            [chunks[0], (rng.choice([b"zTXt", b"iCCP"]), _BOMB), *chunks[1:]],
            [*chunks[:place], (kind, flip_bits(rng, body) if body else bytes(7)), *chunks[place + 1 :]],
        ]
    )
    packed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:8] + packed
