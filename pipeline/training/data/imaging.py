"""What microscopes do to images: defocus, uneven illumination, photon noise, a shifted black level, dead areas.

Every function takes patches of any number of spatial axes, (batch, channels, *spatial) float32, in which 0 is the lower
and 1 the upper end of the image's range, and one parameter per patch, with 0 for none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from chorus.pipeline.training.settings import Augment

BRIGHTEST = 100.0
"""The largest number of photons is this multiple of the smallest."""
_REACH = 3.0  # of the blur, in standard deviations


@dataclass(frozen=True)
class Imaging:
    """Parameters of the patches of a batch, each (batch,) float32.

    Attributes
    ----------
    blur : standard deviation in pixels
    shading : share of the light that is missing at the darkest pixel, 0 to 1
    photons : at the upper end of the range; 0 for no photon noise
    offset : shift, as a share of the range
    cutout : edge of the rectangle without signal, as a share of the patch's
    """

    blur: NDArray[np.float32]
    shading: NDArray[np.float32]
    photons: NDArray[np.float32]
    offset: NDArray[np.float32]
    cutout: NDArray[np.float32]

    @classmethod
    def drawn(cls, rng: np.random.Generator, augment: Augment, batch: int) -> Imaging | None:
        """Draw the parameters of a batch: half of the patches get each effect, all an offset; None if all are off."""
        if not (augment.blur or augment.shading or augment.photons or augment.offset or augment.cutout):
            return None
        degree, chosen = rng.random((4, batch)), rng.random((4, batch)) < 0.5
        largest = np.array([augment.blur, augment.shading, augment.cutout])[:, None]
        blur, shading, cutout = (degree[:3] * chosen[:3] * largest).astype(np.float32)
        photons = (augment.photons * BRIGHTEST ** degree[3] * chosen[3]).astype(np.float32)
        offset = rng.uniform(-augment.offset, augment.offset, batch).astype(np.float32)
        return cls(blur, shading, photons, offset, cutout)


def blurred(patches: torch.Tensor, blur: NDArray[np.float32]) -> torch.Tensor:
    """Return the patches after a Gaussian defocus of `blur` pixels, reflected at the edges."""
    spatial = patches.ndim - 2
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[spatial]
    result = patches.clone()
    for index, sigma in enumerate(blur.tolist()):
        if not sigma:
            continue
        one = patches[index].unsqueeze(1)  # (channels, 1, *spatial)
        for axis in range(2, one.ndim):
            reach = min(math.ceil(_REACH * sigma), one.shape[axis] - 1)
            steps = torch.arange(-reach, reach + 1, device=patches.device, dtype=patches.dtype)
            kernel = torch.softmax(-0.5 * (steps / sigma) ** 2, 0)
            along = [1] * one.ndim
            along[axis] = len(kernel)
            padding = [0, 0] * spatial
            padding[2 * (one.ndim - 1 - axis)] = padding[2 * (one.ndim - 1 - axis) + 1] = reach
            one = convolve(functional.pad(one, padding, mode="reflect"), kernel.reshape(along))
        result[index] = one.squeeze(1)
    return result


def shaded(patches: torch.Tensor, shading: NDArray[np.float32], generator: torch.Generator) -> torch.Tensor:
    """Return the patches under a light that falls with the square of the distance from a random place."""
    shape = (len(patches), *(1 for _ in patches.shape[1:]))
    distance = torch.zeros(shape, device=patches.device)
    for axis in range(2, patches.ndim):
        along = [1] * patches.ndim
        along[axis] = patches.shape[axis]
        at = torch.linspace(-1, 1, patches.shape[axis], device=patches.device).reshape(along)
        centre = 2 * torch.rand(shape, generator=generator, device=patches.device) - 1
        distance = distance + (at - centre) ** 2
    farthest = distance.flatten(1).amax(1).reshape(shape)
    return patches * (1 - _of(shading, patches) * distance / farthest)


def with_photon_noise(patches: torch.Tensor, photons: NDArray[np.float32], generator: torch.Generator) -> torch.Tensor:
    """Return the patches as counts of photons, of which `photons` are expected where the value is 1.

    What lies below 0, the lower end of the range, has no photons and stays.
    """
    per_unit = _of(photons, patches)
    counts = torch.poisson(patches.clamp(min=0) * per_unit, generator=generator)
    noisy = counts / per_unit.clamp(min=torch.finfo(torch.float32).tiny) + patches.clamp(max=0)
    return torch.where(per_unit > 0, noisy, patches)


def cut_out(patches: torch.Tensor, cutout: NDArray[np.float32], generator: torch.Generator) -> torch.Tensor:
    """Return the patches with a rectangle at 0 at a random place; what was there is still to be found.

    References
    ----------
    DeVries and Taylor, Improved regularization of convolutional neural networks with cutout, arXiv:1708.04552.
    """
    inside = _of(cutout, patches) > 0
    for axis in range(2, patches.ndim):
        along = [1] * patches.ndim
        along[axis] = patches.shape[axis]
        size = patches.shape[axis]
        edge = (_of(cutout, patches) * size).round()
        start = torch.rand(edge.shape, generator=generator, device=patches.device) * (size - edge)
        at = torch.arange(size, device=patches.device).reshape(along)
        inside = inside & (at >= start.round()) & (at < start.round() + edge)
    return patches.masked_fill(inside, 0)


def _of(values: NDArray[np.float32], patches: torch.Tensor) -> torch.Tensor:
    """Return a value per patch in a shape that multiplies `patches`."""
    return torch.from_numpy(values).to(patches.device).reshape(-1, *(1 for _ in patches.shape[1:]))
