"""Models as StarDist 0.9.2 itself saved them, with random weights, and what Keras answered.

``stardist/unet2d`` was written by Keras 2: grid 2 and 1, two channels, two classes, batch normalisation.
``stardist/resnet3d`` was written by Keras 3: a volume, grid 1, 2, 2. ``io.npz`` holds x and y0 (prob), y1 (dist) and y2
(classes, background first), channels last.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MODELS = Path(__file__).with_name("stardist")


def model_folder(name: str, parent: Path) -> Path:
    """Return a folder below `parent` as StarDist leaves it."""
    folder = parent / name
    folder.mkdir()
    for file in ("config.json", "thresholds.json"):
        shutil.copy(_MODELS / name / file, folder / file)
    packed = (_MODELS / name / "weights_best.h5.gz").read_bytes()
    (folder / "weights_best.h5").write_bytes(gzip.decompress(packed))
    return folder


def answers(name: str) -> dict[str, NDArray[np.float32]]:
    """Return input and outputs of Keras, channels first."""
    with np.load(_MODELS / name / "io.npz") as file:
        return {key: np.ascontiguousarray(np.moveaxis(file[key], -1, 1)) for key in file.files}
