"""Records of a source image and of the place of its results, shared between rooms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ngff = Literal["0.4", "0.5"]

DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
"""Types that the pixels of an image may have."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution level of a multiscales image.

    Attributes
    ----------
    path : array path below the image's group
    shape, chunks : in the order of the image's axes; chunks are the smallest unit of decoding
    dtype : NumPy name, e.g. ``uint16``
    scale, translation : per axis, in the axes' units, the multiscales' own transformation included
    """

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One multiscales image of a source.

    Attributes
    ----------
    root : URL of the image, plate or collection that was found
    kind : what `root` is
    path : the image's path within `root`; empty where the root is the image
    name : path of the results below ``OUT/images``, unique within a run
    ngff : version of its metadata
    axes : one letter of ``tczyx`` per axis, in the source's order
    units : per axis, as written in the source (None where it has none)
    levels : finest first
    channels : names, from ``omero`` where it has them, otherwise "0", "1", ...; one entry without a c axis
    note : what of its metadata is wrong and was not followed; empty or a sentence
    """

    root: str
    kind: Literal["image", "plate", "collection"]
    path: str
    name: str
    ngff: Ngff
    axes: str
    units: tuple[str | None, ...]
    levels: tuple[Level, ...]
    channels: tuple[str, ...]
    note: str = ""

    @property
    def url(self) -> str:
        """URL of the group that holds the multiscales."""
        return f"{self.root}/{self.path}" if self.path else self.root


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that cannot be planned: it is recorded with its reason and the others go on."""

    root: str
    path: str
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """A class of an ensemble: its name and its colour, ``#rrggbb``."""

    name: str
    color: str


@dataclass(frozen=True, slots=True)
class MapDisplay:
    """How a map is first shown: the values at the ends of its colours, and the unit of its values, if any."""

    low: float
    high: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Where and how the results of one image are stored.

    Attributes
    ----------
    url : group of the posterior, ``OUT/images/<name>``
    labels_url : group that gets ``labels/semantic``; `url`, or the source's own group in place
    labels_ngff : 0.5, or the version of the source in place
    source_url : what the results were computed from
    axes : the source's axes without c, in the order t, z, y, x (those that it has)
    shape, scale, translation, units : per letter of `axes`, of the level that was segmented
    channels : names of the posterior's channels; empty where no posterior is kept
    dtype : of the posterior
    classes : background first
    displays : of each channel
    chunk, region : edge in pixels of a chunk and of a shard (a multiple of it) on y and x
    chunk_depth, region_depth : the same on z, where regions are blocks of a volume; 0 where they lie in planes
    """

    url: str
    labels_url: str
    labels_ngff: Ngff
    source_url: str
    axes: str
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]
    channels: tuple[str, ...]
    dtype: Literal["float16", "float32"]
    classes: tuple[ClassInfo, ...]
    chunk: int
    region: int
    displays: tuple[MapDisplay, ...] = ()
    chunk_depth: int = 0
    region_depth: int = 0

    @property
    def height(self) -> int:
        """Rows of a plane in pixels."""
        return self.shape[-2]

    @property
    def width(self) -> int:
        """Columns of a plane in pixels."""
        return self.shape[-1]

    @property
    def levels(self) -> int:
        """Pyramid levels, the full one included: halved until the longer side is at most 256 pixels."""
        return pyramid_levels(self.height, self.width)


def pyramid_levels(height: int, width: int) -> int:
    """Count the levels of a plane, the full one included: halved until the longer side is at most 256 pixels."""
    longest, count = max(height, width), 1
    while longest > 256:
        longest, count = -(-longest // 2), count + 1
    return count
