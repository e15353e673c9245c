"""A plane that a run has left, read window by window: foreground, flows and doubt, as they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline import storage
from pipeline.arrays import posterior_axes
from pipeline.errors import ImageError
from pipeline.geometry import Window
from pipeline.instances.dynamics import Crop
from pipeline.layout import ImageLayout
from pipeline.outputs import open_labels, open_posterior

FLOW_CHANNELS = ("flow:y", "flow:x")


class StoredPlane:
    """One plane of an image; its flows can be read where they were saved.

    Parameters
    ----------
    layout : of the image's results
    t, z : the plane; 0 where the image has no such axis
    multilabel : a pixel may be of several classes: of each of which the probability is one half or more

    Raises
    ------
    RefusedError : there are no such results
    """

    def __init__(self, layout: ImageLayout, t: int, z: int, *, multilabel: bool) -> None:
        self._layout, self._t, self._z = layout, t, z
        self._labels = None if multilabel else open_labels(layout.labels_url)
        self._flows: tuple[Window, NDArray[np.floating[Any]]] | None = None

    @cached_property
    def _posterior(self) -> zarr.Array[Any]:
        return open_posterior(self._layout.url)

    def crop(self, window: Window, value: int) -> Crop:
        """What is known of class `value` (1, 2, ...) in a window; raises ImageError where it cannot be decoded."""
        if self._flows is None or self._flows[0] != window:  # the next class mostly asks for the same one
            self._flows = window, self.maps(window, FLOW_CHANNELS)
        plane = self._layout.height, self._layout.width
        return Crop(self.foreground(window, value), self._flows[1], window, plane)

    def foreground(self, window: Window, value: int) -> NDArray[np.bool_]:
        """Where class `value` is, (y, x) bool of a window; raises ImageError as `crop`."""
        if self._labels is None:
            name = f"probability:{self._layout.classes[value].name}"
            return np.asarray(self.maps(window, [name])[0] >= 0.5)
        return np.asarray(self._read(self._labels, self._layout.axes, window).reshape(window.shape) == value)

    def maps(self, window: Window, names: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Channels of the posterior by name, (names, y, x) as stored; raises ImageError as `crop`."""
        axes = posterior_axes(self._layout)
        found = [
            self._read(self._posterior, axes, window, self._layout.channels.index(name)).reshape(window.shape)
            for name in names
        ]
        return np.stack(found)

    def _read(self, array: zarr.Array[Any], axes: str, window: Window, channel: int = 0) -> NDArray[Any]:
        at: dict[str, int | slice] = {
            "t": self._t,
            "c": channel,
            "z": self._z,
            "y": window.y.slice,
            "x": window.x.slice,
        }
        try:
            return np.asarray(array[tuple(at[axis] for axis in axes)])
        except Exception as error:  # codecs and remote filesystems raise types of many libraries
            url = self._layout.url
            damaged = f"{url}: a result cannot be decoded ({storage.words(error)}); run `chorus predict` again"
            raise ImageError(storage.explain(error, url) or damaged) from error
