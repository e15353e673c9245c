"""The layers of an image and their pixels: the source's channels, and the run's maps and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.field import Field
from chorus.pipeline.core.fields import field_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ChorusError, ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import fault
from chorus.pipeline.io.models import MapDisplay, Ngff, SourceImage
from chorus.pipeline.io.sources.ngff import open_group, open_image
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.serving.review.cache import Cache

Kind = Literal["channel", "labels", "map"]

TILE = 512
"""Edge of a tile in pixels."""

# A subsampled step reads at most this many stored pixels per tile and axis.
_FAR = 4096
_COARSEST = 1024
_BLOCK = 512
_SAMPLE = 1024

_UNIT_INTERVAL = MapDisplay(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Step:
    """A resolution to show: a stored level, or a subsampled one of the last stored level.

    Attributes
    ----------
    stored : index of the level
    thin : subsampling factor, every `thin`-th pixel is taken
    height, width : in pixels
    """

    stored: int
    thin: int
    height: int
    width: int


@dataclass(frozen=True)
class Layer:
    """A layer of an image.

    Attributes
    ----------
    id : in URLs, such as ``channel-0``, ``labels-semantic``, ``map-uncertainty``
    name : in words
    image : the multiscales that contains it
    index : on the c axis
    color : declared by the source, ``rrggbb``; empty if undeclared
    field : of a map
    display : of a map
    """

    id: str
    kind: Kind
    name: str
    image: SourceImage
    index: int
    color: str = ""
    field: Field | None = None
    display: MapDisplay = _UNIT_INTERVAL

    @property
    def steps(self) -> tuple[Step, ...]:
        """Resolutions, finest first."""
        y, x = self.image.axes.index("y"), self.image.axes.index("x")
        steps = [Step(index, 1, one.shape[y], one.shape[x]) for index, one in enumerate(self.image.levels)]
        last = steps[-1]
        while max(steps[-1].height, steps[-1].width) > _COARSEST and TILE * steps[-1].thin * 2 <= _FAR:
            thin = steps[-1].thin * 2
            steps.append(Step(last.stored, thin, -(-last.height // thin), -(-last.width // thin)))
        return tuple(steps)

    @property
    def planes(self) -> tuple[int, int]:
        """Number of time points and of z planes."""
        lengths = dict(zip(self.image.axes, self.image.levels[0].shape, strict=True))
        return lengths.get("t", 1), lengths.get("z", 1)


@dataclass(frozen=True)
class _Declared:
    """The colour of a channel, ``rrggbb`` or empty, and its display."""

    color: str
    display: MapDisplay


_NOTHING = _Declared("", _UNIT_INTERVAL)


@dataclass(frozen=True)
class Opened:
    """An image with its layers: channels, then maps, then labels; `notes` say what cannot be shown."""

    layers: dict[str, Layer]
    notes: tuple[str, ...]


class Pixels:
    """Opens images and reads them, with a bounded cache.

    Parameters
    ----------
    held : maximum of bytes of decoded pixels in the cache
    """

    def __init__(self, held: int = 256 << 20) -> None:
        self._arrays: Cache[zarr.Array[Any]] = Cache(512)
        self.blocks: Cache[NDArray[Any]] = Cache(held, lambda block: block.nbytes)

    def window(self, layer: Layer, step: Step, t: int, z: int, window: Window) -> NDArray[Any]:
        """Return the pixels of a window of a step; a subsampled step takes the first of every `thin` pixels.

        Parameters
        ----------
        t, z : the plane
        window : in pixels of the step, within it

        Returns
        -------
        (y, x), in the layer's data type

        Raises
        ------
        ImageError
            If they cannot be read.
        """
        thin = step.thin
        level = layer.image.levels[step.stored]
        height, width = (level.shape[layer.image.axes.index(axis)] for axis in "yx")
        stored = Window.of(
            window.y.start * thin,
            min(window.y.stop * thin, height),
            window.x.start * thin,
            min(window.x.stop * thin, width),
        )
        rows, columns = (_edge(level.chunks[layer.image.axes.index(axis)]) for axis in "yx")
        window_pixels = np.empty(stored.shape, level.dtype)
        for top in range(stored.y.start // rows * rows, stored.y.stop, rows):
            for left in range(stored.x.start // columns * columns, stored.x.stop, columns):
                inside = Window.of(top, min(top + rows, height), left, min(left + columns, width))
                block = self._block(layer, step.stored, t, z, inside)
                y0, y1 = max(top, stored.y.start), min(inside.y.stop, stored.y.stop)
                x0, x1 = max(left, stored.x.start), min(inside.x.stop, stored.x.stop)
                window_pixels[y0 - stored.y.start : y1 - stored.y.start, x0 - stored.x.start : x1 - stored.x.start] = (
                    block[y0 - top : y1 - top, x0 - left : x1 - left]
                )
        return window_pixels[::thin, ::thin]

    def sample(self, layer: Layer, t: int = 0, z: int = 0) -> NDArray[Any]:
        """Return the pixels of a plane at a coarse step, for statistics.

        Returns
        -------
        (y, x), in the layer's data type

        Raises
        ------
        ImageError
            If they cannot be read.
        """
        steps = layer.steps
        step = next((one for one in steps if max(one.height, one.width) <= _SAMPLE), steps[-1])
        return self.window(layer, step, t, z, Window.of(0, min(step.height, _FAR), 0, min(step.width, _FAR)))

    def _block(self, layer: Layer, level: int, t: int, z: int, window: Window) -> NDArray[Any]:
        image = layer.image
        path = image.levels[level].path
        corner = (window.y.start, window.x.start)

        def read() -> NDArray[Any]:
            array = self._array(image.url, path, image.ngff)
            return np.asarray(read_window(array, image.axes, t, z, (layer.index,), window)[0])

        return self.blocks.get((image.url, path, layer.index, t, z, corner), read)

    def _array(self, url: str, path: str, ngff: Ngff) -> zarr.Array[Any]:
        return self._arrays.get((url, path), lambda: open_level(url, path, ngff))


def open_layers(source_url: str, result_url: str, labels_url: str) -> Opened:
    """Open the layers of an image; what cannot be opened becomes a note.

    Parameters
    ----------
    source_url : the multiscales group that was segmented
    result_url : its results, ``OUT/images/<name>``
    labels_url : group that has ``labels``

    Raises
    ------
    ImageError
        If nothing of it can be opened.
    """
    notes: list[str] = []
    layers: list[Layer] = []
    source = _attempt(source_url, notes)
    if source is not None:
        declared = _declared(source)
        for index, name in enumerate(source.channels):
            color = declared.get(index, _NOTHING).color
            layers.append(Layer(f"channel-{index}", "channel", name, source, index, color))
    results = _attempt(result_url, notes)
    if results is not None and not results.levels[0].path.startswith("labels/"):
        declared = _declared(results)
        for index, name in enumerate(results.channels):
            if (field := field_of(name)) is None:
                notes.append(f"{result_url}: its channel {name!r} is of no field that this version knows")
            else:
                display = declared.get(index, _NOTHING).display
                layers.append(Layer(f"map-{name}", "map", name, results, index, field=field, display=display))
    for name in _label_names(labels_url, notes):
        labels = _attempt(storage.join(labels_url, "labels", name), notes)
        if labels is not None:
            layers.append(Layer(f"labels-{name}", "labels", name, labels, 0))
    if not layers:
        raise ImageError("; ".join(notes))
    return Opened({layer.id: layer for layer in layers}, tuple(notes))


def _attempt(url: str, notes: list[str]) -> SourceImage | None:
    try:
        return open_image(url, "image", "", storage.basename(url))
    except ChorusError as error:
        notes.append(str(error))
        return None


def _label_names(url: str, notes: list[str]) -> Sequence[str]:
    """Return the names of label images, objects first: they lie over the semantic labels."""
    try:
        group = open_group(storage.join(url, "labels"))
    except ChorusError as error:
        notes.append(str(error))
        return ()
    attributes = {} if group is None else group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    names = ome.get("labels", []) if isinstance(ome, dict) else []
    plain = (name for name in names if isinstance(name, str) and fault(name) is None)
    return sorted(plain, key=lambda name: name == "semantic")


def _declared(image: SourceImage) -> dict[int, _Declared]:
    """Return the colour and display of each channel that ``omero`` declares, as far as they are valid."""
    group = open_group(image.url)
    attributes: dict[str, Any] = {} if group is None else group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    omero = ome.get("omero") if isinstance(ome, dict) else None
    listed = omero.get("channels") if isinstance(omero, dict) else None
    valid = {}
    for index, channel in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(channel, dict):
            color = str(channel.get("color", ""))
            hexadecimal = len(color) == 6 and all(letter in "0123456789abcdefABCDEF" for letter in color)
            valid[index] = _Declared(color.lower() if hexadecimal else "", _display(channel))
    return valid


def _display(channel: dict[str, Any]) -> MapDisplay:
    window = channel.get("window")
    low, high = (window.get(end) if isinstance(window, dict) else None for end in ("start", "end"))
    unit = str(channel.get("unit", ""))
    if isinstance(low, int | float) and isinstance(high, int | float) and low < high:
        return MapDisplay(float(low), float(high), unit)
    return replace(_UNIT_INTERVAL, unit=unit)


def _edge(chunk: int) -> int:
    """Return the edge of cached blocks: whole chunks, several if they are small."""
    return chunk * max(1, _BLOCK // chunk)
