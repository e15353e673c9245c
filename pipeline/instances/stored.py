"""A plane that a run has left, read window by window: foreground, flows and doubt, as they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.fields import FIELDS, FLOW, FLOWS, PROBABILITY
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.instances.dynamics import Crop
from chorus.pipeline.io import storage
from chorus.pipeline.io.arrays import posterior_axes
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.writer import open_labels, open_posterior

FLOW_CHANNELS = tuple(map(FLOW.channel, "yx"))


class _StoredArrays:
    """The arrays of one plane of an image, as they were stored."""

    def __init__(self, layout: ImageLayout, t: int, z: int) -> None:
        self.layout, self._t, self._z = layout, t, z

    @cached_property
    def _posterior(self) -> zarr.Array[Any]:
        return open_posterior(self.layout.url)

    def channel(self, name: str, window: Window) -> NDArray[np.floating[Any]]:
        """A channel of the posterior, (y, x) of a window; raises ImageError where it cannot be decoded."""
        return self.read(self._posterior, posterior_axes(self.layout), window, self.layout.channels.index(name))

    def read(self, array: zarr.Array[Any], axes: str, window: Window, channel: int = 0) -> NDArray[Any]:
        """A window of an array of these axes, (y, x)."""
        at: dict[str, int | slice] = {
            "t": self._t,
            "c": channel,
            "z": self._z,
            "y": window.y.slice,
            "x": window.x.slice,
        }
        try:
            return np.asarray(array[tuple(at[axis] for axis in axes)]).reshape(window.shape)
        except Exception as error:  # codecs and remote filesystems raise types of many libraries
            url = self.layout.url
            damaged = f"{url}: a result cannot be decoded ({storage.words(error)}); run `chorus predict` again"
            raise ImageError(storage.explain(error, url) or damaged) from error


class StoredPlane:
    """One plane of an image; its flows can be read where they were saved.

    Parameters
    ----------
    layout : of the image's results
    t, z : the plane; 0 where the image has no such axis
    multilabel : a pixel may be of several classes: of each of which the probability is one half or more
    flows : of results that hold the flows of class 1, 2, ...; empty where they are the image's own

    Raises
    ------
    RefusedError : there are no such results
    """

    def __init__(
        self, layout: ImageLayout, t: int, z: int, *, multilabel: bool, flows: Sequence[ImageLayout] = ()
    ) -> None:
        self._own = _StoredArrays(layout, t, z)
        self._labels = None if multilabel else open_labels(layout.labels_url)
        self._of_flows = [_StoredArrays(one, t, z) for one in flows]
        self._last: tuple[_StoredArrays, Window, NDArray[np.floating[Any]]] | None = None

    def crop(self, window: Window, value: int) -> Crop:
        """What is known of class `value` (1, 2, ...) in a window; raises ImageError where it cannot be decoded."""
        arrays = self._arrays_of_flows(value)
        if self._last is None or self._last[:2] != (arrays, window):  # the next class mostly asks for the same one
            self._last = arrays, window, np.stack([arrays.channel(name, window) for name in FLOW_CHANNELS])
        plane = self._own.layout.height, self._own.layout.width
        return Crop(self.foreground(window, value), self._last[2], window, plane)

    def foreground(self, window: Window, value: int) -> NDArray[np.bool_]:
        """Where class `value` is, (y, x) bool of a window; raises ImageError as `crop`."""
        if self._labels is None:
            name = PROBABILITY.channel(self._own.layout.classes[value].name)
            return np.asarray(self._own.channel(name, window) >= 0.5)
        return np.asarray(self._own.read(self._labels, self._own.layout.axes, window) == value)

    def doubt(self, name: str, window: Window, value: int) -> NDArray[np.floating[Any]]:
        """A map of doubt about objects of class `value`, (y, x) of a window; raises ImageError as `crop`.

        What is said of flows is said of those that make the objects.
        """
        arrays = self._arrays_of_flows(value) if FIELDS[name].role is FLOWS else self._own
        return arrays.channel(name, window)

    def _arrays_of_flows(self, value: int) -> _StoredArrays:
        return self._of_flows[value - 1] if self._of_flows else self._own
