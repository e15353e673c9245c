"""Resamples a posterior from the model's plane to the image's pixels, and selects the channels that are kept."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.cluster.planning.image_table import PlannedImage
from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.preprocessing.resampling import AxisMap, nearest, resample


def is_resampled(image: PlannedImage) -> bool:
    """Return whether the model's plane has another pixel size than the image's."""
    return (image.height, image.width) != (image.model_height, image.model_width)


def axis_maps(image: PlannedImage) -> tuple[AxisMap, AxisMap]:
    """Return the maps of both axes from the model's plane back to the image's."""
    return AxisMap.make(image.model_height, image.height), AxisMap.make(image.model_width, image.width)


def on_image(posterior: Posterior, image: PlannedImage, target: Window, window: Window) -> Posterior:
    """Resample the posterior of `target`, on the model's plane, to the pixels of `window` of the image.

    Maps are interpolated linearly; labels and masks take the nearest pixel.
    """
    y, x = axis_maps(image)

    def pick(labels: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        planes = labels.reshape(-1, *labels.shape[-2:])
        picked = nearest(planes, target, window, y, x)
        return picked.reshape(*labels.shape[:-2], *picked.shape[-2:])

    return Posterior(
        fields={name: resample(maps, target, window, y, x) for name, maps in posterior.fields.items()},
        labels=pick(posterior.labels),
        masks=pick(posterior.masks),
        member_masks=pick(posterior.member_masks),
    )


def saved_maps(posterior: Posterior, save: list[str], dtype: str = "float32") -> NDArray[np.floating[Any]] | None:
    """Return the kept channels of a posterior, in the order of the layout.

    Returns
    -------
    (channels, y, x) of `dtype`; None where no maps are kept
    """
    if not save:
        return None
    chosen = [posterior.maps(FIELDS[name]) for name in save]
    kept = np.empty((sum(map(len, chosen)), *posterior.labels.shape), dtype)
    # Torch rounds to float16 as NumPy does, in a quarter of the time.
    for target, source in zip(torch.from_numpy(kept), itertools.chain(*chosen), strict=True):
        target.copy_(torch.from_numpy(source))
    return kept
