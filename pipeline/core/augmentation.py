"""Test-time augmentations: the symmetries of the square, forward on a tile and backward on a member's outputs.

What else happens to vectors, rays and affinities is in `chorus.pipeline.core.restoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from chorus.pipeline.core.outputs import CLASSES, Foreground, Output, Outputs, Role
from chorus.pipeline.core.restoring import Turn, refusal, restored
from chorus.pipeline.core.sample_sums import Sample

Transform = Callable[[torch.Tensor], torch.Tensor]
_AS_IT_IS = ((0, 1), (1, 1))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One symmetry of the square, acting on the last two axes (y, x) of a tensor of scalars.

    ``backward(forward(x))`` is `x`, bit for bit: only positions change.

    Attributes
    ----------
    turn : for each of dy and dx in the original orientation, the component of the augmented tile that it is, and its
        sign, see `chorus.pipeline.core.restoring`
    """

    name: str
    forward: Transform
    backward: Transform
    turn: Turn

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


def refused(outputs: Outputs, names: tuple[str, ...]) -> str:
    """Return why one of these augmentations cannot be used with the members' outputs, in a sentence; empty if all can.

    Parameters
    ----------
    names : of augmentations
    """
    for name in names:
        for output in outputs:
            if reason := refusal(output, AUGMENTATIONS[name].turn):
                return f"augmentation {name} cannot be used with {output.role.name}: {reason}"
    return ""


def plain_augmentation(augmentations: tuple[str, ...]) -> int:
    """Return the index of the augmentation that encoder features are computed on, and that is drawn first.

    This is `identity`, or the first augmentation if `identity` is not used.
    """
    return augmentations.index("identity") if "identity" in augmentations else 0
