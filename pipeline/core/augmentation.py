"""Test-time augmentations: the symmetries of the square, forward on a tile and back on what a member says of it.

Scalars only move; the vectors (dy, dx) of flows turn as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from chorus.pipeline.core.fields import CLASSES, FLOWS, Role

Transform = Callable[[torch.Tensor], torch.Tensor]
_AS_IT_IS = ((0, 1), (1, 1))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One symmetry of the square, acting on the last two axes (y, x) of a tensor of scalars.

    ``backward(forward(x))`` is `x`, bit for bit: only positions change.

    Attributes
    ----------
    turn : for each of dy and dx in the plane, which component it is in the augmented tile and with which sign
    """

    name: str
    forward: Transform
    backward: Transform
    turn: tuple[tuple[int, int], tuple[int, int]]

    def restore(self, x: torch.Tensor, role: Role) -> torch.Tensor:
        """What a member said of a role for an augmented tile, (..., channels, y, x), in the plane."""
        return self.vectors_backward(x) if role.symmetry == "vector" else self.backward(x)

    def vectors_backward(self, x: torch.Tensor) -> torch.Tensor:
        """Vectors (..., 2, y, x) that a member gave for an augmented tile, in the plane."""
        moved = self.backward(x)
        if self.turn == _AS_IT_IS:
            return moved
        parts = [(moved[..., component, :, :], sign) for component, sign in self.turn]
        return torch.stack([part if sign > 0 else -part for part, sign in parts], dim=-3)


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
        Augmentation("identity", _identity, _identity, _AS_IT_IS),
        Augmentation("hflip", _flip(-1), _flip(-1), ((0, 1), (1, -1))),
        Augmentation("vflip", _flip(-2), _flip(-2), ((0, -1), (1, 1))),
        Augmentation("hvflip", _flip(-2, -1), _flip(-2, -1), ((0, -1), (1, -1))),
        Augmentation("rot90", _rotate(1), _rotate(3), ((1, 1), (0, -1))),
        Augmentation("rot270", _rotate(3), _rotate(1), ((1, -1), (0, 1))),
        Augmentation("transpose", _transpose, _transpose, ((1, 1), (0, 1))),
        Augmentation("antitranspose", _antitranspose, _antitranspose, ((1, -1), (0, -1))),
    )
}
"""The eight symmetries of the square (D4) by name; ``hvflip`` is the rotation by 180 degrees."""

FLIPS = ("identity", "hflip", "vflip", "hvflip")
D4 = tuple(AUGMENTATIONS)


Sample = tuple[torch.Tensor, torch.Tensor]
"""Probability, (tiles, classes, y, x), and flows, (tiles, 2 or 0, y, x), in the plane."""


def sample_of(augmentation: Augmentation, probability: torch.Tensor, flows: torch.Tensor) -> Sample:
    """What a member said of augmented tiles, in the plane."""
    return augmentation.restore(probability, CLASSES), augmentation.restore(flows, FLOWS) if flows.shape[1] else flows


def plain_augmentation(augmentations: tuple[str, ...]) -> int:
    """Which one tells a tile's features, and is drawn first: the tile as it is, or the first where that is not used."""
    return augmentations.index("identity") if "identity" in augmentations else 0
