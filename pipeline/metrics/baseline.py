"""A simple baseline, thresholding and watershed, which shows whether deep learning was needed.

Both methods are scikit-image's, have no parameters and take bright pixels as foreground, as in fluorescence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def otsu_mask(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels above Otsu's threshold; none if all pixels have one value.

    Parameters
    ----------
    pixels : (..., y, x) of any real dtype, finite, at least one pixel

    Returns
    -------
    NDArray[np.bool_]
        Same shape.

    References
    ----------
    Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9:62 (1979).
    """
    from skimage.filters import threshold_otsu

    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2:
        pixels = pixels.astype(np.float64)  # integers get a bin per value, which may be too many
    threshold = threshold_otsu(pixels.reshape(-1, pixels.shape[-1]))  # type: ignore[no-untyped-call]
    return np.asarray(pixels > threshold)


def watershed_objects(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Split a mask at narrow places into objects: watershed of the distance to the background.

    Seeds are the distance's peaks, at least a typical object's radius apart: the median over foreground pixels of the
    largest distance in their connected component, so that specks have little weight.

    Parameters
    ----------
    mask : (y, x) bool

    Returns
    -------
    NDArray[np.int32]
        (y, x), objects 1 to n, 0 for background.
    """
    from scipy.ndimage import distance_transform_edt, maximum
    from skimage.feature import peak_local_max
    from skimage.measure import label
    from skimage.segmentation import watershed

    parts, count = label(mask, connectivity=1, return_num=True)  # type: ignore[no-untyped-call]
    if not count:
        return np.zeros(mask.shape, np.int32)
    # Pixels beyond the edge of the image count as background.
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    largest = maximum(distance, parts, np.arange(1, count + 1))
    radius = max(1, round(float(np.median(largest[parts[mask] - 1]))))
    peaks = peak_local_max(  # type: ignore[no-untyped-call]
        distance, min_distance=radius, labels=parts, exclude_border=False
    )
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    objects = watershed(-distance, seeds, mask=mask)  # type: ignore[no-untyped-call]
    return np.asarray(objects, np.int32)
