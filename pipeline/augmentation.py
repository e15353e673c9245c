"""Test-time augmentations: the symmetries of the square, forward on a tile and back on what a member says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One symmetry of the square, acting on the last two axes (y, x) of a tensor of scalars.

    ``backward(forward(x))`` is `x`, bit for bit: only positions change.
    """

    name: str
    forward: Transform
    backward: Transform


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _flip(*axes: int) -> Transform:
    return lambda x: x.flip(axes)


def _rotate(quarters: int) -> Transform:
    return lambda x: torch.rot90(x, quarters, (-2, -1))


def _transpose(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-2, -1)


def _antitranspose(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-2, -1).flip((-2, -1))


AUGMENTATIONS: dict[str, Augmentation] = {
    a.name: a
    for a in (
        Augmentation("identity", _identity, _identity),
        Augmentation("hflip", _flip(-1), _flip(-1)),
        Augmentation("vflip", _flip(-2), _flip(-2)),
        Augmentation("hvflip", _flip(-2, -1), _flip(-2, -1)),
        Augmentation("rot90", _rotate(1), _rotate(3)),
        Augmentation("rot270", _rotate(3), _rotate(1)),
        Augmentation("transpose", _transpose, _transpose),
        Augmentation("antitranspose", _antitranspose, _antitranspose),
    )
}
"""The eight symmetries of the square (D4) by name; ``hvflip`` is the rotation by 180 degrees."""

FLIPS = ("identity", "hflip", "vflip", "hvflip")
D4 = tuple(AUGMENTATIONS)
