"""The task of ``chorus stress`` for one image: its corrupted copies and their labels, as OME-Zarr."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.conversion import ConvertSettings, convert_raster
from chorus.pipeline.io.formats.rasters import Raster, only_one
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.stress.corruptions import CHANNELS, CORRUPTIONS, LEVELS, corrupted
from chorus.pipeline.stress.summary import CLEAN
from chorus.pipeline.training.data.pairs import TrainingPair, load_pair

IMAGES, TRUTH = "images", "truth"
_SETTINGS = ConvertSettings(region=2048, chunk=512)


class Copy(BaseModel):
    """A copy of an image.

    Attributes
    ----------
    name : of the copy, without suffix
    corruption, level, degree : of it; `CLEAN`, 0 and 0 for the image as it is
    """

    model_config = ConfigDict(frozen=True)

    name: str
    corruption: str
    level: int
    degree: float


class Spoilt(BaseModel):
    """The record of an image whose copies are written."""

    model_config = ConfigDict(frozen=True)

    copies: list[Copy]


@dataclass(frozen=True)
class StressJob:
    """An image as a worker receives it.

    Attributes
    ----------
    out : URL of the folder that gets `IMAGES` and `TRUTH`
    pair : image and labels
    channels : names of those that members see
    corruptions : names of those that are wanted
    """

    out: str
    pair: TrainingPair
    channels: tuple[str, ...]
    corruptions: tuple[str, ...]

    @property
    def copies(self) -> list[Copy]:
        """All copies, the image as it is first; channels of an image of one are not mixed."""
        name = self.pair.name.replace("/", "-").replace(":", "-")
        found = [Copy(name=f"{name}-as-it-is", corruption=CLEAN, level=0, degree=0)]
        for one in CORRUPTIONS:
            if one.name in self.corruptions and (one.name != CHANNELS or len(self.channels) > 1):
                words = one.name.replace("_", "-")
                found += [
                    Copy(name=f"{name}-{words}-{level}", corruption=one.name, level=level, degree=one.degree(level))
                    for level in LEVELS
                ]
        return found


def spoil_and_record(job: StressJob, ledger: ItemLedger[Spoilt]) -> Spoilt:
    """Write the copies of an image, and record them.

    Raises
    ------
    ImageError
        If image or labels cannot be read.
    OutputError
        If a copy cannot be written.
    """
    image, truth = load_pair(job.pair)
    scale, units = _pixel_size(job.pair)
    known = {one.name: one for one in CORRUPTIONS}
    for copy in job.copies:
        pixels, labels = image, truth
        if copy.corruption != CLEAN:
            seed = int(hashlib.sha256(copy.name.encode()).hexdigest()[:16], 16)
            pixels, labels = corrupted(image, truth, known[copy.corruption], copy.level, seed)
        _write(storage.join(job.out, IMAGES, f"{copy.name}.ome.zarr"), pixels, job.channels, scale, units)
        _write(storage.join(job.out, TRUTH, f"{copy.name}.ome.zarr"), labels[None], ("labels",), scale, units)
    record = Spoilt(copies=job.copies)
    ledger.record(job.pair.name, record)
    return record


def _pixel_size(pair: TrainingPair) -> tuple[dict[str, float], dict[str, str]]:
    """Return the pixel size and its units on y and x, as the image says."""
    scale: Mapping[str, float]
    units: Mapping[str, str | None]
    if pair.kind == "raster":
        with open_rasters(pair.image) as opened:
            raster = only_one(opened, pair.image)
            scale, units = raster.scale, raster.units
    else:
        source = open_image(pair.image, "image", "", pair.name)
        scale = dict(zip(source.axes, source.levels[0].scale, strict=True))
        units = dict(zip(source.axes, source.units, strict=True))
    known = [axis for axis in "yx" if units.get(axis) and axis in scale]
    return {axis: scale[axis] for axis in known}, {axis: str(units[axis]) for axis in known}


def _write(
    url: str, pixels: NDArray[Any], channels: tuple[str, ...], scale: Mapping[str, float], units: Mapping[str, str]
) -> None:
    def read(t: int, z: int, some: range, window: Window) -> NDArray[Any]:
        return pixels[some.start : some.stop, window.y.slice, window.x.slice]

    axes, shape = "cyx", pixels.shape
    raster = Raster(url, axes, shape, pixels.dtype.name, channels, 1, scale, units, read)
    convert_raster(raster, url, _SETTINGS)
