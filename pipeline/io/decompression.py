"""Decompression with a limit: a few kilobytes that unpack to gigabytes cost neither time nor memory.

A frame that states its size is refused by it, before anything is decoded; others are decoded up to the limit. Beyond
the limit that metadata set, a file that would grow by more than images do is refused, whatever its metadata promise.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, cast

import imagecodecs
import numcodecs.blosc
import numcodecs.lz4
import psutil

from chorus.pipeline.errors import ImageError

# Beyond some size a file that grows by more than this is not read. Deflate never does (1,032 at most), nor do images by
# another codec that are not empty.
_LARGE_BYTES, _RATIO = 1 << 30, 1100
# What is in memory at once while a file is read whole, in its own sizes; and the share of the free memory for it.
_COPIES, _MEMORY_SHARE = 3, 0.5
# An LZMA dictionary; `xz -9` takes 64 MiB.
_DICTIONARY_BYTES = 1 << 28


class TooLargeError(ValueError):
    """Data that unpack to more than they may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"it unpacks to more than the {limit} bytes that the metadata promise")


class _Decompressor(Protocol):
    """Of the standard library: it decodes one frame, up to a number of bytes."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Any, max_length: int, /) -> bytes: ...


def check_growth(stored: int, unpacked: int) -> None:
    """Raise ValueError where `stored` bytes would fill the memory with so many that no image compresses so well."""
    if unpacked > _LARGE_BYTES and unpacked > _RATIO * stored:
        raise ValueError(
            f"{stored} bytes would unpack to {unpacked >> 20} MiB, which no image does; if it is empty on purpose, "
            "store it in smaller pieces"
        )


def check_memory(url: str, unpacked: int) -> None:
    """Raise ImageError where a file that unpacks to so many bytes takes more memory than is free, read whole."""
    needed, free = _COPIES * unpacked, psutil.virtual_memory().available
    if unpacked > _LARGE_BYTES and needed > _MEMORY_SHARE * free:
        raise ImageError(
            f"{url}: takes {needed / (1 << 30):.1f} GiB of memory to be read whole, too much of the {free >> 30} GiB "
            "that are free; save it as a tiled TIFF or OME-Zarr, or convert it on a larger machine"
        )


def decompress(name: str, settings: Mapping[str, Any], data: Any, limit: int) -> bytes:
    """Decompress one chunk.

    Parameters
    ----------
    name : of the codec, one of `COMPRESSIONS`
    settings : of the codec, from the array's metadata
    data : any buffer of bytes
    limit : maximum of bytes of the result

    Raises
    ------
    TooLargeError : the result is larger
    """
    return COMPRESSIONS[name](settings, memoryview(data).cast("B"), limit)


def unpack_gzip(data: bytes, limit: int) -> bytes:
    """Decompress up to `limit` bytes of a gzip file, and no more; raises zlib.error or EOFError for a damaged one."""
    return _frames(_gzip, data, limit)


def _frames(begin: Callable[[], _Decompressor], data: Any, limit: int) -> bytes:
    """Decompress frames that follow one another, up to `limit` bytes."""
    parts: list[bytes] = []
    rest: Any = data
    while len(rest) and limit > 0:
        frame = begin()
        parts.append(frame.decompress(rest, limit))
        limit -= len(parts[-1])
        if not frame.eof and limit > 0:
            raise EOFError("it ends before its compressed data do")
        rest = frame.unused_data.lstrip(b"\0")  # padding
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _stream(
    begin: Callable[[Mapping[str, Any]], _Decompressor], settings: Mapping[str, Any], data: Any, limit: int
) -> bytes:
    content = _frames(lambda: begin(settings), data, limit + 1)
    if len(content) > limit:
        raise TooLargeError(limit)
    return content


def _gzip(_settings: Mapping[str, Any] | None = None) -> _Decompressor:
    return zlib.decompressobj(wbits=31)


def _zlib(_settings: Mapping[str, Any]) -> _Decompressor:
    return zlib.decompressobj()


def _bz2(_settings: Mapping[str, Any]) -> _Decompressor:
    return bz2.BZ2Decompressor()


def _lzma(settings: Mapping[str, Any]) -> _Decompressor:
    form, filters = int(settings.get("format") or lzma.FORMAT_XZ), settings.get("filters")
    if form != lzma.FORMAT_RAW:
        return lzma.LZMADecompressor(form, memlimit=_DICTIONARY_BYTES)
    if any(int(one.get("dict_size") or 0) > _DICTIONARY_BYTES for one in filters or ()):
        raise ValueError("its LZMA dictionary is larger than any that is needed")
    return lzma.LZMADecompressor(form, filters=filters)


def _zstd(_settings: Mapping[str, Any], data: Any, limit: int) -> bytes:
    try:
        return cast(bytes, imagecodecs.zstd_decode(data, out=limit))
    except imagecodecs.ZstdError as error:
        if "too small" in str(error):
            raise TooLargeError(limit) from error
        raise


def _stated(
    header: slice, decode: Callable[[Any], bytes], _settings: Mapping[str, Any], data: Any, limit: int
) -> bytes:
    """Decompress a frame whose `header` states its size, as a little-endian number."""
    if int.from_bytes(data[header], "little") > limit:
        raise TooLargeError(limit)
    return decode(data)


COMPRESSIONS: dict[str, Callable[[Mapping[str, Any], Any, int], bytes]] = {
    "blosc": partial(_stated, slice(4, 8), numcodecs.blosc.decompress),
    "bz2": partial(_stream, _bz2),
    "gzip": partial(_stream, _gzip),
    "lz4": partial(_stated, slice(0, 4), numcodecs.lz4.decompress),
    "lzma": partial(_stream, _lzma),
    "zlib": partial(_stream, _zlib),
    "zstd": _zstd,
}
