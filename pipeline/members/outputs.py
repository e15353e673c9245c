"""``outputs`` of ``ensemble.yaml``: what members answer with, in the order of their channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from chorus.pipeline.core.outputs import (
    AFFINITIES,
    BOUNDARY,
    CLASSES,
    DISTANCE,
    RAYS,
    VALUES,
    Foreground,
    Output,
    flows_of,
    rays_of,
)
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.io.inside import fault

Sigmoid = Literal["sigmoid", "none"]


def _plain(name: str) -> str:
    if fault(f"x/{name.strip('/')}") or len(name.encode()) > 200:
        raise ValueError("give a plain name, of at most 200 bytes")
    return name


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("two channels have the same name")
    return names


def _rising(extent: tuple[float, float]) -> tuple[float, float]:
    if not (math.isfinite(extent[0]) and math.isfinite(extent[1]) and extent[0] < extent[1]):
        raise ValueError("give the least value, then the greatest")
    return extent


Name = Annotated[str, Field(min_length=1), AfterValidator(_plain)]
Names = Annotated[list[Name], Field(min_length=1, max_length=512), AfterValidator(_unique)]
Extent = Annotated[tuple[float, float], AfterValidator(_rising)]


class ClassesOutput(Strict):
    """Class probabilities, by the ensemble's `activation`."""

    role: Literal["classes"] = "classes"


class FlowsOutput(Strict):
    """Flows (dy, dx), of volumes (dz, dy, dx), to the middle of a pixel's object, 5 times the unit vector.

    Attributes
    ----------
    lengths : whether objects of a plane follow flows with their lengths, as in Cellpose, or their directions alone
    """

    role: Literal["flows"] = "flows"
    lengths: bool = Field(default=False, exclude_if=lambda value: not value)


class StarThresholds(Strict):
    """How objects are made of rays; it does not change what members answer.

    Attributes
    ----------
    prob_threshold : a point is a candidate for an object where it is more probable than this
    nms_threshold : share of the smaller of two polygons from which the more probable one suppresses the other
    """

    prob_threshold: float = Field(default=0.5, ge=0, le=1)
    nms_threshold: float = Field(default=0.4, ge=0, le=1)


class RaysOutput(Strict):
    """Distances in pixels to the outline of a pixel's object, along rays.

    Attributes
    ----------
    channels : number of rays, evenly spread from x towards y as in StarDist
    directions : of the rays instead, unit vectors along the axes of the image (y, x)
    range : of their lengths, for display
    grid : distance in pixels (y, x) of the points that may be objects; by default that of the ensemble's `answer`
    objects : how objects are made
    """

    role: Literal["rays"]
    channels: int | None = Field(default=None, ge=3, le=512)
    directions: list[list[float]] | None = Field(default=None, min_length=3, max_length=512)
    range: Extent = (0.0, 64.0)
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    objects: StarThresholds = StarThresholds()

    @model_validator(mode="after")
    def _one_of_both(self) -> RaysOutput:
        if (self.channels is None) == (self.directions is None):
            raise ValueError("give channels, the number of rays, or their directions")
        if any(abs(math.hypot(*one) - 1) > 1e-3 for one in self.directions or ()):
            raise ValueError("directions: give unit vectors")
        return self

    def output(self) -> Output:
        """Return what it declares."""
        if self.directions is None:
            return rays_of(self.channels or 0, self.range)
        vectors = tuple(tuple(one) for one in self.directions)
        return Output(RAYS, tuple(map(str, range(len(vectors)))), extent=self.range, unit="px", vectors=vectors)


class Inside(Strict):
    """Where the foreground is, by a distance map: above or below a threshold.

    Attributes
    ----------
    channel : name of the distance
    """

    channel: str
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Inside:
        if (self.above is None) == (self.below is None):
            raise ValueError("give above or below")
        return self


class DistanceOutput(Strict):
    """Distances to the centre or the boundary of a pixel's object.

    Attributes
    ----------
    names : of the channels
    activation : that turns what members say into distances
    range : of the distances, for display
    unit : of the distances, for display, e.g. px; empty where they are relative to the object
    foreground : how the foreground follows from them, where members give no classes
    """

    role: Literal["distance"]
    names: Names
    activation: Sigmoid = "none"
    range: Extent = (0.0, 1.0)
    unit: str = ""
    foreground: Inside | None = None

    @model_validator(mode="after")
    def _known(self) -> DistanceOutput:
        if self.foreground is not None and self.foreground.channel not in self.names:
            raise ValueError(f"foreground: {self.foreground.channel} is not among the names")
        return self

    def output(self) -> Output:
        """Return what it declares."""
        return Output(DISTANCE, tuple(self.names), self.activation, self.range, self.unit)

    def inside(self) -> Foreground | None:
        """Return how the foreground follows from it; None if it does not say so."""
        if (rule := self.foreground) is None:
            return None
        channels = (self.names.index(rule.channel),)
        if rule.above is not None:
            return Foreground(DISTANCE, channels, "above", rule.above)
        return Foreground(DISTANCE, channels, "below", rule.below or 0.0)


class BoundaryOutput(Strict):
    """Probability of a boundary between objects.

    Where members give no classes, the foreground's probability is 1 less that of a boundary.

    Attributes
    ----------
    activation : that turns what members say into a probability
    """

    role: Literal["boundary"]
    activation: Sigmoid = "sigmoid"

    def output(self) -> Output:
        """Return what it declares."""
        return Output(BOUNDARY, ("boundary",), self.activation)

    def inside(self) -> Foreground | None:
        """Return how the foreground follows from it."""
        return Foreground(BOUNDARY, (0,), "complement")


class AffinitiesOutput(Strict):
    """Probabilities that the pixel and the one at an offset are of the same object.

    Where members give no classes, the foreground's probability is the mean over the shortest offsets.

    Attributes
    ----------
    offsets : in pixels along the axes of the image (y, x), one per channel
    activation : that turns what members say into probabilities
    """

    role: Literal["affinities"]
    offsets: list[list[int]] = Field(min_length=1, max_length=512)
    activation: Sigmoid = "sigmoid"

    @model_validator(mode="after")
    def _different(self) -> AffinitiesOutput:
        if len({tuple(one) for one in self.offsets}) != len(self.offsets) or not all(map(any, self.offsets)):
            raise ValueError("offsets: give each once, and none that is zero")
        return self

    def output(self) -> Output:
        """Return what it declares."""
        offsets = tuple(tuple(map(float, one)) for one in self.offsets)
        names = tuple(",".join(map(str, one)) for one in self.offsets)
        return Output(AFFINITIES, names, self.activation, vectors=offsets)

    def inside(self) -> Foreground | None:
        """Return how the foreground follows from it."""
        lengths = [sum(step * step for step in one) for one in self.offsets]
        shortest = tuple(index for index, length in enumerate(lengths) if length == min(lengths))
        return Foreground(AFFINITIES, shortest, "same")


class ValuesOutput(Strict):
    """Any values, such as restored intensities.

    Attributes
    ----------
    names : of the channels
    range : of the values, for display
    unit : of the values, for display
    vector : whether the channels are the components (y, x) of a vector, which turns with the image
    """

    role: Literal["values"]
    names: Names
    range: Extent
    unit: str = ""
    vector: bool = False

    def output(self) -> Output:
        """Return what it declares."""
        return Output(VALUES, tuple(self.names), extent=self.range, unit=self.unit, turns=self.vector)


OutputEntry = Annotated[
    ClassesOutput | FlowsOutput | RaysOutput | DistanceOutput | BoundaryOutput | AffinitiesOutput | ValuesOutput,
    Field(discriminator="role"),
]


def without_flows(content: Any) -> Any:
    """Return the content of ``ensemble.yaml`` with ``flows: true`` written as the outputs that it stands for."""
    if not isinstance(content, dict) or "flows" not in content:
        return content
    rest = {key: value for key, value in content.items() if key != "flows"}
    if "outputs" in content:
        raise ValueError("flows: name them among the outputs, as `{role: flows}`, and leave flows out")
    if content["flows"] not in (True, False):
        raise ValueError("flows: give true or false")
    return rest | {"outputs": [{"role": "classes"}, {"role": "flows"}]} if content["flows"] else rest


def declared(entries: Sequence[Any], classes: Output, axes: str) -> tuple[Output, ...]:
    """Return the outputs that are declared, with classes that follow from another one where none are among them.

    Parameters
    ----------
    entries : of ``ensemble.yaml``
    classes : as members give them, if they do
    axes : of the image, such as ``yx``

    Raises
    ------
    ValueError
        If the outputs do not fit together.
    """
    if len({entry.role for entry in entries}) != len(entries):
        raise ValueError("outputs: give each role at most once")
    outputs = tuple(_output(entry, classes, axes) for entry in entries)
    for output in outputs:
        count = len(output.names) if output.symmetry == "vector" else len(axes)
        if count != len(axes) or any(len(vector) != len(axes) for vector in output.vectors):
            raise ValueError(f"outputs: {output.role.name}: vectors have {len(axes)} components ({', '.join(axes)})")
    if any(output.role == CLASSES for output in outputs):
        return outputs
    rules = [rule for kind in _BY_RANK for entry in entries if isinstance(entry, kind) if (rule := entry.inside())]
    if not rules:
        raise ValueError(
            "outputs: no foreground follows from them; add `{role: classes}`, or `foreground` to the distances"
        )
    if len(classes.names) != 2:
        raise ValueError("outputs: without `{role: classes}` there is one class beside the background")
    return (Output(CLASSES, classes.names, foreground=rules[0]), *outputs)


def _output(entry: Any, classes: Output, axes: str) -> Output:
    if isinstance(entry, FlowsOutput):
        return flows_of(axes)
    output: Output = classes if isinstance(entry, ClassesOutput) else entry.output()
    return output


_BY_RANK = (DistanceOutput, BoundaryOutput, AffinitiesOutput)
"""Outputs that the foreground may follow from, the first that declares it."""
