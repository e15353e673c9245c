"""Limits for tiles and strips of TIFFs: sizes that pictures claim are read before anything is decoded or allocated."""

from __future__ import annotations

import math
import struct
from typing import Any

import tifffile

from chorus.pipeline.io.decompression import check_growth

# JPEG's start of frame, of all of its processes; C4, C8 and CC between them are other segments.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_XL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
# Some programs pad the last strip of a picture to whole blocks or strips.
_SPARE = 4


def bound_segments(series: tifffile.TiffPageSeries) -> None:
    """Let the tiles and strips of a series be decoded only up to what its tags promise.

    tifffile gives most decoders a limit. Those of pictures (JPEG, PNG, ...) take the size in the picture's own header,
    and all of them what the tags say, which may be more than any segment of its length holds.
    """
    page = series.keyframe
    if page.dtype is None or page.compression == 1:
        return
    decode, promised = page.decode, math.prod(map(int, page.chunks))
    size = promised * page.dtype.itemsize

    def bounded(data: bytes | None, index: int, /, **options: Any) -> Any:
        if data is not None:
            check_growth(len(data), size)
            if page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:
                claimed = claimed_pixels(data)
                if claimed is not None and claimed > _SPARE * promised:
                    raise ValueError(f"a tile or strip claims {claimed} pixels, its tags promise {promised}")
        return decode(data, index, **options)

    page.decode = bounded


def claimed_pixels(data: bytes) -> int | None:
    """Return the pixels of a JPEG, JPEG 2000, JPEG XL, JPEG XR, PNG or WebP stream; None if its header says nothing."""
    try:
        return _pixels(data)
    except (struct.error, IndexError):  # cut short: the decoder says so
        return None


def _pixels(data: bytes) -> int | None:
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        at = data.index(b"\xff\x4f\xff\x51") if b"\xff\x4f\xff\x51" in data else len(data)
        right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
        return int(max(right - left, 0) * max(bottom - top, 0))
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack_from(">2I", data, 16)
        return int(width * height)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:2] == b"\xff\x0a":
        return _jpeg_xl(data[2:])
    if data[4:8] == b"JXL ":
        box = next((at for at in (data.find(b"jxlc") + 4, data.find(b"jxlp") + 8) if at > 8), len(data))
        return _jpeg_xl(data[box + 2 :])
    if data[:3] == b"II\xbc":
        return _jpeg_xr(data)
    return None


def _jpeg(data: bytes) -> int | None:
    """Return the pixels of its largest frame; those of thumbnails lie within other segments, which are left out."""
    at, most = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA or marker == 0xD9:
            break
        if marker in _FRAMES:
            height, width = struct.unpack_from(">2H", data, at + 5)
            most = max(most or 0, height * width)
        at += 2 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return most


def _webp(data: bytes) -> int | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (length & 0x3FFF for length in struct.unpack_from("<2H", data, 26))
    return width * height


def _jpeg_xl(header: bytes) -> int:
    """Read the size header (ISO/IEC 18181-1, D.2): bits from the least significant one on."""
    bits, used = int.from_bytes(header[:16].ljust(16, b"\0"), "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    small = take(1)

    def length() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height, ratio = length(), take(3)
    if not ratio:
        return height * length()
    numerator, denominator = _XL_RATIOS[ratio]
    return height * (height * numerator // denominator)


def _jpeg_xr(data: bytes) -> int | None:
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    sizes = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from("<2H2I", data, entry)
        sizes[tag] = value & 0xFFFF if kind == 3 else value
    return sizes[0xBC80] * sizes[0xBC81] if {0xBC80, 0xBC81} <= sizes.keys() else None
