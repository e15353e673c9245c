"""Sources of pixels: an upload in memory, or an image in storage below a prefix that the operator allows."""

from __future__ import annotations

import ipaddress
import math
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.planning.image_statistics import measured, stored_pixels
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ChorusError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.conversion import ConvertSettings, convert_raster
from chorus.pipeline.io.formats.rasters import Raster
from chorus.pipeline.io.models import SourceImage
from chorus.pipeline.io.outputs.pyramid import half
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.preprocessing.preparation import Measure, Statistics, surveyed
from chorus.serving.contract.problems import RequestError

_SCHEMES = ("gs", "s3", "az", "https", "http")
_PART = re.compile(r"[A-Za-z0-9._ +=@-]+")
# Any of them makes a folder a Zarr group.
_GROUP = ("zarr.json", ".zgroup", ".zattrs")
# Maximum of bytes of one decoded chunk.
_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Uploaded:
    """An image that was uploaded with the request.

    Attributes
    ----------
    image : as `chorus convert` would describe it, including its pyramid
    pixels : (t, c, z, y, x) as stored, of the finest level
    """

    image: SourceImage
    pixels: NDArray[Any]

    def measure(self, image: PlannedImage, measures: frozenset[Measure]) -> Statistics:
        """Measure statistics over all planes of the level of `image`.

        Raises
        ------
        RequestError
            422, if pixels are NaN or infinite.
        """
        level = self._level(image)
        times, depths = image.planes
        planes = [(t, z) for t in range(times) for z in range(depths)]
        blocks = [self._plane(image, level, t, z) for t, z in planes]
        return surveyed(measures, blocks, [(t, z, 0, 0) for t, z in planes])

    def reader(self, image: PlannedImage, t: int, z: int) -> Callable[[Window], NDArray[Any]]:
        """Return a function that reads windows of a plane.

        Returns
        -------
        function from a window to (channels, y, x), the image's channels in the file's data type

        Raises
        ------
        RequestError
            422, if pixels of the plane are NaN or infinite.
        """
        plane = self._plane(image, self._level(image), t, z)
        return lambda window: plane[:, window.y.slice, window.x.slice]

    def keep(self, url: str) -> None:
        """Write it as an OME-Zarr image, as `chorus convert` does; raise OutputError if it cannot be written."""
        finest = self.image.levels[0]
        named = self.image.channels != tuple(map(str, range(len(self.image.channels))))
        known = {axis: unit for axis, unit in zip(self.image.axes, self.image.units, strict=True) if unit is not None}
        scale = {axis: finest.scale[self.image.axes.index(axis)] for axis in known}

        def read(t: int, z: int, channels: range, window: Window) -> NDArray[Any]:
            return self.pixels[t, channels.start : channels.stop, z, window.y.slice, window.x.slice]

        raster = Raster(
            url=self.image.root,
            axes=self.image.axes,
            shape=finest.shape,
            dtype=finest.dtype,
            channels=self.image.channels if named else (),
            samples=1,
            scale=scale,
            units=known,
            read=read,
        )
        convert_raster(raster, url, ConvertSettings())

    def _level(self, image: PlannedImage) -> int:
        return next(i for i, level in enumerate(self.image.levels) if level.path == image.level_path)

    def _plane(self, image: PlannedImage, level: int, t: int, z: int) -> NDArray[Any]:
        planes = [self.pixels[t, c, z] for c in image.channels]
        for _ in range(level):
            planes = [half(plane) for plane in planes]
        stacked: NDArray[Any] = np.stack(planes)
        if stacked.dtype.kind == "f" and not np.isfinite(stacked).all():
            raise RequestError(422, "pixels are NaN or infinite; clean or mask them")
        return stacked


@dataclass(frozen=True)
class Stored:
    """An image of an OME-Zarr in storage; `url` and `path` have passed `check_source` and `check_path`."""

    url: str
    path: str = ""

    def open(self) -> SourceImage:
        """Read its metadata.

        Raises
        ------
        RequestError
            If they lead out of the image, or its chunks exceed the limit.
        ChorusError
            If there is no image, or its codec is not read.
        """
        guard_web()
        image = open_image(self.url, "image" if not self.path else "collection", self.path, "image.ome.zarr")
        for level in image.levels:
            if not _is_plain(level.path):
                raise RequestError(422, "the image's metadata name an array outside of it")
            if math.prod(map(int, level.chunks)) * np.dtype(level.dtype).itemsize > _CHUNK_BYTES:
                raise RequestError(422, f"the image's chunks {level.chunks} are larger than is read here")
        return image

    def is_there(self) -> bool:
        """Return whether there is any Zarr group, of an image or not."""
        group = storage.join(self.url, *filter(None, [self.path]))
        with storage_errors(group):
            return any(storage.exists(storage.join(group, name)) for name in _GROUP)

    def measure(self, image: PlannedImage, measures: frozenset[Measure]) -> Statistics:
        """As `Uploaded.measure`, in one or more passes over the image."""
        return measured(image, measures, stored_pixels(image, strict=False))

    def reader(self, image: PlannedImage, t: int, z: int) -> Callable[[Window], NDArray[Any]]:
        """Return a function that reads windows of a plane.

        Returns
        -------
        function from a window to (channels, y, x), the image's channels in its data type
        """
        array = open_level(image.url, image.level_path, image.ngff)
        return lambda window: read_window(array, image.axes, t, z, image.channels, window)


Source = Uploaded | Stored


def check_prefix(url: str) -> str:
    """Return an operator's allowed prefix with a slash at its end; raise ValueError for an invalid one."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{url}: give a URL of {', '.join(_SCHEMES)} without login and query, such as gs://bucket/")
    return url.rstrip("/") + "/"


def check_source(url: str, prefixes: Iterable[str], field: str = "source.url") -> str:
    """Return a client's URL if it is below one of `prefixes`.

    Parameters
    ----------
    field : of the request, for the error message

    Raises
    ------
    RequestError
        403 if it is not, or leads to an address that is not public; the answer does not tell whether it exists.
    """
    parts = urlsplit(url)
    plain = parts.scheme in _SCHEMES and not (parts.query or parts.fragment or "@" in parts.netloc)
    # Prefixes are compared as text, so that there must be only one way to write a location.
    if not plain or not _is_plain(parts.path.strip("/")) or not url.isascii() or url != url.strip():
        raise RequestError(
            403, f"{field} must be a plain https://, gs://, s3:// or az:// URL without login, query or `..`"
        )
    if not any(f"{url.rstrip('/')}/".startswith(prefix) for prefix in prefixes):
        raise RequestError(403, f"{field} is not below a prefix that this server may use")
    if parts.scheme in ("http", "https"):
        require_public(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    return url.rstrip("/")


def check_path(path: str) -> str:
    """Return a path within an OME-Zarr, such as ``B/3/0``; raise RequestError if it leads out of it."""
    if path and not _is_plain(path.strip("/")):
        raise RequestError(422, "source.image must be a path inside the OME-Zarr, such as B/3/0")
    return path.strip("/")


def require_public(host: str, port: int) -> list[str]:
    """Return the addresses of `host`; raise RequestError 403 if any of them is not on the public internet."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise RequestError(403, "the host of source.url cannot be reached from here") from error
    if not addresses or not all(_is_public(address) for address in addresses):
        raise RequestError(403, "the host of source.url cannot be reached from here")
    return sorted(addresses)


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    return parsed.is_global and not parsed.is_multicast and (inner is None or inner.is_global)


def _is_plain(path: str) -> bool:
    parts = path.split("/")
    return all(_PART.fullmatch(part) and part.strip(".") for part in parts)


@cache
def guard_web() -> None:
    """Restrict what this process reads over HTTP to public addresses, without redirects.

    A host name that was public when it was checked may resolve to another address when it is read: so the addresses are
    checked again when the connection is made.
    """
    import fsspec.config

    options = {"get_client": _guarded_client, "allow_redirects": False}
    for kind in ("http", "https"):
        fsspec.config.conf.setdefault(kind, {}).update(options)


async def _guarded_client(**options: Any) -> Any:
    import aiohttp
    from aiohttp.resolver import ThreadedResolver

    class PublicResolver(ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
            answers = await super().resolve(host, port, family)
            if not all(_is_public(entry["host"]) for entry in answers):
                raise OSError("not a public address")
            return answers

    options.pop("connector", None)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=PublicResolver()), trust_env=False, **options)


def planned_source(source: Source) -> SourceImage:
    """Return the metadata of a source.

    Raises
    ------
    RequestError
        404 if there is no image.
    """
    try:
        return source.image if isinstance(source, Uploaded) else source.open()
    except ChorusError as error:
        if isinstance(source, Stored) and (isinstance(error, RefusedError) or not source.is_there()):
            raise RequestError(404, "there is no OME-Zarr image at source.url and source.image") from error
        raise
