"""A volume that a run has left, read box by box: foreground, flows and doubt, as they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.fields import FLOW, PROBABILITY
from chorus.pipeline.errors import ImageError
from chorus.pipeline.instances.volume import Box
from chorus.pipeline.instances.volume_dynamics import VolumeCrop
from chorus.pipeline.io import storage
from chorus.pipeline.io.arrays import posterior_axes
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.writer import open_labels, open_posterior

FLOW_CHANNELS = tuple(map(FLOW.channel, "zyx"))


class StoredVolume:
    """One time point of an image; `chorus.pipeline.instances.stored.StoredPlane` of a volume.

    Parameters
    ----------
    layout : of the image's results
    t : the time point; 0 where the image has no such axis
    multilabel : a voxel may be of several classes: of each of which the probability is one half or more
    anisotropy : how many pixels planes are apart

    Raises
    ------
    RefusedError : there are no such results
    """

    def __init__(self, layout: ImageLayout, t: int, *, multilabel: bool, anisotropy: float) -> None:
        self._layout, self._t, self._anisotropy = layout, t, anisotropy
        self._labels = None if multilabel else open_labels(layout.labels_url)

    @cached_property
    def _posterior(self) -> zarr.Array[Any]:
        return open_posterior(self._layout.url)

    @property
    def shape(self) -> tuple[int, int, int]:
        depth, height, width = self._layout.shape[-3:]
        return depth, height, width

    def crop(self, box: Box, value: int) -> VolumeCrop:
        """What is known of class `value` (1, 2, ...) in a box; raises ImageError where it cannot be decoded."""
        foreground = self.foreground(box, value)
        if foreground.any():
            flows = self.maps(box, FLOW_CHANNELS, "float32")
        else:  # nothing is read where nothing is followed
            flows = np.broadcast_to(np.float32(0), (3, *box.shape))
        return VolumeCrop(foreground, flows, box, self.shape, self._anisotropy)

    def foreground(self, box: Box, value: int) -> NDArray[np.bool_]:
        """Where class `value` is, (z, y, x) bool of a box; raises ImageError as `crop`."""
        if self._labels is None:
            name = PROBABILITY.channel(self._layout.classes[value].name)
            return np.asarray(self.maps(box, [name])[0] >= 0.5)
        return np.asarray(self._read(self._labels, self._layout.axes, box, {}) == value)

    def maps(self, box: Box, names: Sequence[str], dtype: str | None = None) -> NDArray[np.floating[Any]]:
        """Channels of the posterior by name, (names, z, y, x), as stored or of `dtype`; raises ImageError as `crop`."""
        found = np.empty((len(names), *box.shape), dtype or self._layout.dtype)
        for channel, name in enumerate(names):
            at = {"c": self._layout.channels.index(name)}
            found[channel] = self._read(self._posterior, posterior_axes(self._layout), box, at)
        return found

    def _read(self, array: zarr.Array[Any], axes: str, box: Box, at: dict[str, int]) -> NDArray[Any]:
        where: dict[str, int | slice] = {"z": box.z.slice, "y": box.y.slice, "x": box.x.slice, "t": self._t, **at}
        try:
            return np.asarray(array[tuple(where[axis] for axis in axes)])
        except Exception as error:  # codecs and remote filesystems raise types of many libraries
            url = self._layout.url
            damaged = f"{url}: a result cannot be decoded ({storage.words(error)}); run `chorus predict` again"
            raise ImageError(storage.explain(error, url) or damaged) from error
