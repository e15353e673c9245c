"""A stored plane of a run's results, read window by window: foreground, flows and maps of uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.fields import FIELDS, FLOW, PROBABILITY
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.errors import ImageError
from chorus.pipeline.instances.flows.dynamics import Crop
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import posterior_axes
from chorus.pipeline.io.outputs.writer import open_labels, open_posterior
from chorus.pipeline.io.storage_failures import failure_sentence, one_line

FLOW_CHANNELS = tuple(map(FLOW.channel, "yx"))


class _StoredArrays:
    """The arrays of one plane of an image, as they were stored."""

    def __init__(self, layout: ImageLayout, t: int, z: int) -> None:
        self.layout, self._t, self._z = layout, t, z

    @cached_property
    def _posterior(self) -> zarr.Array[Any]:
        return open_posterior(self.layout.url)

    def channel(self, name: str, window: Window) -> NDArray[np.floating[Any]]:
        """Return a channel of the posterior, (y, x) of a window."""
        return self.read(self._posterior, posterior_axes(self.layout), window, self.layout.channels.index(name))

    def read(self, array: zarr.Array[Any], axes: str, window: Window, channel: int = 0) -> NDArray[Any]:
        """Return a window, (y, x), of an array with these axes."""
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
            damaged = f"{url}: a result cannot be decoded ({one_line(error)}); run `chorus predict` again"
            raise ImageError(failure_sentence(error, url) or damaged) from error


class StoredPlane:
    """One plane of an image; its flows can be read if they were saved.

    Parameters
    ----------
    layout : of the image's results
    t, z : the plane; 0 if the image has no such axis
    least : probability from which a pixel is of a class, so that it may be of several; None takes the labels
    flows : of results that hold the flows of class 1, 2, ...; empty if they are in the image's own results

    Raises
    ------
    RefusedError
        If there are no such results.
    """

    def __init__(
        self, layout: ImageLayout, t: int, z: int, *, least: float | None = None, flows: Sequence[ImageLayout] = ()
    ) -> None:
        self._own = _StoredArrays(layout, t, z)
        self._least = least
        self._labels = None if least is not None else open_labels(layout.labels_url)
        self._of_flows = [_StoredArrays(one, t, z) for one in flows]
        self._last: tuple[_StoredArrays, Window, NDArray[np.floating[Any]]] | None = None

    def crop(self, window: Window, value: int) -> Crop:
        """Return foreground and flows of one class in a window.

        Parameters
        ----------
        window : of the plane
        value : of the class, 1, 2, ...

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        arrays = self._arrays_of_flows(value)
        if self._last is None or self._last[:2] != (arrays, window):  # the next class mostly asks for the same one
            self._last = arrays, window, np.stack([arrays.channel(name, window) for name in FLOW_CHANNELS])
        plane = self._own.layout.height, self._own.layout.width
        return Crop(self.foreground(window, value), self._last[2], window, plane)

    def foreground(self, window: Window, value: int) -> NDArray[np.bool_]:
        """Return the mask of one class in a window.

        Parameters
        ----------
        window : of the plane
        value : of the class, 1, 2, ...

        Returns
        -------
        NDArray[np.bool_]
            (y, x).

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        if self._labels is None:
            assert self._least is not None
            name = PROBABILITY.channel(self._own.layout.classes[value].name)
            return np.asarray(self._own.channel(name, window) >= self._least)
        return np.asarray(self._own.read(self._labels, self._own.layout.axes, window) == value)

    def map(self, channel: str, window: Window) -> NDArray[np.floating[Any]]:
        """Return a map of the image's own results by its name.

        Parameters
        ----------
        channel : name of the map
        window : of the plane

        Returns
        -------
        NDArray
            (y, x) of the stored floating dtype.

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        return self._own.channel(channel, window)

    def uncertainty(self, name: str, window: Window, value: int) -> NDArray[np.floating[Any]]:
        """Return a map of uncertainty for objects of one class.

        A map about flows is taken from the results whose flows make the objects.

        Parameters
        ----------
        name : of the field, which has one map
        window : of the plane
        value : of the class, 1, 2, ...

        Returns
        -------
        NDArray
            (y, x) of the stored floating dtype.

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        arrays = self._arrays_of_flows(value) if FIELDS[name].role is FLOWS else self._own
        return arrays.channel(name, window)

    def _arrays_of_flows(self, value: int) -> _StoredArrays:
        return self._of_flows[value - 1] if self._of_flows else self._own
