"""Checks before training: whether anything can be learnt from images and labels, and whether they fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.training.data.pairs import TrainingPair, class_image, load_pair
from chorus.pipeline.training.settings import TrainSettings

# Memory of a pair, in bytes per pixel: float32 channels and targets, and the order of its pixels by class, sorted.
_BYTES_PER_CHANNEL, _BYTES_PER_LABEL = 4, 4 + 4 + 8
_BYTES_PER_NETWORK = 1 << 30


@dataclass(frozen=True, slots=True)
class Checked:
    """Content of the labels of all pairs.

    Attributes
    ----------
    empty : names of the pairs without any foreground; they are trained on
    objects : number in all pairs, if labels are instances
    pixels : per class, in all pairs
    """

    empty: tuple[str, ...]
    objects: int | None
    pixels: tuple[int, ...]


def check_memory(pairs: Sequence[TrainingPair], settings: TrainSettings, workers: int) -> int:
    """Estimate the bytes that `workers` simultaneous folds take on this machine, before anything is loaded.

    Raises
    ------
    RefusedError
        If more than is available.
    """
    channels = len(settings.channels) * (2 if settings.augment.clahe else 1)
    more = settings.outputs - len(settings.classes)
    per_pixel = _BYTES_PER_CHANNEL * (channels + more) + _BYTES_PER_LABEL
    each = sum(pair.pixels for pair in pairs) * per_pixel + _BYTES_PER_NETWORK
    needed, available = workers * each, psutil.virtual_memory().available
    if needed > available:
        raise RefusedError(
            f"training: {workers} folds at a time need about {needed / 1e9:.1f} GB for {len(pairs)} images, and "
            f"{available / 1e9:.1f} GB are free; train fewer folds at a time, or on fewer or smaller images"
        )
    return needed


def check_pairs(pairs: Sequence[TrainingPair], settings: TrainSettings) -> Checked:
    """Read every label and check that something can be learnt from them.

    Raises
    ------
    RefusedError
        If labels are empty or lack a class, or there are too few of them for the folds.
    """
    groups = {pair.group for pair in pairs}
    if len(groups) < max(2, settings.folds):
        raise RefusedError(
            f"training: {len(groups)} images with labels are fewer than {max(2, settings.folds)} folds need; annotate "
            "more images or ask for fewer folds"
        )
    pixels, objects, empty = np.zeros(len(settings.classes), np.int64), 0, []
    for pair in pairs:
        label = load_pair(pair)[1]
        counted = np.bincount(class_image(label, settings, pair.label).ravel(), minlength=len(pixels))
        pixels += counted
        objects += int(np.count_nonzero(np.unique(label)))
        if not counted[1:].any():
            empty.append(pair.name)
    if not pixels[1:].any():
        raise RefusedError("training: every label image is empty; annotate some objects, or check --labels")
    missing = [name for name, count in zip(settings.classes, pixels, strict=True) if not count]
    if missing:
        raise RefusedError(
            f"training: no label holds any pixel of class {', '.join(missing)}; annotate it, or name only the classes "
            "that there are"
        )
    return Checked(tuple(empty), objects if settings.labels == "instances" else None, tuple(pixels.tolist()))
