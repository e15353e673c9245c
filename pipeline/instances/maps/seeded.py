"""Seeded watersheds of a box: on distances to centres and boundaries, and on boundaries within a foreground.

Pixels and seeds are connected by their sides. A plane is a box of depth 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Radius of the smoothing kernel in standard deviations, as in the tools whose rules these are.
_TRUNCATE = 3


@dataclass(frozen=True)
class BoxLabels:
    """Objects of a box.

    Attributes
    ----------
    labels : (z, y, x) int32, objects 1, 2, ..., 0 for background
    seeds : (z, y, x) bool, the pixels that they grew from; None where they did not grow from seeds
    """

    labels: NDArray[np.int32]
    seeds: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class DistanceSettings:
    """Settings of a watershed on predicted distances; names and defaults are those of micro-SAM.

    Attributes
    ----------
    center_distance_threshold, boundary_distance_threshold : seeds are where both distances are less
    distance_smoothing : standard deviation in pixels of the Gaussian that smooths both
    """

    center_distance_threshold: float = 0.5
    boundary_distance_threshold: float = 0.5
    distance_smoothing: float = 1.6

    @property
    def reach(self) -> int:
        """Pixels within which the seed of a pixel is decided."""
        return round(_TRUNCATE * self.distance_smoothing)


@dataclass(frozen=True)
class SeedSettings:
    """Settings of a watershed on boundaries within a foreground.

    Attributes
    ----------
    seed_threshold : seeds are where the probability of foreground, less that of a boundary, is more
    """

    seed_threshold: float = 0.5


def watershed_on_distances(
    mask: NDArray[np.bool_],
    centres: NDArray[np.floating] | None,
    boundaries: NDArray[np.floating] | None,
    settings: DistanceSettings,
) -> BoxLabels:
    """Label objects by the distances of their pixels to the centre and to the boundary.

    Seeds are the components of the mask in which both distances are small; they grow by the distance to the boundary,
    or by that to the centre where the other is not known.

    Parameters
    ----------
    mask : (z, y, x) bool, foreground
    centres : (z, y, x), distance to the centre of the object, 0 (there) to 1; None if it is not known
    boundaries : (z, y, x), inverted distance to the boundary of the object, 0 (in the middle) to 1 (at the boundary);
        None if it is not known

    References
    ----------
    Archit et al., Segment Anything for Microscopy, Nature Methods 22:579 (2025);
    ``torch_em.util.segmentation.watershed_from_center_and_boundary_distances``.
    """
    seeds, heights = mask.copy(), None
    thresholds = settings.center_distance_threshold, settings.boundary_distance_threshold
    for distances, threshold in zip((centres, boundaries), thresholds, strict=True):
        if distances is not None:
            heights = smoothed(distances, settings.distance_smoothing)
            seeds &= heights < threshold
    if heights is None:
        raise ValueError("no distances")
    return _flooded(heights, seeds, mask)


def watershed_on_boundaries(
    mask: NDArray[np.bool_],
    foreground: NDArray[np.floating],
    boundaries: NDArray[np.floating],
    settings: SeedSettings,
) -> BoxLabels:
    """Label objects by their foreground and their boundaries.

    Seeds are the components of foreground without boundaries; they grow by the probability of a boundary.

    Parameters
    ----------
    mask : (z, y, x) bool, foreground
    foreground, boundaries : (z, y, x) probabilities

    References
    ----------
    ``torch_em.util.segmentation.watershed_from_components``.
    """
    ridges = boundaries.astype(np.float32)
    seeds = mask & (foreground.astype(np.float32) - ridges > settings.seed_threshold)
    return _flooded(ridges, seeds, mask)


def smoothed(values: NDArray[np.floating], sigma: float) -> NDArray[np.float32]:
    """Smooth a map by a Gaussian, mirrored at the borders of the box; values that are no numbers count as 1.

    Parameters
    ----------
    values : (z, y, x) any floating dtype
    sigma : standard deviation in pixels, 0 for none; axes of one pixel are left out

    Returns
    -------
    NDArray[np.float32]
        (z, y, x).
    """
    numbers = values.astype(np.float32)
    numbers[~np.isfinite(numbers)] = 1
    sigmas = [sigma if length > 1 else 0.0 for length in values.shape]
    result: NDArray[np.float32] = ndimage.gaussian_filter(numbers, sigmas, mode="mirror", truncate=_TRUNCATE)
    return result


def _flooded(heights: NDArray[np.float32], seeds: NDArray[np.bool_], mask: NDArray[np.bool_]) -> BoxLabels:
    markers, count = ndimage.label(seeds)
    labels = flooded(heights, markers, mask) if count else np.zeros(mask.shape, np.int32)
    return BoxLabels(labels, seeds)


def flooded(
    heights: NDArray[np.float32], markers: NDArray[np.int32], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.int32]:
    """Grow markers over a box, from low to high.

    Parameters
    ----------
    heights : (z, y, x)
    markers : (z, y, x), 0 where there is none
    mask : (z, y, x) bool, where they may grow; None for everywhere

    Returns
    -------
    NDArray[np.int32]
        (z, y, x); 0 where no marker comes to.
    """
    from skimage.segmentation import watershed

    return np.asarray(watershed(heights, markers, mask=mask), np.int32)  # type: ignore[no-untyped-call]
