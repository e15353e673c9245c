"""Resamples a posterior from the model's grid to the image's pixels, and selects the channels that are kept."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.preprocessing.resampling import AxisMap, nearest, resample


def is_resampled(image: PlannedImage) -> bool:
    """Return whether the model's grid has another pixel size than the image."""
    return image.layer_shape != image.model_shape


def axis_maps(image: PlannedImage) -> tuple[AxisMap, ...]:
    """Return the maps of all axes from the model's grid back to the image's."""
    return tuple(AxisMap.make(*lengths) for lengths in zip(image.model_shape, image.layer_shape, strict=True))


def on_image(posterior: Posterior, image: PlannedImage, target: Window, window: Window) -> Posterior:
    """Resample the posterior of `target`, on the model's grid, to the pixels of `window` of the image.

    Maps are interpolated linearly; labels and masks take the nearest pixel.
    """
    axes = axis_maps(image)

    def pick(labels: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        of_members = labels.shape[: -len(axes)]
        layers = labels.reshape(-1, *labels.shape[-len(axes) :])
        return nearest(layers, target, window, *axes).reshape(*of_members, *window.shape)

    return Posterior(
        fields={name: resample(maps, target, window, *axes) for name, maps in posterior.fields.items()},
        labels=pick(posterior.labels),
        masks=pick(posterior.masks),
        member_masks=pick(posterior.member_masks),
    )


def saved_maps(posterior: Posterior, save: list[str], dtype: str = "float32") -> NDArray[np.floating[Any]] | None:
    """Return the kept channels of a posterior, in the order of the layout.

    Returns
    -------
    (channels, *window) of `dtype`; None where no maps are kept
    """
    if not save:
        return None
    chosen = [posterior.maps(FIELDS[name]) for name in save]
    kept = np.empty((sum(map(len, chosen)), *posterior.labels.shape), dtype)
    # Torch rounds to float16 as NumPy does, in a quarter of the time.
    for target, source in zip(torch.from_numpy(kept), itertools.chain(*chosen), strict=True):
        target.copy_(torch.from_numpy(source))
    return kept
