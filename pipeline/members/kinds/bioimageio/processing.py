"""Pre- and postprocessing of BioImage.IO packages: theirs, done on tiles as if on the whole image.

What bioimageio.core 0.11 does (`bioimageio/core/proc_ops.py`, `proc_setup.py`) is done here: every statistic is of the
raw sample, before the first operation, so that it is Chorus's to measure over the image or the data set; each operation
is then a function of the pixel. As core does, a package's own `eps` is passed over. Two differences: percentiles of a
data set are those of all its pixels (core averages the images' percentiles), and those that `clip` asks for are linear
between neighbours (core takes one of the two).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.outputs import FLOWS, RAYS, Role
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.kinds.bioimageio.operations import (
    Binarised,
    Cast,
    Clipped,
    Given,
    Linear,
    Measured,
    Operation,
    Per,
    Pooled,
    Ranged,
    Squashed,
    Standardised,
    Value,
    Values,
    column,
)
from chorus.pipeline.preprocessing.preparation import ALL_CHANNELS, Measure, Statistics

_EPSILON = 1e-6
"""What bioimageio.core adds to divisors, whatever the package declares: test outputs are made with it."""
_OF_OBJECTS = {"cellpose_flow_dynamics": FLOWS, "stardist_postprocessing": RAYS}
"""Steps that make objects, and of what."""
_ROWS = 256
"""Rows that are prepared at once, so that float64, which bioimageio.core computes in too, takes little memory."""


@dataclass(frozen=True)
class PackagePreparation:
    """Preprocessing of a package as a `chorus.pipeline.preprocessing.preparation.Preparation`.

    Attributes
    ----------
    tensors : per input tensor its number of channels and the operations on them; the ensemble's channels go to
        the tensors in their order
    """

    tensors: tuple[tuple[int, tuple[Operation, ...]], ...]

    @property
    def channels(self) -> int:
        """Number of channels of all input tensors together."""
        return sum(count for count, _ in self.tensors)

    @property
    def measures(self) -> frozenset[Measure]:
        """All measures that the operations need."""
        values = [v for _, operations in self.tensors for operation in operations for v in operation.values()]
        return frozenset().union(*(value.measures for value in values))

    def apply(self, raw: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """Prepare pixels, each pixel by itself.

        Parameters
        ----------
        raw : (channels, y, x) of any real dtype
        statistics : all of `measures`

        Returns
        -------
        NDArray[np.float32]
            (channels, y, x).
        """
        result = np.empty(raw.shape, np.float32)
        start = 0
        for count, operations in self.tensors:
            for row in range(0, raw.shape[1], _ROWS):
                part = (slice(start, start + count), slice(row, row + _ROWS))
                pixels = raw[part].astype(np.float64)
                for operation in operations:
                    pixels = operation(pixels, statistics)
                result[part] = pixels
            start += count
        return result


@dataclass(frozen=True)
class _Tensor:
    """An input or output tensor while its operations are read."""

    where: str
    channels: tuple[int, ...]
    total: int
    references: Mapping[str, tuple[int, ...]]

    def refuse(self, operation: str, reason: str) -> RefusedError:
        return RefusedError(f"{self.where}: {operation} {reason}")

    def given(self, number: float | Sequence[float], kwargs: Any, operation: str) -> Values:
        """Read the numbers of an operation, one per channel."""
        axis = getattr(kwargs, "axis", None)
        if axis is not None and str(axis) != "channel":
            raise self.refuse(
                operation, f"along axis {axis} depends on the place of a pixel, so that it cannot be done on tiles"
            )
        numbers = list(number) if isinstance(number, Sequence) else [number]
        numbers = numbers * len(self.channels) if len(numbers) == 1 else numbers
        if len(numbers) != len(self.channels):
            raise self.refuse(operation, f"has {len(numbers)} values for {len(self.channels)} channels; mend the rdf")
        return tuple(Given(float(n)) for n in numbers)

    def statistic(
        self, kind: Literal["mean", "std", "percentile"], kwargs: Any, operation: str, percent: float = 0.0
    ) -> Values:
        """Name a measured statistic per channel; the same for all if channels are measured together."""
        axes = None if kwargs.axes is None else {str(a) for a in kwargs.axes}
        if axes is not None and not {"y", "x"} <= axes:
            raise self.refuse(
                operation,
                f"over {', '.join(sorted(axes))} has statistics for each row or pixel; Chorus has them of whole images",
            )
        channels = self.references.get(str(getattr(kwargs, "reference_tensor", None)), self.channels)
        per: Per = "dataset" if axes is None or "batch" in axes else "image"
        if axes is None or "channel" in axes:
            return (self._together(kind, channels, percent, per, operation),) * len(self.channels)
        if len(channels) not in (1, len(self.channels)):
            raise self.refuse(operation, "refers to a tensor with another number of channels; mend the rdf")
        own: Values = tuple(Measured(Measure(kind, c, percent, per)) for c in channels)
        return own if len(own) == len(self.channels) else own * len(self.channels)

    def _together(
        self,
        kind: Literal["mean", "std", "percentile"],
        channels: tuple[int, ...],
        percent: float,
        per: Per,
        operation: str,
    ) -> Value:
        if len(channels) in (1, self.total):
            return Measured(Measure(kind, channels[0] if len(channels) == 1 else ALL_CHANNELS, percent, per))
        if kind == "percentile":
            raise self.refuse(
                operation, "needs percentiles of some of the channels together; Chorus has them of one or of all"
            )
        return Pooled(kind, channels, per)


def preparation(where: str, inputs: Sequence[Any]) -> PackagePreparation:
    """Build the preprocessing of a package's input tensors (`bioimageio.spec.model.v0_5.InputTensorDescr`).

    Raises
    ------
    RefusedError
        Where an operation is no function of the pixel and of statistics of the image.
    """
    total, references, count = sum(channel_count(tensor) for tensor in inputs), {}, 0
    for tensor in inputs:
        references[str(tensor.id)] = tuple(range(count, count + channel_count(tensor)))
        count += channel_count(tensor)
    tensors = []
    for tensor in inputs:
        own = _Tensor(f"{where}: input {tensor.id}", references[str(tensor.id)], total, references)
        tensors.append((len(own.channels), tuple(_read(operation, own) for operation in tensor.preprocessing)))
    return PackagePreparation(tuple(tensors))


def channel_count(tensor: Any) -> int:
    """Return the number of channels of a tensor description; 1 if it has no channel axis."""
    return next((len(axis.channel_names) for axis in tensor.axes if axis.type == "channel"), 1)


def _read(operation: Any, own: _Tensor) -> Operation:
    name, kwargs = str(operation.id), getattr(operation, "kwargs", None)
    match name:
        case "ensure_dtype":
            return Cast(str(operation.kwargs.dtype))
        case "scale_linear":
            return Linear(
                own.given(operation.kwargs.gain, kwargs, name), own.given(operation.kwargs.offset, kwargs, name)
            )
        case "fixed_zero_mean_unit_variance":
            mean, std = (own.given(value, kwargs, name) for value in (operation.kwargs.mean, operation.kwargs.std))
            return Standardised(mean, std, _EPSILON)
        case "zero_mean_unit_variance":
            mean, std = own.statistic("mean", kwargs, name), own.statistic("std", kwargs, name)
            return Standardised(mean, std, _EPSILON)
        case "scale_range":
            ends = (operation.kwargs.min_percentile, operation.kwargs.max_percentile)
            low, high = (own.statistic("percentile", kwargs, name, percent) for percent in ends)
            return Ranged(low, high, _EPSILON)
        case "clip":
            low, high = (
                _bound(own, kwargs, getattr(kwargs, end), getattr(kwargs, f"{end}_percentile"))
                for end in ("min", "max")
            )
            return Clipped(low, high)
        case "binarize":
            return Binarised(own.given(operation.kwargs.threshold, kwargs, name))
        case "sigmoid" | "softmax":
            axis = getattr(kwargs, "axis", "channel")
            if str(axis) != "channel":
                raise own.refuse(name, f"over {axis} looks beyond a pixel, so that it cannot be done on tiles")
            return Squashed(name == "softmax")
    raise own.refuse(name, "cannot be done pixel by pixel, so that tiles would differ from the whole image")


def _bound(own: _Tensor, kwargs: Any, number: float | None, percent: float | None) -> Values:
    if number is not None:
        return own.given(number, None, "clip")
    return () if percent is None else own.statistic("percentile", kwargs, "clip", percent)


Step: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def raw_output(output: Any) -> Role | None:
    """Return the role of what an output tensor's channels hold before its postprocessing makes objects of them."""
    steps = (_OF_OBJECTS.get(str(step.id)) for step in output.postprocessing)
    return next((role for role in steps if role is not None), None)


def postprocessing(where: str, output: Any, roles: Collection[Role] = ()) -> Step:
    """Build an output tensor's (`v0_5.OutputTensorDescr`) postprocessing of a tile's (channels, y, x) float32.

    With flows or rays among `roles` the output is taken as it is before objects are made of these, as Chorus does
    itself.

    Raises
    ------
    RefusedError
        Where an operation needs statistics of the output or joins pixels: both would differ from tile to tile.
    """
    count = channel_count(output)
    own = _Tensor(f"{where}: output {output.id}", tuple(range(count)), count, {})
    steps: list[Step] = []
    for operation in output.postprocessing:
        name = str(operation.id)
        if name in _OF_OBJECTS and _OF_OBJECTS[name] in roles:
            break
        if name in ("custom", "stardist_postprocessing", "cellpose_flow_dynamics"):
            raise own.refuse(name, "joins pixels to objects or runs code of its own; choose another `output`")
        read = None if name == "scale_mean_variance" else _read(operation, own)
        if read is None or any(value.measures for value in read.values()):
            raise own.refuse(name, "needs statistics of the whole output, which are known only after the last tile")
        steps.append(_on_torch(read))
    return lambda pixels: _run(steps, pixels)


def _run(steps: Sequence[Step], pixels: torch.Tensor) -> torch.Tensor:
    for step in steps:
        pixels = step(pixels)
    return pixels


def _on_torch(operation: Operation) -> Step:
    """Translate an operation for (channels, y, x) float32 tensors on any device."""

    def numbers(values: Values, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(column(values, {}), dtype=like.dtype, device=like.device)

    match operation:
        case Cast(dtype=dtype):
            return lambda x: x if dtype.startswith("float") else x.to(getattr(torch, dtype)).to(torch.float32)
        case Linear(gain=gain, offset=offset):
            return lambda x: x * numbers(gain, x) + numbers(offset, x)
        case Standardised(mean=mean, std=std, eps=eps):
            return lambda x: (x - numbers(mean, x)) / (numbers(std, x) + eps)
        case Clipped(low=low, high=high):
            return lambda x: x.clamp(numbers(low, x) if low else None, numbers(high, x) if high else None)
        case Binarised(threshold=threshold):
            return lambda x: (x > numbers(threshold, x)).to(torch.float32)
        case Squashed(softmax=True):
            return lambda x: x.softmax(dim=0)
        case Squashed():
            return torch.sigmoid
    raise TypeError(f"no postprocessing: {operation}")
