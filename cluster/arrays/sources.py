"""Pixels of an array that is in memory or is read piece by piece: NumPy, xarray, dask and zarr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.formats.rasters import sample_names
from chorus.pipeline.io.models import DTYPES, Level, SourceImage
from chorus.pipeline.io.sources.reading import check_finite

_DIMENSIONS = {
    **{axis: axis for axis in "tczyx"},
    "time": "t",
    "channel": "c",
    "channels": "c",
    "band": "c",
}
_CHANNEL_COORDINATES = ("c", "channel", "channels", "band")
_SAY = 'say what its axes are, such as axes="cyx"'


@dataclass(frozen=True)
class ArraySource:
    """An array with its metadata, treated as an OME-Zarr image.

    Attributes
    ----------
    array : anything that gives NumPy arrays of slices and integers
    """

    array: Any
    image: SourceImage

    @classmethod
    def of(
        cls,
        array: Any,
        axes: str | None,
        channel_axis: int | None,
        pixel_size: float | tuple[float, float] | None,
        channels: Sequence[str] | None,
        name: str,
    ) -> ArraySource:
        """Describe an array; parameters as of `chorus.cluster.arrays.loaded.LoadedEnsemble.segment`.

        Raises
        ------
        RefusedError
            Axes are unknown or do not fit, the type of the pixels is none that images have, or a size is not positive.
        """
        known = _dimensions(array)
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            array = np.asarray(array)
        shape = tuple(int(length) for length in array.shape)
        colors = () if axes or channel_axis is not None or known else sample_names(shape)
        letters = _axes(shape, "yxc" if colors else axes, channel_axis, known)
        dtype = np.dtype(array.dtype).newbyteorder("=").name
        if dtype not in DTYPES:
            raise RefusedError(
                f"{name}: pixels of type {dtype} are not supported; convert them to one of {', '.join(DTYPES)}"
            )
        count = shape[letters.index("c")] if "c" in letters else 1
        labels = channels or _coordinates(array, letters) or colors or tuple(map(str, range(count)))
        if len(labels) != count:
            raise RefusedError(f"{name}: {len(labels)} names of channels ({', '.join(labels)}) for {count} channels")
        sizes = _pixel_size(pixel_size, name)
        level = Level(
            path="s0",
            shape=shape,
            chunks=shape,
            dtype=dtype,
            scale=tuple(sizes.get(axis, 1.0) for axis in letters),
            translation=(0.0,) * len(shape),
        )
        units = tuple("micrometer" if axis in sizes else None for axis in letters)
        image = SourceImage(name, "image", "", name, "0.5", letters, units, (level,), tuple(labels))
        return cls(getattr(array, "data", array) if known and hasattr(array, "dims") else array, image)

    def read(self, planned: PlannedImage, t: int, z: int, window: Window) -> NDArray[Any]:
        """Read the channels that members see in a window; raise ImageError where a pixel is not finite.

        Returns
        -------
        (channels, y, x) of the array's dtype
        """
        return self.channels(planned.channels, t, z, window)

    def all_channels(self, t: int, z: int, window: Window) -> NDArray[Any]:
        """Read all channels of a window; raise ImageError as `read`.

        Returns
        -------
        (channels, y, x) of the array's dtype
        """
        return self.channels(range(len(self.image.channels)), t, z, window)

    def channels(self, channels: Sequence[int], t: int, z: int, window: Window, step: int = 1) -> NDArray[Any]:
        """Read channels of a window, every `step`-th pixel; raise ImageError where a pixel is not finite.

        Returns
        -------
        (channels, y, x) of the array's dtype, y and x of the window divided by `step`, rounded up
        """
        at: dict[str, int | slice] = {"t": t, "z": z}
        at |= {"y": slice(window.y.start, window.y.stop, step), "x": slice(window.x.start, window.x.stop, step)}
        planes = [self._plane(at | {"c": channel}) for channel in channels]
        pixels = np.ascontiguousarray(np.stack(planes))
        location = f"{self.image.name}: t {t}, z {z}"
        check_finite(pixels, channels, location, window)
        return pixels

    def _plane(self, at: dict[str, int | slice]) -> NDArray[Any]:
        """Return one plane, (y, x) in native byte order."""
        axes = self.image.axes
        plane = np.asarray(self.array[tuple(at[axis] for axis in axes)])
        plane = plane if axes.index("y") < axes.index("x") else plane.T
        return plane.astype(plane.dtype.newbyteorder("="), copy=False)


def _dimensions(array: Any) -> tuple[str, ...] | None:
    """Return the names of the axes where the array has them: of xarray, or in a Zarr array's metadata."""
    names = getattr(array, "dims", None)
    if names is None:
        names = getattr(getattr(array, "metadata", None), "dimension_names", None)
    return tuple(map(str, names)) if names and all(names) else None


def _axes(shape: tuple[int, ...], axes: str | None, channel_axis: int | None, known: tuple[str, ...] | None) -> str:
    """Return a letter of ``tczyx`` for each axis."""
    if axes is None:
        axes = _named(known, shape) or _counted(shape, channel_axis)
    letters = axes.lower()
    allowed = set(letters) <= set("tczyx") and len(set(letters)) == len(letters) and {"y", "x"} <= set(letters)
    if not allowed or len(letters) != len(shape) or 0 in shape:
        raise RefusedError(
            f"axes {axes!r} do not go with an array of shape {shape}; give one letter of t, c, z, y and x for each "
            "axis, y and x among them"
        )
    if channel_axis is not None and letters[_position(channel_axis, shape)] != "c":
        raise RefusedError(f"channel_axis {channel_axis} is not where axes {axes!r} have c; leave one of them out")
    return letters


def _named(known: tuple[str, ...] | None, shape: tuple[int, ...]) -> str | None:
    """Return the axes by their names; None where there are none or they are generic, as xarray's defaults."""
    if known is None or all(name.startswith("dim_") for name in known):
        return None
    letters = [_DIMENSIONS.get(name.lower()) for name in known]
    if None in letters:
        raise RefusedError(f"an array of dimensions {', '.join(known)} and shape {shape}: {_SAY}")
    return "".join(letter for letter in letters if letter)


def _counted(shape: tuple[int, ...], channel_axis: int | None) -> str:
    """Return the axes of an array without names, by its number of dimensions."""
    planes = len(shape) - (channel_axis is not None)
    if planes != 2:
        more = "; channel_axis alone is enough for planes with channels" if len(shape) == 3 else ""
        raise RefusedError(f"an array of shape {shape}: {_SAY}{more}")
    letters = list("yx")
    if channel_axis is not None:
        letters.insert(_position(channel_axis, shape), "c")
    return "".join(letters)


def _position(axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise RefusedError(f"channel_axis {axis} is none of an array of shape {shape}")
    return axis % len(shape)


def _coordinates(array: Any, axes: str) -> tuple[str, ...]:
    """Return the names of the channels of an xarray; empty where it has none."""
    if "c" not in axes:
        return ()
    coordinates = getattr(array, "coords", {})
    coordinate = next((name for name in _CHANNEL_COORDINATES if name in coordinates), None)
    return () if coordinate is None else tuple(str(name) for name in np.atleast_1d(coordinates[coordinate].values))


def _pixel_size(pixel_size: float | tuple[float, float] | None, name: str) -> dict[str, float]:
    """Return the pixel size in micrometres along y and x; empty where unknown."""
    if pixel_size is None:
        return {}
    y, x = (pixel_size, pixel_size) if isinstance(pixel_size, int | float) else pixel_size
    if not (0 < y < float("inf") and 0 < x < float("inf")):
        raise RefusedError(f"{name}: pixel_size {pixel_size} is no size; give micrometres, or leave it out")
    return {"y": float(y), "x": float(x)}
