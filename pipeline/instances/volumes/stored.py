"""A stored volume of a run's results, read box by box: foreground, flows and maps of uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.fields import FLOW, PROBABILITY
from chorus.pipeline.errors import ImageError
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.instances.volumes.dynamics import VolumeCrop
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import posterior_axes
from chorus.pipeline.io.outputs.writer import open_labels, open_posterior
from chorus.pipeline.io.storage_failures import failure_sentence, one_line

FLOW_CHANNELS = tuple(map(FLOW.channel, "zyx"))


class StoredVolume:
    """One time point of an image; as `chorus.pipeline.instances.stored.StoredPlane`, for a volume.

    Parameters
    ----------
    layout : of the image's results
    t : the time point; 0 if the image has no such axis
    least : probability from which a voxel is of a class, so that it may be of several; None takes the labels
    anisotropy : distance of planes, in pixels

    Raises
    ------
    RefusedError
        If there are no such results.
    """

    def __init__(self, layout: ImageLayout, t: int, *, least: float | None = None, anisotropy: float) -> None:
        self._layout, self._t, self._anisotropy = layout, t, anisotropy
        self._least = least
        self._labels = None if least is not None else open_labels(layout.labels_url)

    @cached_property
    def _posterior(self) -> zarr.Array[Any]:
        return open_posterior(self._layout.url)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows and columns."""
        depth, height, width = self._layout.shape[-3:]
        return depth, height, width

    def crop(self, box: Box, value: int) -> VolumeCrop:
        """Return foreground and flows of one class in a box.

        Parameters
        ----------
        box : of the volume
        value : of the class, 1, 2, ...

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        foreground = self.foreground(box, value)
        if foreground.any():
            flows = self.maps(box, FLOW_CHANNELS, "float32")
        else:  # nothing is read where nothing is followed
            flows = np.broadcast_to(np.float32(0), (3, *box.shape))
        return VolumeCrop(foreground, flows, box, self.shape, self._anisotropy)

    def foreground(self, box: Box, value: int) -> NDArray[np.bool_]:
        """Return the mask of one class in a box.

        Parameters
        ----------
        box : of the volume
        value : of the class, 1, 2, ...

        Returns
        -------
        NDArray[np.bool_]
            (z, y, x).

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        if self._labels is None:
            assert self._least is not None
            name = PROBABILITY.channel(self._layout.classes[value].name)
            return np.asarray(self.maps(box, [name])[0] >= self._least)
        return np.asarray(self._read(self._labels, self._layout.axes, box, {}) == value)

    def maps(self, box: Box, names: Sequence[str], dtype: str | None = None) -> NDArray[np.floating[Any]]:
        """Return channels of the posterior by name.

        Parameters
        ----------
        box : of the volume
        names : of the channels
        dtype : of the result; that of the stored array by default

        Returns
        -------
        NDArray
            (names, z, y, x) of `dtype`.

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        maps = np.empty((len(names), *box.shape), dtype or self._layout.dtype)
        for channel, name in enumerate(names):
            at = {"c": self._layout.channels.index(name)}
            maps[channel] = self._read(self._posterior, posterior_axes(self._layout), box, at)
        return maps

    def _read(self, array: zarr.Array[Any], axes: str, box: Box, at: dict[str, int]) -> NDArray[Any]:
        where: dict[str, int | slice] = {"z": box.z.slice, "y": box.y.slice, "x": box.x.slice, "t": self._t, **at}
        try:
            return np.asarray(array[tuple(where[axis] for axis in axes)])
        except Exception as error:  # codecs and remote filesystems raise types of many libraries
            url = self._layout.url
            damaged = f"{url}: a result cannot be decoded ({one_line(error)}); run `chorus predict` again"
            raise ImageError(failure_sentence(error, url) or damaged) from error
