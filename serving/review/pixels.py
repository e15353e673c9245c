"""What of an image can be shown, layer by layer, and its pixels: the source's channels, maps and labels of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.fields import Field, field_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ChorusError, ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import fault
from chorus.pipeline.io.models import Ngff, SourceImage
from chorus.pipeline.io.ngff import open_group, open_image
from chorus.pipeline.io.reading import open_level, read_window
from chorus.serving.review.cache import Cache

Kind = Literal["channel", "labels", "map"]

TILE = 512
"""Edge of a tile in pixels."""

# Coarser levels than those that are stored are made of at most so many of their pixels per tile and axis.
_FAR = 4096
_COARSEST = 1024
_BLOCK = 512
_SAMPLE = 1024


@dataclass(frozen=True, slots=True)
class Step:
    """A resolution that can be shown: a stored level, or one thinned out from the last that is stored.

    Attributes
    ----------
    stored : index of the level
    thin : every how many of its pixels
    height, width : in pixels
    """

    stored: int
    thin: int
    height: int
    width: int


@dataclass(frozen=True)
class Layer:
    """Something that can be shown of an image.

    Attributes
    ----------
    id : in URLs, such as ``channel-0``, ``labels-semantic``, ``map-uncertainty``
    name : in words
    image : the multiscales that it is in
    index : on the c axis
    color : of the source, ``rrggbb``; empty where it says nothing
    field : of a map
    """

    id: str
    kind: Kind
    name: str
    image: SourceImage
    index: int
    color: str = ""
    field: Field | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """Finest first."""
        y, x = self.image.axes.index("y"), self.image.axes.index("x")
        found = [Step(index, 1, one.shape[y], one.shape[x]) for index, one in enumerate(self.image.levels)]
        last = found[-1]
        while max(found[-1].height, found[-1].width) > _COARSEST and TILE * found[-1].thin * 2 <= _FAR:
            thin = found[-1].thin * 2
            found.append(Step(last.stored, thin, -(-last.height // thin), -(-last.width // thin)))
        return tuple(found)

    @property
    def planes(self) -> tuple[int, int]:
        """Numbers of time points and of z planes."""
        lengths = dict(zip(self.image.axes, self.image.levels[0].shape, strict=True))
        return lengths.get("t", 1), lengths.get("z", 1)


@dataclass(frozen=True)
class Opened:
    """An image with its layers: channels, then maps, then labels; and what cannot be shown, in sentences."""

    layers: dict[str, Layer]
    notes: tuple[str, ...]


class Pixels:
    """Opens images and reads them, with a bounded memory.

    Parameters
    ----------
    held : bytes of decoded pixels that are kept
    """

    def __init__(self, held: int = 256 << 20) -> None:
        self._arrays: Cache[zarr.Array[Any]] = Cache(512)
        self.blocks: Cache[NDArray[Any]] = Cache(held, lambda block: block.nbytes)

    def window(self, layer: Layer, step: Step, t: int, z: int, window: Window) -> NDArray[Any]:
        """Pixels (y, x) of a window of a step, within it; thinned out, the first of each `thin` is taken.

        Raises
        ------
        ImageError : they cannot be read
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
        found = np.empty(stored.shape, level.dtype)
        for top in range(stored.y.start // rows * rows, stored.y.stop, rows):
            for left in range(stored.x.start // columns * columns, stored.x.stop, columns):
                inside = Window.of(top, min(top + rows, height), left, min(left + columns, width))
                block = self._block(layer, step.stored, t, z, inside)
                y0, y1 = max(top, stored.y.start), min(inside.y.stop, stored.y.stop)
                x0, x1 = max(left, stored.x.start), min(inside.x.stop, stored.x.stop)
                found[y0 - stored.y.start : y1 - stored.y.start, x0 - stored.x.start : x1 - stored.x.start] = block[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return found[::thin, ::thin]

    def sample(self, layer: Layer, t: int = 0, z: int = 0) -> NDArray[Any]:
        """Pixels (y, x) all over a plane of the coarsest step that shows some detail, for statistics.

        Raises
        ------
        ImageError : they cannot be read
        """
        steps = layer.steps
        step = next((one for one in steps if max(one.height, one.width) <= _SAMPLE), steps[-1])
        return self.window(layer, step, t, z, Window.of(0, min(step.height, _FAR), 0, min(step.width, _FAR)))

    def _block(self, layer: Layer, level: int, t: int, z: int, window: Window) -> NDArray[Any]:
        image = layer.image
        path = image.levels[level].path
        place = (window.y.start, window.x.start)

        def read() -> NDArray[Any]:
            array = self._array(image.url, path, image.ngff)
            return np.asarray(read_window(array, image.axes, t, z, (layer.index,), window)[0])

        return self.blocks.get((image.url, path, layer.index, t, z, place), read)

    def _array(self, url: str, path: str, ngff: Ngff) -> zarr.Array[Any]:
        return self._arrays.get((url, path), lambda: open_level(url, path, ngff))


def open_layers(source_url: str, result_url: str, labels_url: str) -> Opened:
    """The layers of an image; what cannot be opened is a note.

    Parameters
    ----------
    source_url : the multiscales group that was segmented
    result_url : its results, ``OUT/images/<name>``
    labels_url : group that has ``labels``

    Raises
    ------
    ImageError : nothing of it can be opened
    """
    notes: list[str] = []
    layers: list[Layer] = []
    source = _attempt(source_url, notes)
    if source is not None:
        colors = _colors(source)
        for index, name in enumerate(source.channels):
            layers.append(Layer(f"channel-{index}", "channel", name, source, index, colors.get(index, "")))
    results = _attempt(result_url, notes)
    if results is not None and not results.levels[0].path.startswith("labels/"):
        for index, name in enumerate(results.channels):
            if (field := field_of(name)) is None:
                notes.append(f"{result_url}: its channel {name!r} is of no field that this version knows")
            else:
                layers.append(Layer(f"map-{name}", "map", name, results, index, field=field))
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
    """Objects first: they lie over the semantic labels."""
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


def _colors(image: SourceImage) -> dict[int, str]:
    """Colours of channels that ``omero`` gives, ``rrggbb``."""
    group = open_group(image.url)
    attributes: dict[str, Any] = {} if group is None else group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    omero = ome.get("omero") if isinstance(ome, dict) else None
    listed = omero.get("channels") if isinstance(omero, dict) else None
    found = {}
    for index, channel in enumerate(listed if isinstance(listed, list) else []):
        color = str(channel.get("color", "")) if isinstance(channel, dict) else ""
        if len(color) == 6 and all(letter in "0123456789abcdefABCDEF" for letter in color):
            found[index] = color.lower()
    return found


def _edge(chunk: int) -> int:
    """Edge of the blocks that are kept: whole chunks, and not many small ones."""
    return chunk * max(1, _BLOCK // chunk)
