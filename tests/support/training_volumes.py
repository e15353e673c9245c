"""Small volumes of touching blobs, as files to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from chorus.pipeline.training.data.pairs import TrainingPair, find_pairs
from chorus.pipeline.training.settings import TrainSettings

SHAPE = (12, 32, 40)
SMALL = TrainSettings(
    axes="zyx",
    boundaries=True,
    options={"features": [4, 8, 8]},
    folds=2,
    steps=6,
    batch=2,
    patch=(8, 16, 16),
    validate_every=3,
    learning_rate=5e-3,
    channels=["dna"],
    pixel_size_um=(0.5, 0.2, 0.2),
)


def blobs(shape: tuple[int, int, int] = SHAPE, *, seed: int = 0, count: int = 6) -> NDArray[np.uint16]:
    """Touching ellipsoids, numbered."""
    rng = np.random.default_rng(seed)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centres = rng.uniform(0.15, 0.85, (count, 3)) * shape
    distances = np.linalg.norm((voxels[..., None, :] - centres) / (3.5, 7, 7), axis=-1)
    return np.where(distances.min(-1) < 1, distances.argmin(-1) + 1, 0).astype(np.uint16)


def imaged(labels: NDArray[np.uint16], *, seed: int = 0) -> NDArray[np.uint16]:
    """An image of labels: bright objects with dark boundaries, and noise."""
    rng = np.random.default_rng(seed)
    signal = np.where(labels > 0, 600 + 20 * (labels % 3), 100)
    return np.clip(signal + rng.normal(0, 30, labels.shape), 0, None).astype(np.uint16)


def write_pairs(folder: Path, count: int = 4) -> tuple[TrainingPair, ...]:
    """Images and labels of as many volumes, in `images` and `labels`."""
    for index in range(count):
        labels = blobs(seed=index)
        for part, data in (("images", imaged(labels, seed=index)), ("labels", labels)):
            (folder / part).mkdir(exist_ok=True, parents=True)
            tifffile.imwrite(folder / part / f"{index}.ome.tif", data, ome=True, metadata={"axes": "ZYX"})
    return find_pairs(str(folder / "images"), str(folder / "labels"), ["dna"], "zyx").pairs
