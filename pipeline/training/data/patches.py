"""Training images, held in memory, and the patches that are drawn from them.

A class is drawn first, then an image that has it, then one of its pixels: so classes are equally likely at the centre
of a patch, however rare they are. The patches of a step depend on its seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.tiling import mirror
from chorus.pipeline.preprocessing.normalisation import normalised
from chorus.pipeline.training.data.imaging import Imaging
from chorus.pipeline.training.data.pairs import TrainingPair, class_image, load_pair
from chorus.pipeline.training.settings import Augment, TrainSettings

# Percentiles of an image's range of intensities, which gamma, contrast and noise refer to.
_LOW, _HIGH = 0.5, 99.5
ELASTIC_REACH = 12
"""Maximum displacement by elastic deformation, in pixels of the source."""


@dataclass(frozen=True)
class PreparedImage:
    """A plane (y, x) or a volume (z, y, x) ready for drawing patches.

    Attributes
    ----------
    name : of the pair
    image : (channels, *shape) float32, normalised
    equalised : the same with local contrast equalisation, if requested
    targets : (targets, *shape) float32: class, then flows dy and dx, then boundaries (0 or 1), those that are learnt
    low, high : (channels,) float32, the range of intensities
    order : flat indices of the pixels, sorted by class; `bounds` : start of each class in it, and the end
    """

    name: str
    image: NDArray[np.float32]
    equalised: NDArray[np.float32] | None
    targets: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    order: NDArray[np.uint32]
    bounds: NDArray[np.int64]


def prepare(pair: TrainingPair, settings: TrainSettings) -> PreparedImage:
    """Read and normalise one pair, and compute its flows and boundaries.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    raw, label = load_pair(pair)
    image = normalised(raw, settings.normalisation)
    classes = class_image(label, settings, pair.label)
    targets = classes[None].astype(np.float32)
    if settings.flows:
        from chorus.pipeline.instances.whole_image import flows_of  # needs Cellpose, which is optional

        targets = np.concatenate([targets, flows_of(label)])
    if settings.boundaries:
        targets = np.concatenate([targets, boundaries_of(label)[None]])
    flat = image.reshape(image.shape[0], -1)
    low, high = np.percentile(flat, [_LOW, _HIGH], axis=1).astype(np.float32)
    counts = np.bincount(classes.ravel(), minlength=len(settings.classes))
    return PreparedImage(
        pair.name,
        image,
        _equalised(image) if settings.augment.clahe else None,
        targets,
        low,
        high,
        np.argsort(classes.ravel(), kind="stable").astype(np.uint32),
        np.concatenate([[0], np.cumsum(counts)]),
    )


def boundaries_of(label: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the pixels of objects and background that have a side in common with another object, as 1.

    Parameters
    ----------
    label : (y, x) or (z, y, x) integer, 0 for background

    Returns
    -------
    NDArray[np.float32]
        Of the shape of `label`, 0 or 1.
    """
    from skimage.segmentation import find_boundaries

    return np.asarray(find_boundaries(label, connectivity=1, mode="thick"), np.float32)  # type: ignore[no-untyped-call]


def _equalised(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the CLAHE of each channel, within its own range."""
    from skimage.exposure import equalize_adapthist

    result = np.empty_like(image)
    for channel, plane in enumerate(image):
        low, spread = float(plane.min()), float(np.ptp(plane))
        result[channel] = low + spread * equalize_adapthist((plane - low) / spread) if spread else plane
    return result


@dataclass(frozen=True)
class Draw:
    """Windows of a batch, larger than patches, and the parameters of their augmentation.

    Attributes
    ----------
    images : (batch, channels, *window) float32; `targets` : (batch, targets, *window) float32
    flows, boundaries : whether the targets have them, see `PreparedImage`
    matrix : (batch, axes, axes) float32, from the offset of a pixel from the patch's centre to that in the window
    low, high : (batch, channels) float32, ranges of intensities
    gamma, contrast, noise : (batch,) float32
    bent : (batch,) float32, 1 for patches with elastic deformation
    seed : of random numbers per pixel
    imaging : what the microscope does, if anything
    """

    images: NDArray[np.float32]
    targets: NDArray[np.float32]
    flows: bool
    boundaries: bool
    matrix: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    gamma: NDArray[np.float32]
    contrast: NDArray[np.float32]
    noise: NDArray[np.float32]
    bent: NDArray[np.float32]
    seed: int
    imaging: Imaging | None = None


class PatchSource:
    """Draw batches from prepared images."""

    def __init__(self, images: Sequence[PreparedImage], settings: TrainSettings) -> None:
        self._images = images
        self._settings = settings
        self._window = window_shape(settings.patch_shape, settings.augment)
        classes = range(len(settings.classes))
        having = [[image for image in images if image.bounds[k] < image.bounds[k + 1]] for k in classes]
        self._having = [(k, positions) for k, positions in enumerate(having) if positions]

    def draw(self, seed: Sequence[int]) -> Draw:
        """Return the batch of `seed`, independent of earlier draws."""
        rng = np.random.default_rng(list(seed))
        batch, augment = self._settings.batch, self._settings.augment
        first = self._images[0]
        images = np.empty((batch, len(first.image), *self._window), np.float32)
        targets = np.empty((batch, len(first.targets), *self._window), np.float32)
        sources = [self._cut(rng, images[index], targets[index]) for index in range(batch)]
        return Draw(
            images,
            targets,
            self._settings.flows,
            self._settings.boundaries,
            np.stack([_matrix(rng, augment, len(self._window)) for _ in range(batch)]),
            np.stack([source.low for source in sources]),
            np.stack([source.high for source in sources]),
            _factor(rng, augment.gamma, batch),
            _factor(rng, augment.contrast, batch),
            rng.uniform(0, augment.noise, batch).astype(np.float32),
            (rng.random(batch) < 0.5 * augment.elastic).astype(np.float32),
            int(rng.integers(1 << 62)),
            Imaging.drawn(rng, augment, batch),  # last, so that recipes without it draw the same numbers as ever
        )

    def _cut(self, rng: np.random.Generator, image: NDArray[np.float32], targets: NDArray[np.float32]) -> PreparedImage:
        """Fill a window whose middle pixel, at size // 2 on each axis, is of a class that was drawn first."""
        k, having = self._having[rng.integers(len(self._having))]
        source = having[rng.integers(len(having))]
        at = int(source.order[rng.integers(source.bounds[k], source.bounds[k + 1])])
        shape = source.image.shape[1:]
        spans = zip(np.unravel_index(at, shape), self._window, shape, strict=True)
        indices, turns = zip(
            *(_mirrored(int(middle) - size // 2, size, length) for middle, size, length in spans), strict=True
        )
        _take(source.image, indices, image)
        if source.equalised is not None and rng.random() < 0.5:
            equalised = np.empty_like(image)
            _take(source.equalised, indices, equalised)
            image += np.float32(rng.random()) * (equalised - image)
        _take(source.targets, indices, targets)
        if self._settings.flows:  # beyond an edge objects are mirrored, and so are their flows
            targets[1] *= turns[0][:, None]
            targets[2] *= turns[1]
        return source


def _take(maps: NDArray[np.float32], indices: Sequence[NDArray[np.int64]], out: NDArray[np.float32]) -> None:
    *outer, inner = indices
    for axis, index in enumerate(outer, start=1):
        maps = maps.take(index, axis=axis)
    # `clip` saves NumPy a buffer; all indices are valid.
    np.take(maps, inner, axis=len(indices), out=out, mode="clip")


def window_shape(patch: Sequence[int], augment: Augment) -> tuple[int, ...]:
    """Return the shape of a window that contains a patch under every rotation, scale and deformation; even edges.

    Parameters
    ----------
    patch : its shape, (y, x) or (z, y, x); rotations are those of y and x
    augment : how patches are varied
    """
    angle = math.radians(min(augment.rotation, 45.0))  # additional quarter turns do not change the reach
    turned = max(patch[-2:]) / 2 * (math.cos(angle) + math.sin(angle))
    halves = [*(edge / 2 for edge in patch[:-2]), turned, turned]
    reaches = [half / augment.scale[0] + ELASTIC_REACH * augment.elastic for half in halves]
    return tuple(2 * (math.ceil(reach) + 2) for reach in reaches)


def _mirrored(start: int, size: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return indices of an axis, mirrored at its ends, and -1 where they run backwards."""
    index = np.arange(start, start + size)
    backwards = np.mod(index, max(1, 2 * (length - 1))) > length - 1
    return mirror(index, length), np.where(backwards, -1, 1).astype(np.float32)


def _matrix(rng: np.random.Generator, augment: Augment, axes: int) -> NDArray[np.float32]:
    """Return random flips, quarter turns and a further rotation of y and x, and a scale as one matrix, (axes, axes)."""
    turns, flip = int(rng.integers(4)), 1 - 2 * int(rng.integers(2))
    angle = math.radians(rng.uniform(-augment.rotation, augment.rotation))
    magnification = math.exp(rng.uniform(*np.log(augment.scale)))
    c, s = math.cos(angle), math.sin(angle)
    quarter: NDArray[Any] = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns)
    plane = np.array([[c, -s], [s, c]]) @ quarter @ np.diag([1, flip]) / magnification
    matrix = np.zeros((axes, axes))
    matrix[-2:, -2:] = plane
    for axis in range(axes - 2):
        matrix[axis, axis] = (1 - 2 * int(rng.integers(2))) / magnification
    return np.asarray(matrix, np.float32)


def _factor(rng: np.random.Generator, largest: float, size: int) -> NDArray[np.float32]:
    """Draw factors between 1 / `largest` and `largest`, uniform in their logarithm."""
    return np.exp(rng.uniform(-math.log(largest), math.log(largest), size)).astype(np.float32)
