"""Corruptions of images at five levels: what cameras, lenses, lamps, files and people do to them.

Where photographs have a counterpart the levels are those of ImageNet-C (noise, photons, JPEG) [1]_; blur and motion are
in pixels of an image whose objects are tens of pixels wide, gain, gamma, illumination, saturation and channels as in
fluorescence, in the manner of MedMNIST-C [2]_. Intensities count from 0 at the image's 0.5th percentile to 1 at its
99.5th, channel by channel; results have the dtype of the image and are rounded and clipped to it.

References
----------
.. [1] Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations, ICLR
   2019; arXiv:1903.12261.
.. [2] Di Salvo, Doerrich and Ledig, MedMNIST-C: comprehensive benchmark and improved classifier robustness by
   simulating realistic image corruptions, 2024; arXiv:2406.17536.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Relative = NDArray[np.float64]
"""Intensities (channels, y, x), 0 and 1 at the ends of the image's range."""
Change = Callable[[Relative, float, np.random.Generator], Relative]

LEVELS = range(1, 6)
_ENDS = (0.5, 99.5)


@dataclass(frozen=True)
class Corruption:
    """One way in which images are spoilt.

    Attributes
    ----------
    name : for files and options
    label : for people
    unit : of the degrees, for people
    degrees : at the levels 1 to 5
    change : of the intensities; None if the image is resampled or its channels are mixed
    """

    name: str
    label: str
    unit: str
    degrees: tuple[float, float, float, float, float]
    change: Change | None = None

    def degree(self, level: int) -> float:
        """Return the degree at a level, 1 to 5."""
        return self.degrees[level - 1]


def _noise(pixels: Relative, deviation: float, rng: np.random.Generator) -> Relative:
    return pixels + rng.normal(0, deviation, pixels.shape)


def _photons(pixels: Relative, brightest: float, rng: np.random.Generator) -> Relative:
    return np.asarray(rng.poisson(brightest * np.maximum(pixels, 0)) / brightest, np.float64)


def _defocus(pixels: Relative, sigma: float, rng: np.random.Generator) -> Relative:
    return np.asarray(ndimage.gaussian_filter(pixels, (0, sigma, sigma), mode="mirror"), np.float64)


def _motion(pixels: Relative, length: float, rng: np.random.Generator) -> Relative:
    """Move the image along a line of `length` pixels at a random angle while it is exposed."""
    angle, reach = rng.uniform(0, math.pi), (length - 1) / 2
    steps = np.linspace(-reach, reach, 4 * round(length) + 1)
    moved = [
        ndimage.shift(pixels, (0, s * math.sin(angle), s * math.cos(angle)), order=1, mode="mirror") for s in steps
    ]
    return np.asarray(np.mean(moved, axis=0), np.float64)


def _gamma(pixels: Relative, exponent: float, rng: np.random.Generator) -> Relative:
    """Raise the range to a power or its inverse, at random; what is beyond the range stays."""
    exponent = exponent if rng.random() < 0.5 else 1 / exponent
    return np.where((pixels > 0) & (pixels < 1), np.clip(pixels, 0, 1) ** exponent, pixels)


def _illumination(pixels: Relative, missing: float, rng: np.random.Generator) -> Relative:
    """Take light away with the square of the distance from a random place."""
    height, width = pixels.shape[1:]
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    distance = (y - rng.uniform(-1, 1)) ** 2 + (x - rng.uniform(-1, 1)) ** 2
    return np.asarray(pixels * (1 - missing * distance / distance.max()), np.float64)


def _jpeg(pixels: Relative, quality: float, rng: np.random.Generator) -> Relative:
    """Store each channel as JPEG in 8 bits over its range."""
    from PIL import Image

    result = np.empty_like(pixels)
    for channel, plane in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(np.rint(255 * np.clip(plane, 0, 1)).astype(np.uint8)).save(buffer, "JPEG", quality=int(quality))
        result[channel] = np.asarray(Image.open(buffer), np.float64) / 255
    return result


def _saturation(pixels: Relative, exposure: float, rng: np.random.Generator) -> Relative:
    """Expose longer, with a camera whose range ends where the image's ended."""
    return np.minimum(exposure * pixels, 1)


def _channels(pixels: Relative, share: float, rng: np.random.Generator) -> Relative:
    """Let every channel have a share of the next one; all of it is a swap."""
    return (1 - share) * pixels + share * np.roll(pixels, 1, axis=0)


GAIN, FINER, COARSER, CHANNELS = "gain", "finer_pixels", "coarser_pixels", "channels"
CORRUPTIONS = (
    Corruption("noise", "Gaussian noise", "of the range", (0.08, 0.12, 0.18, 0.26, 0.38), _noise),
    Corruption("photons", "few photons", "at the brightest", (60, 25, 12, 5, 3), _photons),
    Corruption("defocus", "defocus", "pixels", (1, 1.5, 2, 3, 4), _defocus),
    Corruption("motion", "motion", "pixels", (3, 5, 7, 11, 15), _motion),
    Corruption(GAIN, "low gain", "of the signal", (0.7, 0.5, 0.3, 0.15, 0.05)),
    Corruption("gamma", "gamma", "exponent", (1.2, 1.5, 1.8, 2.2, 2.7), _gamma),
    Corruption("illumination", "uneven light", "missing", (0.2, 0.4, 0.6, 0.75, 0.9), _illumination),
    Corruption("jpeg", "JPEG", "quality", (25, 18, 15, 10, 7), _jpeg),
    Corruption("saturation", "saturated", "times exposed", (1.5, 2, 3, 5, 8), _saturation),
    Corruption(FINER, "finer pixels", "times the said", (1.15, 1.3, 1.5, 1.75, 2)),
    Corruption(COARSER, "coarser pixels", "times the said", (1.15, 1.3, 1.5, 1.75, 2)),
    Corruption(CHANNELS, "channels mixed", "of the next", (0.2, 0.4, 0.6, 0.8, 1), _channels),
)
"""In the order in which they are shown."""


def corrupted(
    image: NDArray[Any], truth: NDArray[np.integer[Any]], corruption: Corruption, level: int, seed: int
) -> tuple[NDArray[Any], NDArray[np.integer[Any]]]:
    """Return an image as a bad microscope would have taken it, and its labels.

    Parameters
    ----------
    image : (channels, y, x), integers or floats
    truth : (y, x)
    corruption : of `CORRUPTIONS`; ``channels`` is for images of several
    level : 1 to 5
    seed : of what is random

    Returns
    -------
    image : (channels, y, x) of its dtype; of another size where pixels are finer or coarser
    truth : (y, x) of its dtype and that size
    """
    degree = corruption.degree(level)
    if corruption.name in (FINER, COARSER):
        return _resampled(image, truth, degree if corruption.name == FINER else 1 / degree)
    pixels = image.astype(np.float64)
    if corruption.name == GAIN:
        return _as(image.dtype, degree * pixels), truth
    low, high = np.percentile(pixels, _ENDS, axis=(1, 2), keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    assert corruption.change is not None
    changed = corruption.change((pixels - low) / spread, degree, np.random.default_rng(seed))
    return _as(image.dtype, low + spread * changed), truth


def _resampled(
    image: NDArray[Any], truth: NDArray[np.integer[Any]], factor: float
) -> tuple[NDArray[Any], NDArray[np.integer[Any]]]:
    """Return image and labels with `factor` times as many pixels on an axis; what is made coarser is smoothed first."""
    from skimage.transform import resize

    shape = tuple(max(1, round(length * factor)) for length in truth.shape)
    pixels = image.astype(np.float64)
    smooth = resize(pixels, (len(image), *shape), order=1, anti_aliasing=factor < 1)  # type: ignore[no-untyped-call]
    y, x = (np.minimum(np.arange(n) * m // n, m - 1) for n, m in zip(shape, truth.shape, strict=True))
    return _as(image.dtype, smooth), truth[np.ix_(y, x)]


def _as(dtype: np.dtype[Any], pixels: NDArray[np.float64]) -> NDArray[Any]:
    if dtype.kind == "f":
        return pixels.astype(dtype)
    ends = np.iinfo(dtype)
    return np.clip(np.rint(pixels), ends.min, ends.max).astype(dtype)
