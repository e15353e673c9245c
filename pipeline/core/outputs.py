"""What a member answers: outputs of several roles, one after the other along its channels.

A `Role` is a kind of quantity that a pixel has, and how it changes under a flip or turn. An `Output` is a role as one
ensemble has it: its channels, and what is needed to use and to display them. `Outputs` are all of an ensemble, in the
order of the member's channels. What is kept of them is declared in `chorus.pipeline.core.fields`. This module imports
nothing heavy, since the command line imports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Symmetry = Literal["scalar", "vector", "rays", "offsets"]
"""How values change under a flip or turn: scalars only move, components of vectors are exchanged or negated, rays
change places, and channels of offsets change places and are shifted by their offset where it turns around."""

Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of quantity that a pixel has.

    Attributes
    ----------
    name : the plural in sentences, such as "its members give no flows"
    symmetry : see `Symmetry`; outputs for an augmented tile are restored by it
    """

    name: str
    symmetry: Symmetry = "scalar"


CLASSES = Role("classes")
"""Probabilities; a channel per class that has one."""
FLOWS = Role("flows", "vector")
"""Vectors to the middle of the pixel's object; a channel per axis of the image, ``yx`` or ``zyx``."""
RAYS = Role("rays", "rays")
"""Distances to the outline of the pixel's object along fixed directions; a channel per direction."""
DISTANCE = Role("distances")
"""Distances to the centre or the boundary of the pixel's object; a channel each."""
BOUNDARY = Role("boundary")
"""Probability that the pixel lies on a boundary between objects; one channel."""
AFFINITIES = Role("affinities", "offsets")
"""Probability that the pixel and the one at an offset are of the same object; a channel per offset."""
VALUES = Role("values")
"""Any quantities, such as restored intensities; a channel each."""
EFFORT = Role("samples")
"""Number of samples that adaptive effort drew; no output of a member; one channel."""

ROLES = {role.name: role for role in (CLASSES, FLOWS, RAYS, DISTANCE, BOUNDARY, AFFINITIES, VALUES)}
"""Roles that a member's output can have, by name."""


@dataclass(frozen=True, slots=True)
class Foreground:
    """How the probability of the foreground follows from another output, where members give no classes.

    Attributes
    ----------
    role : of that output
    channels : of that output, averaged
    rule : ``same``: the average; ``complement``: 1 less the average; ``above``, ``below``: 1 where the average is above
        or below `threshold`, else 0, so that its mean over samples is the share of samples that say so
    """

    role: Role
    channels: tuple[int, ...]
    rule: Literal["same", "complement", "above", "below"]
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class Output:
    """An output of the members of an ensemble.

    Attributes
    ----------
    role : what its channels hold
    names : of its channels
    activation : that turns what members say into its values; softmax only for classes
    extent : the least and the greatest value, for display
    unit : of its values, for display; empty for plain numbers
    vectors : per channel, along the axes of the image (y, x): unit vectors of rays, offsets of affinities in pixels
    turns : whether the channels of `VALUES` are the components of a vector
    foreground : of classes that no member gives: what they follow from
    width : channels that it has in a member's answer; None for one per name. Members may leave out the background
    """

    role: Role
    names: tuple[str, ...]
    activation: Activation = "none"
    extent: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    vectors: tuple[tuple[float, ...], ...] = ()
    turns: bool = False
    foreground: Foreground | None = None
    width: int | None = None

    @property
    def channels(self) -> int:
        """Number of channels that it has in a member's answer."""
        if self.foreground is not None or self.role == EFFORT:
            return 0
        return len(self.names) if self.width is None else self.width

    @property
    def symmetry(self) -> Symmetry:
        """How its channels change under a flip or turn."""
        return "vector" if self.turns else self.role.symmetry

    @property
    def answered(self) -> bool:
        """Whether it is a part of what members answer."""
        return self.channels > 0


@dataclass(frozen=True, slots=True)
class Outputs:
    """All outputs of the members of an ensemble, at most one of each role.

    Attributes
    ----------
    each : in the order of the member's channels
    """

    each: tuple[Output, ...]

    def __iter__(self) -> Iterator[Output]:
        return iter(self.each)

    def __contains__(self, role: object) -> bool:
        return any(output.role == role for output in self.each)

    def __getitem__(self, role: Role) -> Output:
        return next(output for output in self.each if output.role == role)

    @property
    def channels(self) -> int:
        """Number of channels of a member's answer."""
        return sum(output.channels for output in self.each)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles that members answer with, in the order of the channels."""
        return tuple(output.role for output in self.each if output.answered)

    def slices(self, channels: int) -> dict[Role, slice]:
        """Return the channels of each output in an answer of so many channels.

        Classes take all that the others leave: a member may give the background, or leave it out.
        """
        slices, start, more = {}, 0, channels - self.channels
        for output in self.each:
            if output.answered:
                count = output.channels + (more if output.role == CLASSES else 0)
                slices[output.role] = slice(start, start + count)
                start += count
        return slices

    def along(self, axes: str) -> Outputs:
        """Return these outputs with flows along other axes."""
        return Outputs(tuple(flows_of(axes) if output.role == FLOWS else output for output in self.each))

    def sampled(self, samples: int) -> Outputs:
        """Return these outputs and the number of samples of a pixel, which is at most `samples`."""
        return Outputs((*self.each, Output(EFFORT, ("samples",), extent=(0, samples), unit="samples")))


def classes_of(names: Sequence[str], activation: Activation = "softmax", *, width: int | None = None) -> Output:
    """Return the output of classes with these names, which have a probability map each; `width`: see `Output`."""
    return Output(CLASSES, tuple(names), activation, width=width)


def flows_of(axes: str = "yx") -> Output:
    """Return the output of flows along these axes.

    Members are trained on 5 times the unit vector; predicted flows are a little longer in places.
    """
    return Output(FLOWS, tuple(axes), extent=(-6, 6))


def rays_of(count: int, extent: tuple[float, float]) -> Output:
    """Return the output of `count` rays in a plane, evenly spread as in StarDist.

    Ray k ends at y = py + d sin(2 pi k / count), x = px + d cos(2 pi k / count).
    """
    angles = [2 * math.pi * k / count for k in range(count)]
    vectors = tuple((math.sin(angle), math.cos(angle)) for angle in angles)
    return Output(RAYS, tuple(map(str, range(count))), extent=extent, unit="px", vectors=vectors)
