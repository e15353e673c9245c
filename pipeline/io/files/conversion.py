"""One raster file to OME-Zarr.

A file becomes one image, ``<name>.ome.zarr``, or a collection of them (``<name>.ome.zarr/0``, ``/1``, ...) where it
holds several series. Shards are those of `chorus.pipeline.io.outputs.arrays`: each is read, encoded and put whole by
its only writer, so what is in memory at once is one region of up to four channels, however large the image is. The
group's own document comes last: what is cut short is not taken for an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.formats.rasters import PartOf, Raster
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.models import pyramid_levels
from chorus.pipeline.io.opened_arrays import open_array
from chorus.pipeline.io.outputs.arrays import ArrayPlan, plan_array
from chorus.pipeline.io.outputs.file_metadata import group_attributes, position_of
from chorus.pipeline.io.outputs.groups import group_documents, prepare_collection, put_documents
from chorus.pipeline.io.outputs.ngff_metadata import multiscale
from chorus.pipeline.io.outputs.pyramid import half, pieces
from chorus.pipeline.io.outputs.writer import put_array
from chorus.pipeline.io.storage_failures import storage_errors

# Channels that share a shard: colours stay together, the planes of a multiplexed stain do not fill the memory.
_CHANNELS_PER_SHARD = 4


class ConvertSettings(BaseModel):
    """All settings, besides the files, on which a byte of the result depends.

    Attributes
    ----------
    pixel_size : micrometers on y and x; None takes the file's
    channel_name : one per channel; empty takes the file's
    region, chunk : edge in pixels of a shard and of a chunk
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixel_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    channel_name: list[str] = []
    region: int = Field(default=2048, ge=64)
    chunk: int = Field(default=512, ge=16)

    @model_validator(mode="after")
    def _aligned(self) -> ConvertSettings:
        if self.region % self.chunk:
            raise ValueError(f"region {self.region} is not a multiple of chunk {self.chunk}")
        return self


@dataclass(frozen=True, slots=True)
class Converted:
    """Result of converting a file: how many images and pixels, or the file of the same set that has its planes.

    `note` says what of the file was left out.
    """

    images: int
    pixels: int
    part_of: str = ""
    note: str = ""


def convert_file(url: str, target: str, settings: ConvertSettings) -> Converted:
    """Write every image of the file at `url` to the group `target`; may be repeated.

    Raises
    ------
    ImageError : the file cannot be read or does not go with the settings
    RefusedError : something of another form is at `target`
    OutputError : storage does not take it
    """
    with open_rasters(url) as rasters:
        if isinstance(rasters, PartOf):
            return Converted(0, 0, rasters.url)
        if len(rasters) == 1:
            convert_raster(rasters[0], target, settings)
        else:
            places = [str(index) for index in range(len(rasters))]
            for folder, raster in zip(places, rasters, strict=True):
                convert_raster(raster, storage.join(target, folder), settings)
            prepare_collection(target, places)
        return Converted(
            images=len(rasters),
            pixels=sum(math.prod(map(int, raster.shape)) for raster in rasters),
            note="; ".join(raster.note for raster in rasters if raster.note),
        )


class _Image:
    """One image being converted: its levels and, once written, the range of values that a viewer should show."""

    def __init__(self, raster: Raster, target: str, settings: ConvertSettings) -> None:
        self.raster, self.target, self.settings = raster, target, settings
        self.names = _names(raster, settings)
        lengths = raster.lengths
        if self.names and "c" not in lengths:
            lengths["c"] = 1
        self.axes = "".join(axis for axis in "tczyx" if axis in lengths)
        self.lengths = lengths
        self.channels = lengths.get("c", 1)
        self.together = self.channels if self.channels <= _CHANNELS_PER_SHARD else raster.samples
        self.levels = pyramid_levels(lengths["y"], lengths["x"])
        self.low = np.full(self.channels, np.inf)
        self.high = np.full(self.channels, -np.inf)

    def grid(self, level: int) -> RegionGrid:
        height, width = (-(-self.lengths[axis] // 2**level) for axis in "yx")
        return RegionGrid.make((height, width), self.settings.region)

    def plan(self, level: int) -> ArrayPlan:
        height, width = self.grid(level).shape
        lengths = self.lengths | {"y": height, "x": width}
        return plan_array(
            f"s{level}",
            self.axes,
            lengths,
            self.raster.dtype,
            chunk=self.settings.chunk,
            region=self.settings.region,
            channels=self.together,
        )

    def places(self, level: int) -> Iterator[tuple[int, int, range, Window]]:
        """Yield time point, plane, channels and window of every shard."""
        grid = self.grid(level)
        for t in range(self.lengths.get("t", 1)):
            for z in range(self.lengths.get("z", 1)):
                for first in range(0, self.channels, self.together):
                    channels = range(first, min(first + self.together, self.channels))
                    for index in range(grid.count):
                        yield t, z, channels, grid.window(index)

    def observe(self, channels: range, values: NDArray[Any]) -> None:
        """Take note of the range of finite `values`, (channels, y, x)."""
        finite = np.isfinite(values)
        kept = slice(channels.start, channels.stop)
        low = values.min(axis=(1, 2), where=finite, initial=_limit(values.dtype, low=False))
        high = values.max(axis=(1, 2), where=finite, initial=_limit(values.dtype, low=True))
        self.low[kept] = np.minimum(self.low[kept], low)
        self.high[kept] = np.maximum(self.high[kept], high)


def convert_raster(raster: Raster, target: str, settings: ConvertSettings) -> None:
    """Write one image to the group `target`; raise as `convert_file` does."""
    image = _Image(raster, target, settings)
    documents: dict[str, bytes] = {}
    for level in range(image.levels):
        documents |= image.plan(level).documents()
    put_documents(target, documents)
    for t, z, channels, window in image.places(0):
        values = raster.read(t, z, channels, window)
        image.observe(channels, values)
        put_array(target, image.plan(0), _at(t, z, channels, window), values)
    if not image.low.any() and not image.high.any():
        # An array without any chunk is taken for damaged.
        t, z, channels, window = next(image.places(0))
        black = np.zeros((len(channels), *window.shape), raster.dtype)
        put_array(target, image.plan(0), _at(t, z, channels, window), black, empty=True)
    for level in range(1, image.levels):
        _halve(image, level)
    put_documents(target, group_documents("", _attributes(image), "0.5"))


def _halve(image: _Image, level: int) -> None:
    """Write a level from the finer one before it."""
    plan = image.plan(level)
    with storage_errors(image.target):
        finer = open_array(storage.store(image.target, read_only=True), f"s{level - 1}")
        for t, z, channels, window in image.places(level):
            values = np.zeros((len(channels), *window.shape), image.raster.dtype)
            for piece, source in pieces(image.grid(level - 1), window):
                at = _at(t, z, channels, source)
                fine = np.asarray(finer[tuple(at[axis] for axis in image.axes)])
                for channel, plane in enumerate(fine.reshape(len(channels), *source.shape)):
                    values[channel][piece] = half(plane)
            put_array(image.target, plan, _at(t, z, channels, window), values)


def _at(t: int, z: int, channels: range, window: Window) -> dict[str, slice]:
    at = {"t": slice(t, t + 1), "z": slice(z, z + 1), "c": slice(channels.start, channels.stop)}
    return at | {"y": window.y.slice, "x": window.x.slice}


def _names(raster: Raster, settings: ConvertSettings) -> tuple[str, ...]:
    """Return the names of the channels: the requested ones, those of the file, or none."""
    if not settings.channel_name:
        return raster.channels
    count = raster.lengths.get("c", 1)
    if len(settings.channel_name) != count:
        raise ImageError(
            f"{raster.url}: has {count} channels, --channel-name is given {len(settings.channel_name)} times; give it "
            "once per channel, and convert files with other channels apart"
        )
    return tuple(settings.channel_name)


def _attributes(image: _Image) -> dict[str, Any]:
    scale, units = dict(image.raster.scale), dict(image.raster.units)
    if image.settings.pixel_size is not None:
        scale |= dict.fromkeys("yx", image.settings.pixel_size)
        units |= dict.fromkeys("yx", "micrometer")
    name = storage.basename(image.target).removesuffix(".zarr").removesuffix(".ome")
    position = position_of(image.raster)
    levels = multiscale(image.axes, scale, position, units, image.levels, prefix="s", name=name, method="mean")
    ranges = list(zip(image.low.tolist(), image.high.tolist(), strict=True)) if "c" in image.axes else []
    return group_attributes(image.raster, levels, image.names, ranges)


def _limit(dtype: np.dtype[Any], *, low: bool) -> float | int:
    """Return the smallest or the largest value of a dtype."""
    if dtype.kind == "f":
        return -np.inf if low else np.inf
    limits = np.iinfo(dtype)
    return limits.min if low else limits.max
