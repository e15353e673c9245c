"""Open stored arrays: the one door, behind which no chunk unpacks to more than its array's metadata promise.

Only codecs are let in that execute nothing that is stored and whose results are bounded.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import zarr
from numcodecs.abc import Codec as Numcodec
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.abc.store import Store
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.metadata import ArrayV2Metadata

from chorus.pipeline.io.decompression import COMPRESSIONS, check_growth, decompress

# Of numcodecs and of Zarr 3: their results are at most some times as large as what they are given.
_BOUNDED = {
    "adler32", "astype", "bitround", "bytes", "crc32", "crc32c", "delta", "fixedscaleoffset", "fletcher32",
    "jenkins_lookup3", "packbits", "quantize", "shuffle", "transpose",
}  # fmt: skip
# Between two codecs data may be larger than in the end: checksums, values of another type (16 bytes at most), an index.
_SPARE_BYTES, _WIDEST, _WIDEST_WITH_INDEX = 1 << 16, 16, 48


class UnknownCodecError(ValueError):
    """A codec that is not read."""


def open_array(store: Store | str, path: str = "", zarr_format: Literal[2, 3] | None = None) -> zarr.Array[Any]:
    """Open an array, read-only.

    Parameters
    ----------
    zarr_format : the only one whose documents are requested; None tries both

    Raises
    ------
    UnknownCodecError : its chunks are encoded by a codec that could run what is stored, or fill the memory
    Exception : as of `zarr.open_array`
    """
    array = zarr.open_array(store, path=path, mode="r", zarr_format=zarr_format)  # noqa: TID251
    opened, metadata = array.async_array, array.metadata
    if isinstance(metadata, ArrayV2Metadata):
        filters = metadata.filters or ()
        limits = _Limits.of(metadata.chunks, array.dtype.itemsize, _WIDEST if filters else 0)
        bounded: Any = replace(
            metadata,
            compressor=metadata.compressor and _bounded_numcodec(metadata.compressor, limits),
            filters=tuple(_bounded_numcodec(one, limits) for one in filters) or None,
        )
    else:
        bounded = replace(metadata, codecs=_bounded(metadata.codecs))
    return zarr.Array(type(opened)(metadata=bounded, store_path=opened.store_path, config=opened.config))


@dataclass(frozen=True, slots=True)
class _Limits:
    """Bytes of a chunk: those that the metadata promise in the end, and the most that a codec before may give."""

    promised: int
    most: int

    @classmethod
    def of(cls, shape: Iterable[int], size: int, widest: int) -> _Limits:
        """Compute them, in unbounded integers.

        Parameters
        ----------
        shape, size : of the chunk, bytes of a value
        widest : bytes that a value may have between codecs; 0 where no other codec follows
        """
        values = math.prod(int(length) for length in shape)
        most = values * max(int(size), widest) + _SPARE_BYTES if widest else values * int(size)
        return cls(values * int(size), most)

    def decompress(self, name: str, settings: Mapping[str, Any], data: Any) -> bytes:
        """Decompress a chunk within them; raises ValueError beyond."""
        check_growth(memoryview(data).nbytes, self.promised)
        return decompress(name, settings, data, self.most)


class _BoundedNumcodec(Numcodec):  # type: ignore[misc] # numcodecs has no types
    """A compressor of Zarr 2 that decodes up to what its chunk may have."""

    codec_id = "bounded"

    def __init__(self, codec: Any, limits: _Limits) -> None:
        self._codec, self._limits = codec, limits
        self.codec_id = codec.codec_id

    def encode(self, buf: Any) -> Any:
        return self._codec.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        return self._limits.decompress(self.codec_id, self._codec.get_config(), buf)

    def get_config(self) -> Any:
        return self._codec.get_config()


def _bounded_numcodec(codec: Any, limits: _Limits) -> Any:
    _check(codec.codec_id)
    return _BoundedNumcodec(codec, limits) if codec.codec_id in COMPRESSIONS else codec


def _check(name: str) -> None:
    if name not in COMPRESSIONS and name not in _BOUNDED:
        raise UnknownCodecError(
            f"its chunks are encoded by {name!r}, which is not read; store it with one of "
            f"{', '.join(sorted(COMPRESSIONS))}"
        )


@dataclass(frozen=True)
class _BoundedCodec(BytesBytesCodec):
    """A compressor of Zarr 3 that decodes up to what its chunk may have.

    Attributes
    ----------
    widest : bytes that a value may have here; 0 for those of its type, and nothing else beside them
    """

    codec: BytesBytesCodec
    widest: int

    is_fixed_size = False

    def to_dict(self) -> Any:
        return self.codec.to_dict()

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> _BoundedCodec:
        return replace(self, codec=self.codec.evolve_from_array_spec(array_spec))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        limits = _Limits.of(chunk_spec.shape, chunk_spec.dtype.to_native_dtype().itemsize, self.widest)
        name, settings = _described(self.codec)
        decoded = await asyncio.to_thread(limits.decompress, name, settings, chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(decoded)


class _BoundedShards(ShardingCodec):
    """A sharding codec whose inner codecs stay bounded in another process, too."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        object.__setattr__(self, "codecs", _bounded(self.codecs))
        object.__setattr__(self, "index_codecs", _bounded(self.index_codecs))


def _bounded(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    """Return codecs of Zarr 3 such that each of them decodes only up to a limit."""
    bounded: list[Codec] = []
    widest = 0
    for codec in codecs:
        name, _ = _described(codec)
        if isinstance(codec, ShardingCodec):
            bounded.append(
                _BoundedShards(
                    chunk_shape=codec.chunk_shape,
                    codecs=_bounded(codec.codecs),
                    index_codecs=_bounded(codec.index_codecs),
                    index_location=codec.index_location,
                )
            )
            widest = _WIDEST_WITH_INDEX
            continue
        _check(name)
        if isinstance(codec, BytesBytesCodec) and name in COMPRESSIONS:
            bounded.append(_BoundedCodec(codec, widest))
        else:
            bounded.append(codec)
        if isinstance(codec, BytesBytesCodec):
            widest = widest or _WIDEST
    return tuple(bounded)


def _described(codec: Codec) -> tuple[str, dict[str, Any]]:
    """Return a codec's name, without that of the library, and its settings."""
    described = codec.to_dict()
    settings = described.get("configuration", {})
    assert isinstance(settings, dict)
    return str(described["name"]).removeprefix("numcodecs."), settings
