"""Windows become patches: rotated, scaled, deformed and varied in intensity, a whole batch at once.

All geometric changes are one resampling by torch's ``grid_sample``, so pixels are interpolated only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torchvision.transforms.v2.functional import gaussian_blur

from chorus.pipeline.members.contract import FLOW_LENGTH, channels_last
from chorus.pipeline.training.data.imaging import Imaging, blurred, cut_out, shaded, with_photon_noise
from chorus.pipeline.training.data.patches import ELASTIC_REACH, Draw

_ELASTIC_SIGMA = 8.0  # pixels
_ELASTIC_STD = 3.0  # pixels


@dataclass(frozen=True)
class Batch:
    """Input and targets of a training step.

    Attributes
    ----------
    images : (batch, channels, *patch) float32
    classes : (batch, *patch) int64
    flows : (batch, 2, y, x) float32, if they are learnt
    boundaries : (batch, *patch) float32, 0 or 1, if they are learnt
    """

    images: torch.Tensor
    classes: torch.Tensor
    flows: torch.Tensor | None
    boundaries: torch.Tensor | None


def augmented(draw: Draw, patch: Sequence[int], device: torch.device) -> Batch:
    """Return the augmented patches of the windows of `draw`.

    Parameters
    ----------
    draw : windows and what to do to them
    patch : shape of a patch in pixels, (y, x) or (z, y, x)
    device : where to compute them
    """
    generator = torch.Generator(device).manual_seed(draw.seed)
    windows, targets = (torch.from_numpy(a).to(device, non_blocking=True) for a in (draw.images, draw.targets))
    places, jacobian = _places(draw, patch, generator)
    images = functional.grid_sample(windows, places, mode="bilinear", padding_mode="border", align_corners=True)
    targets = functional.grid_sample(targets, places, mode="nearest", padding_mode="border", align_corners=True)
    flows = turned(targets[:, 1:3], jacobian) if draw.flows else None
    images = _varied(images, draw, generator).contiguous(memory_format=channels_last(len(patch)))
    return Batch(images, targets[:, 0].round().long(), flows, targets[:, -1] if draw.boundaries else None)


def _places(draw: Draw, patch: Sequence[int], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the position of each pixel of a patch in its window, and its derivative.

    The position is (batch, *patch, axes) for ``grid_sample``; the derivative of a position by a pixel, axis by axis, is
    (batch, axes, axes, *patch or 1). The centre of a patch is half a pixel before the window's middle pixel, so that
    rotations by 90 degrees and flips map pixels to pixels.
    """
    device, axes, window = generator.device, len(patch), draw.images.shape[2:]
    matrix = torch.from_numpy(draw.matrix).to(device)
    steps = [torch.arange(edge, device=device, dtype=torch.float32) - (edge - 1) / 2 for edge in patch]
    offsets = torch.stack(torch.meshgrid(*steps, indexing="ij"))
    places = torch.einsum("bij,j...->bi...", matrix, offsets)
    jacobian = matrix.reshape(*matrix.shape, *(1,) * axes)
    if draw.bent.any():
        bend = _bend(draw, patch, generator)
        by_y, by_x = torch.gradient(bend, dim=(-2, -1))
        places = places + bend
        jacobian = jacobian + torch.stack([by_y, by_x], dim=2)
    shares = [2 / (edge - 1) * (places[:, axis] + (edge // 2 - 0.5)) - 1 for axis, edge in enumerate(window)]
    return torch.stack(shares[::-1], dim=-1), jacobian


def _bend(draw: Draw, patch: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Return a smooth random displacement in the plane in pixels, (batch, 2, y, x).

    References
    ----------
    Simard et al., ICDAR 2003; ``torchvision.transforms.v2.ElasticTransform``, which uses one field for all images
    and the global random generator.
    """
    shape = (len(draw.bent), 2, *patch)
    noise = torch.rand(shape, generator=generator, device=generator.device) * 2 - 1
    kernel = min(int(8 * _ELASTIC_SIGMA) | 1, min(patch) - 1 | 1)
    smooth: torch.Tensor = noise
    for size in ([kernel, 1], [1, kernel]):  # one axis at a time takes a thirtieth of the time
        smooth = gaussian_blur(smooth, size, [_ELASTIC_SIGMA, _ELASTIC_SIGMA])
    smooth = smooth * (_ELASTIC_STD / smooth.std().clamp(min=1e-9))
    bent = torch.from_numpy(draw.bent).to(generator.device)
    return smooth.clamp(-ELASTIC_REACH, ELASTIC_REACH) * bent[:, None, None, None]


def turned(flows: torch.Tensor, jacobian: torch.Tensor) -> torch.Tensor:
    """Transform flows that were resampled from other positions to vectors of the patch.

    Flows are directions of a gradient, of heat in an object. With T'(o) = T(p(o)) the gradient of T' is J^T grad T
    at p(o), J being the derivative of p; its length is 5 again, or 0.

    Parameters
    ----------
    flows : (batch, 2, y, x) float32
    jacobian : (batch, 2, 2, 1 or y, 1 or x) float32, derivative of position y and x by pixel y and x

    Returns
    -------
    torch.Tensor
        (batch, 2, y, x) float32.
    """
    dy, dx = flows.unbind(1)
    moved_y, moved_x = (jacobian[:, 0, axis] * dy + jacobian[:, 1, axis] * dx for axis in range(2))
    # `hypot`, since the norm over an axis other than the last takes ten times as long.
    scale = FLOW_LENGTH / torch.hypot(moved_y, moved_x).clamp(min=1e-12)
    return torch.stack([moved_y * scale, moved_x * scale], dim=1)


def _varied(images: torch.Tensor, draw: Draw, generator: torch.Generator) -> torch.Tensor:
    """Vary intensities in the order of an acquisition, relative to each image's own range of intensities.

    Defocus, illumination and photons come before gamma and contrast, the camera's noise after them.
    """
    low, high, gamma, contrast, noise = (
        torch.from_numpy(values).to(images.device).reshape(len(images), -1, *(1,) * (images.ndim - 2))
        for values in (draw.low, draw.high, draw.gamma, draw.contrast, draw.noise)
    )
    spread = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    relative = (images - low) / spread
    if draw.imaging is not None:
        relative = _exposed(relative, draw.imaging, generator)
    relative = relative.sign() * relative.abs() ** gamma * contrast
    if draw.imaging is not None:
        relative = relative + torch.from_numpy(draw.imaging.offset).to(images.device).reshape(gamma.shape)
    grain = torch.randn(images.shape, generator=generator, device=images.device)
    relative = relative + noise * grain
    if draw.imaging is not None:
        relative = cut_out(relative, draw.imaging.cutout, generator)
    return low + (high - low) * relative


def _exposed(relative: torch.Tensor, imaging: Imaging, generator: torch.Generator) -> torch.Tensor:
    """Return what arrives at the camera: out of focus, unevenly lit, as a number of photons."""
    relative = shaded(blurred(relative, imaging.blur), imaging.shading, generator)
    return with_photon_noise(relative, imaging.photons, generator)
