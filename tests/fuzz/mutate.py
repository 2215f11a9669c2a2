"""Damage for files: what bytes, fields of headers and texts can suffer, drawn from a seeded generator."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

SIZES = (0, 1, 2, 255, 4095, 13_377, 20_000, 65_535)
"""Widths and heights to write into headers; 13,377 squared is just below the largest image decoded."""
_EXTREMES = {
    1: (0, 1, 0x7F, 0x80, 0xFF),
    2: (0, 1, 0x7FFF, 0x8000, 0xFFFF),
    4: (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    8: (0, 1, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF),
}
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}

Mutation = Callable[[random.Random, bytes], bytes]


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """From one to 32 bits, anywhere."""
    changed = bytearray(data)
    for _ in range(1 << rng.randrange(6)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_header_bits(rng: random.Random, data: bytes) -> bytes:
    """Some bits of the first 128 bytes."""
    return flip_bits(rng, data[:128]) + data[128:]


def truncate(rng: random.Random, data: bytes) -> bytes:
    """Only the beginning, down to nothing."""
    return data[: rng.randrange(len(data))]


def cut_out(rng: random.Random, data: bytes) -> bytes:
    """Without a piece of the middle."""
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """A piece several times over."""
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice([1, 2, 30]) + data[end:]


def zeros(rng: random.Random, data: bytes) -> bytes:
    """A piece overwritten by zeros, as a disk leaves it."""
    start, end = _span(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


def noise(rng: random.Random, data: bytes) -> bytes:
    """A piece overwritten at random."""
    start, end = _span(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def extreme_field(rng: random.Random, data: bytes) -> bytes:
    """Some numbers of the header, or of the last 256 bytes, set to what no file holds."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        width = rng.choice([1, 2, 4, 8])
        number = struct.pack(rng.choice("<>") + _CODES[width], rng.choice(_EXTREMES[width]))
        first = 0 if rng.random() < 0.8 else max(len(data) - 256, 0)
        place = first + rng.randrange(256)
        data = data[:place] + number + data[place + width :]
    return data


GENERIC: tuple[Mutation, ...] = (
    *(flip_bits, flip_header_bits, truncate, cut_out, repeat, zeros, noise, extreme_field),
)


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def damage(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One or two of the mutations above, a splice among them where there are other files."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        if not data:
            return data
        if others and rng.random() < 0.1:
            data = splice(rng, data, rng.choice(others))
        else:
            data = rng.choice(GENERIC)(rng, data)
    return data


def damage_image(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """An image file with other sizes in its header, repeated chunks, or damaged as any file."""
    draw = rng.random()
    if draw < 0.3:
        changed = _other_size(rng, data)
        return changed if rng.random() < 0.7 else damage(rng, changed, others)
    if draw < 0.5 and data.startswith(b"\x89PNG"):
        return _png_chunks(rng, data)
    if draw < 0.02 + 0.5:
        return rng.choice([b"", b"\0" * 4096, b"not an image\n" * 20, rng.randbytes(2048), data + data])
    return damage(rng, data, others)


def damage_text(rng: random.Random, text: str, tokens: Sequence[str]) -> bytes:
    """A text with tokens put into it, lines repeated, left out or exchanged, or damaged as bytes."""
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
    if data and rng.random() < 0.2:
        data = damage(rng, data)
    return rng.choice([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"]) + data if rng.random() < 0.2 else data


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + 1 + rng.randrange(rng.choice([4, 64, 1024])))


def _other_size(rng: random.Random, data: bytes) -> bytes:
    """The same image with another width and height in its header, its checksum made to fit."""
    width, height = rng.choice(SIZES), rng.choice(SIZES)
    if data.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + data[24:29]
        return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    if data.startswith(b"\xff\xd8"):
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if (at := data.find(marker)) > 0:
                return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<ii", width, rng.choice([height, -height])) + data[26:]
    if data.startswith(b"GIF"):
        at = 6 if rng.random() < 0.5 else data.find(b"\x2c") + 5  # of the canvas, or of the first frame
        return data[:at] + struct.pack("<HH", width, height) + data[at + 4 :]
    if data.startswith((b"II", b"MM")):
        return _tiff_field(rng, data, width, height)
    if data[8:12] == b"WEBP":
        at = {b"VP8 ": 26, b"VP8L": 21, b"VP8X": 24}.get(data[12:16], 24)
        return data[:at] + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + data[at + 4 :]
    return extreme_field(rng, data)


def _tiff_field(rng: random.Random, data: bytes, width: int, height: int) -> bytes:
    """Another width and height, or another value of any field, in the first directory."""
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return data
    (count,) = struct.unpack_from(order + "H", data, start)
    changed = bytearray(data)
    chosen = rng.randrange(max(count, 1))
    for entry in range(count):
        at = start + 2 + 12 * entry
        if at + 12 > len(data):
            break
        (tag,) = struct.unpack_from(order + "H", data, at)
        if tag in (256, 257):
            struct.pack_into(order + "HII", changed, at + 2, 4, 1, width if tag == 256 else height)
        elif entry == chosen and rng.random() < 0.5:
            struct.pack_into(order + "I", changed, at + rng.choice([4, 8]), rng.choice(_EXTREMES[4]))
    return bytes(changed)


def _png_chunks(rng: random.Random, data: bytes) -> bytes:
    """A chunk repeated, left out, moved, emptied, renamed or with another length; checksums fit."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    draw = rng.randrange(6)
    if draw == 0:
        chunks[place:place] = [chunks[place]] * rng.choice([1, 3, 1000])
    elif draw == 1:
        del chunks[place]
    elif draw == 2:
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(place))
    elif draw == 3:
        names = [b"IDAT", b"PLTE", b"tRNS", b"IEND", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fdAT", b"gAMA"]
        chunks[place] = (rng.choice(names), body)
    elif draw == 4:
        bomb = b"comment\0\0" + zlib.compress(bytes(1 << 26))
        chunks.insert(1, rng.choice([(b"zTXt", bomb), (b"iCCP", bomb)]))
    else:
        chunks[place] = (kind, flip_bits(rng, body) if body else b"\0" * 7)
    packed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:8] + packed
