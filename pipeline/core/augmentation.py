"""Test-time augmentations: the symmetries of the square, forward on a tile and backward on a member's outputs.

Scalars only move; the vectors (dy, dx) of flows are also rotated or reflected.
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
    turn : for each of dy and dx in the original orientation, the component of the augmented tile that it is, and its
        sign
    """

    name: str
    forward: Transform
    backward: Transform
    turn: tuple[tuple[int, int], tuple[int, int]]

    def restore(self, x: torch.Tensor, role: Role) -> torch.Tensor:
        """Transform a member's output for an augmented tile back to the original orientation.

        Parameters
        ----------
        x : (..., channels, y, x) of any dtype
        role : what the channels hold; its symmetry decides whether they are scalars or vectors

        Returns
        -------
        torch.Tensor
            Same shape and dtype.
        """
        return self.vectors_backward(x) if role.symmetry == "vector" else self.backward(x)

    def vectors_backward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform vectors of an augmented tile back to the original orientation.

        Parameters
        ----------
        x : (..., 2, y, x), components dy and dx

        Returns
        -------
        torch.Tensor
            Same shape and dtype.
        """
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
"""Probability, (tiles, classes, y, x), and flows, (tiles, 2 or 0, y, x), in the original orientation."""


def sample_of(augmentation: Augmentation, probability: torch.Tensor, flows: torch.Tensor) -> Sample:
    """Transform a member's outputs for augmented tiles back to the original orientation.

    Parameters
    ----------
    augmentation : that the tiles had
    probability : (tiles, classes, y, x) float32
    flows : (tiles, 2, y, x) float32, or (tiles, 0, y, x)

    Returns
    -------
    Sample
        Probability and flows, of the same shapes.
    """
    return augmentation.restore(probability, CLASSES), augmentation.restore(flows, FLOWS) if flows.shape[1] else flows


def plain_augmentation(augmentations: tuple[str, ...]) -> int:
    """Return the index of the augmentation that encoder features are computed on, and that is drawn first.

    This is `identity`, or the first augmentation if `identity` is not used.
    """
    return augmentations.index("identity") if "identity" in augmentations else 0
