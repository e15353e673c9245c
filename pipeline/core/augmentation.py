"""Test-time augmentations, forward on a tile and backward on a member's outputs.

Tiles of planes have the eight symmetries of the square, tiles of volumes the same in their planes, each also with z
flipped.
What else happens to vectors, rays and affinities is in `chorus.pipeline.core.restoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from chorus.pipeline.core.geometry import Axes
from chorus.pipeline.core.outputs import CLASSES, Foreground, Output, Outputs, Role
from chorus.pipeline.core.restoring import Turn, refusal, restored
from chorus.pipeline.core.sample_sums import Sample

Transform = Callable[[torch.Tensor], torch.Tensor]
_AS_IT_IS = ((0, 1), (1, 1))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One symmetry, acting on the last two axes (y, x) of a tensor of scalars, or on the last three (z, y, x).

    ``backward(forward(x))`` is `x`, bit for bit: only positions change.

    Attributes
    ----------
    turn : for each of (dz,) dy and dx in the original orientation, the component of the augmented tile that it is, and
        its sign, see `chorus.pipeline.core.restoring`
    """

    name: str
    forward: Transform
    backward: Transform
    turn: Turn

    @property
    def exchanges(self) -> bool:
        """Whether y and x change places, so that a tile's planes must be square."""
        return self.turn[-1][0] != len(self.turn) - 1

    def restore(self, x: torch.Tensor, output: Output) -> torch.Tensor:
        """Transform a member's output for an augmented tile back to the original orientation.

        Parameters
        ----------
        x : (..., channels, *spatial) of any dtype
        output : what the channels hold; its symmetry decides what happens beside their positions

        Returns
        -------
        torch.Tensor
            Same shape and dtype.

        Raises
        ------
        ValueError
            If the output cannot be restored; see `refused`.
        """
        return restored(self.backward(x), output, self.turn)


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


def _of_volumes(one: Augmentation, *, flipped: bool) -> Augmentation:
    """Return an augmentation of planes for all planes of a volume, with or without z flipped."""
    turn = ((0, -1 if flipped else 1), *((component + 1, sign) for component, sign in one.turn))
    if not flipped:
        return replace(one, turn=turn)
    name = "zflip" if one.name == "identity" else f"z{one.name}"
    forward, backward = one.forward, one.backward
    return Augmentation(name, lambda x: forward(x).flip(-3), lambda x: backward(x.flip(-3)), turn)


VOLUME_AUGMENTATIONS: dict[str, Augmentation] = {
    one.name: one
    for flipped in (False, True)
    for one in (_of_volumes(each, flipped=flipped) for each in AUGMENTATIONS.values())
}
"""The symmetries of a volume's tiles by name: those of its planes, and the same with z flipped."""

VOLUME_FLIPS = (*FLIPS, "zflip", "zhflip", "zvflip", "zhvflip")


def augmentations_of(axes: Axes) -> dict[str, Augmentation]:
    """Return the augmentations of tiles with these axes, by name."""
    return AUGMENTATIONS if axes == "yx" else VOLUME_AUGMENTATIONS


def flips_of(axes: Axes) -> tuple[str, ...]:
    """Return the names of the flips of these axes, the identity first."""
    return FLIPS if axes == "yx" else VOLUME_FLIPS


def sample_of(augmentation: Augmentation, values: Mapping[Role, torch.Tensor], outputs: Outputs) -> Sample:
    """Transform a member's values for augmented tiles back to the original orientation.

    Parameters
    ----------
    augmentation : that the tiles had
    values : (tiles, channels, *spatial) float32 of each role that members answer with
    outputs : of the members

    Returns
    -------
    Sample
        Of every role, probabilities of classes included where they follow from another output.
    """
    sample = {one.role: augmentation.restore(values[one.role], one) for one in outputs if one.answered}
    foreground = outputs[CLASSES].foreground
    return sample if foreground is None else {CLASSES: probability_of(foreground, sample[foreground.role])} | sample


def probability_of(foreground: Foreground, values: torch.Tensor) -> torch.Tensor:
    """Return the probabilities of background and foreground that follow from another output.

    Parameters
    ----------
    values : (tiles, channels, *spatial) float32 of that output

    Returns
    -------
    torch.Tensor
        (tiles, 2, *spatial) float32, 0 to 1.
    """
    first, *more = (values[:, channel] for channel in foreground.channels)
    average = sum(more, first) / len(foreground.channels)
    if foreground.rule == "same":
        inside = average
    elif foreground.rule == "complement":
        inside = 1 - average
    elif foreground.rule == "above":
        inside = (average > foreground.threshold).to(values.dtype)
    else:
        inside = (average < foreground.threshold).to(values.dtype)
    return torch.stack([1 - inside, inside], dim=1)


def refused(outputs: Outputs, names: tuple[str, ...], axes: Axes = "yx") -> str:
    """Return why one of these augmentations cannot be used with the members' outputs, in a sentence; empty if all can.

    Parameters
    ----------
    names : of augmentations
    axes : of the tiles
    """
    known = augmentations_of(axes)
    for name in names:
        for output in outputs:
            if reason := refusal(output, known[name].turn):
                return f"augmentation {name} cannot be used with {output.role.name}: {reason}"
    return ""


def plain_augmentation(augmentations: tuple[str, ...]) -> int:
    """Return the index of the augmentation that encoder features are computed on, and that is drawn first.

    This is `identity`, or the first augmentation if `identity` is not used.
    """
    return augmentations.index("identity") if "identity" in augmentations else 0
