"""Small files that unpack to gigabytes, and a limit of memory under which they are read."""

from __future__ import annotations

import bz2
import lzma
import resource
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.codecs import numcodecs as more

UNPACKED = 1 << 29
MEMORY = 256 << 20
V2 = {"blosc": numcodecs.Blosc("zstd"), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip(), "zlib": numcodecs.Zlib(),
      "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA(), "lz4": numcodecs.LZ4()}  # fmt: skip
V3 = {"blosc": BloscCodec(), "zstd": ZstdCodec(), "gzip": GzipCodec(), "numcodecs.zlib": more.Zlib(),
      "numcodecs.bz2": more.BZ2(), "numcodecs.lzma": more.LZMA(), "numcodecs.lz4": more.LZ4()}  # fmt: skip


@cache
def bomb(codec: str, size: int = UNPACKED) -> bytes:
    """Zeros of `size` bytes, compressed; made in pieces where the format has frames."""
    piece = bytes(min(size, 1 << 22))
    times = size // len(piece)
    if codec in ("gzip", "zlib"):
        stream = zlib.compressobj(9, zlib.DEFLATED, 31 if codec == "gzip" else 15)
        first = stream.compress(piece) + stream.flush(zlib.Z_FULL_FLUSH)
        # After a full flush what follows refers to nothing before, and may be repeated.
        more = stream.compress(piece) + stream.flush(zlib.Z_FULL_FLUSH)
        return first + more * (times - 2) + stream.compress(piece) * (times > 1) + stream.flush()
    if codec == "bz2":
        return bz2.compress(piece) * times
    if codec == "lzma":
        return lzma.compress(piece, preset=0) * times
    if codec == "zstd":
        return imagecodecs.zstd_encode(piece) * times
    if codec == "lz4":
        return size.to_bytes(4, "little") + imagecodecs.lz4_encode(piece) * times
    made: bytes = numcodecs.Blosc("zstd").encode(np.zeros(size, "uint8"))
    return made


def put_bomb(image: Path, content: bytes) -> None:
    """Put `content` in place of every chunk of the finest level of an image."""
    chunks = [path for path in (image / "0").rglob("*") if path.is_file() and path.name[0] not in ".z"]
    assert chunks
    for path in chunks:
        path.write_bytes(content)


def image_of(url: Path, zarr_format: int, **options: Any) -> Path:
    """An image of 64 x 64 pixels whose chunks are to be replaced."""
    told = {
        "version": "0.5" if zarr_format == 3 else "0.4",
        "multiscales": [
            {
                "version": "0.4",
                "axes": [{"name": name, "type": "space"} for name in "yx"],
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}],
            }
        ],
    }
    attributes: Any = {"ome": told} if zarr_format == 3 else told
    group = zarr.create_group(str(url), zarr_format=zarr_format, attributes=attributes)
    array = group.create_array("0", shape=(64, 64), chunks=(32, 32), dtype="uint16", **options)
    array[:] = np.arange(64 * 64, dtype="uint16").reshape(64, 64)
    return url


def shard_with(url: Path, content: bytes) -> Path:
    """An image whose shard holds `content` as each of its inner chunks."""
    image_of(url, 3, shards=(64, 64), compressors=ZstdCodec())
    (shard,) = (path for path in (url / "0/c").rglob("*") if path.is_file())
    index = np.array([[0, len(content)]] * 4, "<u8").tobytes()
    shard.write_bytes(content + index + google_crc32c.value(index).to_bytes(4, "little"))
    return url


@contextmanager
def little_memory(more: int = MEMORY) -> Iterator[None]:
    """Let this process take only `more` bytes than it has; on Linux, where a process can say what it has."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
