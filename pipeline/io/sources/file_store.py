"""A file of another format, seen as an OME-Zarr: a Zarr store whose chunks are windows that the file's reader gives.

::

    slide.svs/zarr.json            image; or a collection, with OME/zarr.json and an image under 0, 1, ...
    slide.svs/s0/zarr.json         full resolution; s1, ...: coarser levels that the file holds
    slide.svs/s0/c/0/0/0           decoded when it is read

So all that reads OME-Zarr reads the file as well, and nothing of it is unpacked. Local files alone.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.multiscales import Dataset, Multiscale
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.rasters import PartOf, Raster, Read
from chorus.pipeline.io.formats.registry import kind_of, open_rasters
from chorus.pipeline.io.outputs.file_metadata import group_attributes, position_of
from chorus.pipeline.io.outputs.groups import collection_documents, group_documents
from chorus.pipeline.io.outputs.ngff_metadata import AXIS_TYPES

_CHUNK = 512
_OPEN_FILES = 16


def source_store(url: str) -> Store:
    """Return the read-only Zarr store whose root is `url`, which may be a file of another format, or within one.

    Raises
    ------
    ImageError : such a file cannot be opened
    """
    file = file_in(url)
    if file is None:
        return storage.store(url, read_only=True)
    path, below = file
    return FileStore(path, below)


def file_in(url: str) -> tuple[str, str] | None:
    """Return the local file of another format that `url` is or lies in, and the path below it; None if it is none."""
    if storage.scheme(url) != "file":
        return None
    parts = storage.normalise(url).split("/")
    for end in range(len(parts), 0, -1):
        kind = kind_of(parts[end - 1])
        if kind is not None and kind.windows and os.path.isfile("/".join(parts[:end])):
            return "/".join(parts[:end]), "/".join(parts[end:])
    return None


class _Level:
    """One stored level of an image: its axes and lengths, and how its chunks are read."""

    def __init__(self, raster: Raster, height: int, width: int, read: Read) -> None:
        self.axes, self.read, self.dtype = raster.axes, read, np.dtype(raster.dtype).newbyteorder("<")
        lengths = raster.lengths | {"y": height, "x": width}
        edges = {"y": min(_CHUNK, height), "x": min(_CHUNK, width), "c": raster.samples}
        self.shape = tuple(lengths[axis] for axis in self.axes)
        self.chunks = tuple(edges.get(axis, 1) for axis in self.axes)

    def document(self) -> bytes:
        """Return the metadata of its array."""
        objects: dict[str, Any] = {}
        zarr.create_array(
            store=objects,
            shape=self.shape,
            chunks=self.chunks,
            dtype=self.dtype,
            fill_value=0,
            compressors=None,
            filters=None,
            dimension_names=list(self.axes),
            zarr_format=3,
        )
        content: bytes = objects["zarr.json"].to_bytes()
        return content

    def chunk(self, at: tuple[int, ...]) -> NDArray[Any] | None:
        """Return a whole chunk, with zeros beyond the image; None if there is no such one."""
        if len(at) != len(self.shape):
            return None
        spans = dict.fromkeys("tcz", range(1))
        for axis, index, edge, length in zip(self.axes, at, self.chunks, self.shape, strict=True):
            spans[axis] = range(index * edge, min((index + 1) * edge, length))
        if not all(spans.values()):
            return None
        window = Window.of(spans["y"].start, spans["y"].stop, spans["x"].start, spans["x"].stop)
        pixels = self.read(spans["t"].start, spans["z"].start, spans["c"], window)
        whole = np.zeros([edge for axis, edge in zip(self.axes, self.chunks, strict=True) if axis in "cyx"], self.dtype)
        stored = pixels if "c" in self.axes else pixels[0]
        whole[tuple(slice(length) for length in stored.shape)] = stored
        return whole


class _OpenFile:
    """A file that is open for as long as something refers to it: the documents of its groups, and its levels."""

    def __init__(self, path: str) -> None:
        kind = kind_of(path)
        stack = ExitStack()
        images = stack.enter_context(open_rasters(path))
        self._finalizer = weakref.finalize(self, stack.close)
        if isinstance(images, PartOf):
            raise ImageError(f"{path}: its planes begin in {images.url}; give that file alone")
        self.lock = nullcontext() if kind is not None and kind.parallel else threading.Lock()
        self.documents: dict[str, bytes] = {}
        self.levels: dict[str, _Level] = {}
        if len(images) == 1:
            self._add("", images[0])
            return
        places = [str(index) for index in range(len(images))]
        self.documents |= collection_documents(places)
        for folder, image in zip(places, images, strict=True):
            self._add(f"{folder}/", image)

    def _add(self, prefix: str, raster: Raster) -> None:
        full = (raster.lengths["y"], raster.lengths["x"], raster.read)
        sizes = [full, *((level.height, level.width, level.read) for level in raster.levels)]
        datasets = []
        for index, (height, width, read) in enumerate(sizes):
            level = _Level(raster, height, width, read)
            self.levels[f"{prefix}s{index}"] = level
            self.documents[f"{prefix}s{index}/zarr.json"] = level.document()
            factor = {"y": full[0] / height, "x": full[1] / width}
            position, scale = position_of(raster), raster.scale
            steps = [scale.get(axis, 1.0) * factor.get(axis, 1.0) for axis in raster.axes]
            starts = [
                position.get(axis, 0.0) + (factor.get(axis, 1.0) - 1) / 2 * scale.get(axis, 1.0) for axis in raster.axes
            ]
            datasets.append(Dataset.build(path=f"s{index}", scale=steps, translation=starts))
        axes = [Axis(name=axis, type=AXIS_TYPES[axis], unit=raster.units.get(axis)) for axis in raster.axes]
        levels = Multiscale(axes=axes, datasets=tuple(datasets), name=raster.name or None)
        ranges = [_range(np.dtype(raster.dtype))] * raster.lengths["c"] if "c" in raster.axes else []
        attributes = group_attributes(raster, levels, raster.channels, ranges)
        self.documents |= {f"{prefix}{key}": value for key, value in group_documents("", attributes, "0.5").items()}

    def get(self, key: str) -> bytes | None:
        """Return a document, or the bytes of a chunk; None if there is none."""
        if key in self.documents:
            return self.documents[key]
        level, _, index = key.partition("/c/")
        if level not in self.levels or not index:
            return None
        numbers = index.split("/")
        if not all(number.isdecimal() for number in numbers):
            return None
        with self.lock:
            chunk = self.levels[level].chunk(tuple(map(int, numbers)))
        return None if chunk is None else chunk.tobytes()


class _OpenFiles:
    """Files that are open in this process, the last used ones; one that has changed is opened again."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[str, int, int], _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> _OpenFile:
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size)
        with self._lock:
            if key not in self._files:
                self._files[key] = _OpenFile(path)
                while len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(key)
            return self._files[key]


_files = _OpenFiles()


class FileStore(Store):
    """The OME-Zarr that a file is seen as, or a group or array in it, read-only.

    Attributes
    ----------
    path : of the file
    below : path in it that is the store's root; empty for the file itself
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, path: str, below: str = "") -> None:
        super().__init__(read_only=True)
        self.path, self.below = path, below
        self._file = _files.get(path)

    def __str__(self) -> str:
        return storage.join(self.path, self.below)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileStore) and (self.path, self.below) == (other.path, other.below)

    def __reduce__(self) -> tuple[type[FileStore], tuple[str, str]]:
        return FileStore, (self.path, self.below)

    def with_read_only(self, read_only: bool = False) -> FileStore:
        """Return the store itself; raise ValueError where it is to be written."""
        if not read_only:
            raise ValueError(f"{self}: files of other formats are not written")
        return self

    def _key(self, key: str) -> str:
        return f"{self.below}/{key}".strip("/")

    def _read(self, key: str, prototype: BufferPrototype | None, part: ByteRequest | None) -> Buffer | None:
        data = self._file.get(self._key(key))
        if data is None:
            return None
        prototype = zarr.core.buffer.default_buffer_prototype() if prototype is None else prototype
        return prototype.buffer.from_bytes(data[_slice(part)])

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a document or a chunk."""
        return await asyncio.to_thread(self._read, key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a document or a chunk as `get` does."""
        return self._read(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of several documents or chunks."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is such a document or chunk."""
        key = self._key(key)
        level, _, index = key.partition("/c/")
        return key in self._file.documents or (level in self._file.levels and bool(index))

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: files of other formats are not written."""
        raise ValueError(f"{self}: files of other formats are not written")

    async def delete(self, key: str) -> None:
        """Refuse: files of other formats are not written."""
        raise ValueError(f"{self}: files of other formats are not written")

    async def list(self) -> AsyncIterator[str]:
        """List the documents; chunks are not listed."""
        for key in sorted(self._file.documents):
            if key.startswith(f"{self.below}/" if self.below else ""):
                yield key.removeprefix(f"{self.below}/" if self.below else "")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the documents whose paths begin with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List what is right below `prefix`."""
        begin = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        names = {key.removeprefix(begin).partition("/")[0] async for key in self.list() if key.startswith(begin)}
        for name in sorted(names):
            yield name


def _slice(part: ByteRequest | None) -> slice:
    if isinstance(part, RangeByteRequest):
        return slice(part.start, part.end)
    if isinstance(part, OffsetByteRequest):
        return slice(part.offset, None)
    return slice(-part.suffix, None) if isinstance(part, SuffixByteRequest) else slice(None)


def _range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the range that a viewer first shows, where the values are not known yet."""
    if dtype.kind == "f":
        return 0.0, 1.0
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)
