"""Candidates of a stored plane of a run's results, read band by band."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.fields import PROBABILITY, RAY, RAY_VARIATION
from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.instances.stars.candidates import Candidates, StarMaps, StarSettings
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import posterior_axes
from chorus.pipeline.io.outputs.writer import open_posterior
from chorus.pipeline.io.storage_failures import failure_sentence, one_line

# Pixels of all channels that are in memory at once.
_BAND_VALUES = 1 << 26


class StoredStars:
    """One plane of an image whose results hold probabilities and rays.

    Parameters
    ----------
    layout : of the image's results
    t, z : the plane; 0 if the image has no such axis
    settings : of the objects

    Raises
    ------
    RefusedError
        If there are no such results.
    """

    def __init__(self, layout: ImageLayout, t: int, z: int, settings: StarSettings) -> None:
        self._layout, self._t, self._z, self._settings = layout, t, z, settings
        self._array: zarr.Array[Any] = open_posterior(layout.url)
        names = [PROBABILITY.channel(entry.name) for entry in layout.classes[1:]]
        self._classes = [layout.channels.index(name) for name in names]
        self._rays = RAY.among(layout.channels)
        self._variation = RAY_VARIATION.among(layout.channels)

    def candidates(self, window: Window) -> Candidates:
        """Return the candidates of a window.

        Raises
        ------
        ImageError
            If the results cannot be decoded.
        """
        count = len(self._rays) + len(self._classes) + 1
        rows = max(1, _BAND_VALUES // (count * window.shape[1]))
        starts = range(window.y.start, window.y.stop, rows)
        bands = [Window(Span(start, min(start + rows, window.y.stop)), window.x) for start in starts]
        return Candidates.joined([self._of_band(band) for band in bands])

    def _of_band(self, band: Window) -> Candidates:
        """Read the rays only where something is probable enough."""
        plane = self._layout.height, self._layout.width
        probability = self._read(self._classes, band)
        likely = np.argwhere(probability.sum(axis=0, dtype=np.float32) > np.float32(self._settings.prob_threshold))
        if not len(likely):
            nothing = np.zeros((len(self._rays), *band.shape), np.float16)
            return Candidates.of(StarMaps(probability, nothing, None, band), plane, self._settings)
        (y0, x0), (y1, x1) = likely.min(axis=0).tolist(), (likely.max(axis=0) + 1).tolist()
        y, x = band.y.start, band.x.start
        part = Window.of(y + y0, y + y1, x + x0, x + x1)
        variation = self._read(self._variation, part)[0] if self._variation else None
        maps = StarMaps(probability[:, y0:y1, x0:x1], self._read(self._rays, part), variation, part)
        return Candidates.of(maps, plane, self._settings)

    def _read(self, channels: list[int], window: Window) -> NDArray[np.floating[Any]]:
        """Return (channels, y, x) of a window; channels next to each other are read at once."""
        parts = []
        for run in np.split(np.array(channels), np.flatnonzero(np.diff(channels) != 1) + 1):
            at: dict[str, int | slice] = {
                "t": self._t,
                "c": slice(int(run[0]), int(run[-1]) + 1),
                "z": self._z,
                "y": window.y.slice,
                "x": window.x.slice,
            }
            try:
                stored = np.asarray(self._array[tuple(at[axis] for axis in posterior_axes(self._layout))])
            except Exception as error:  # codecs and remote filesystems raise types of many libraries
                url = self._layout.url
                damaged = f"{url}: a result cannot be decoded ({one_line(error)}); run `chorus predict` again"
                raise ImageError(failure_sentence(error, url) or damaged) from error
            parts.append(stored.reshape(len(run), *window.shape))
        return np.concatenate(parts)
