"""Running sums of the samples of one role, and the fields that follow from them.

Every role keeps two sums: of its values, and of what their spread follows from. All are added element by element in
float32 by operations that round alike at every position of an array, so that a tile has the same bits in every batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from chorus.pipeline.core.field import Field
from chorus.pipeline.core.fields import (
    AFFINITY,
    AFFINITY_VARIANCE,
    ALEATORIC,
    BOUNDARIES,
    BOUNDARY_ALEATORIC,
    BOUNDARY_EPISTEMIC,
    DISTANCE_VARIANCE,
    DISTANCES,
    EPISTEMIC,
    FLOW,
    FLOW_VARIANCE,
    PROBABILITY,
    RAY,
    RAY_VARIATION,
    VALUE,
    VALUE_VARIANCE,
)
from chorus.pipeline.core.outputs import AFFINITIES, BOUNDARY, CLASSES, DISTANCE, FLOWS, RAYS, VALUES, Role

_SHORTEST_RADIUS = 1e-3
"""Mean length of rays below which their coefficient of variation is taken relative to this length, in pixels."""


@dataclass
class RoleSums(ABC):
    """Sums of the samples of a role.

    Attributes
    ----------
    total : (batch, channels, *spatial) float32, sum of the values
    spread : (batch, any, *spatial) float32, see each kind of sums
    """

    total: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def zeros(cls, batch: int, channels: int, spatial: Sequence[int], device: torch.device) -> RoleSums:
        """Return empty sums of `batch` tiles."""
        total = torch.zeros((batch, channels, *spatial), device=device)
        return cls(total, torch.zeros_like(total))

    @abstractmethod
    def add(self, values: torch.Tensor, before: int) -> None:
        """Add one sample.

        Parameters
        ----------
        values : (batch, channels, *spatial) float32
        before : number of samples that were added before
        """

    def plus(self, other: RoleSums, samples: tuple[int, int]) -> RoleSums:
        """Return the sums of the samples of both, `samples` of this and of the other."""
        return type(self)(self.total + other.total, self.spread + other.spread)

    @abstractmethod
    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return the fields that follow from so many samples, (batch, channels, *spatial) float32 each."""


class ClassSums(RoleSums):
    """Of class probabilities p; `spread` is (batch, 1, *spatial), the sum over samples and classes of p squared.

    `total` is added to by `chorus.pipeline.core.sample_sums.SampleSums`, a member at a time.
    """

    @classmethod
    def zeros(cls, batch: int, channels: int, spatial: Sequence[int], device: torch.device) -> RoleSums:
        """See `RoleSums.zeros`."""
        total = torch.zeros((batch, channels, *spatial), device=device)
        return cls(total, torch.zeros((batch, 1, *spatial), device=device))

    def add(self, values: torch.Tensor, before: int) -> None:
        """See `RoleSums.add`."""
        for square in (values * values).unbind(dim=1):
            self.spread += square[:, None]

    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return probability, epistemic and aleatoric variance.

        References
        ----------
        Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 1, 3 and 4, after Kwon et al.,
        Computational Statistics & Data Analysis 142:106816 (2020): aleatoric is the mean of p - p^2, epistemic the
        mean of p^2 less the square of the mean; both averaged over the classes.
        """
        mean, mean_of_squares = self.total / samples, self.spread / samples
        classes = mean.shape[1]
        total, square_of_mean = _sum(mean), _sum(mean * mean)
        epistemic = ((mean_of_squares - square_of_mean) / classes).clamp_(min=0)
        aleatoric = ((total - mean_of_squares) / classes).clamp_(min=0)
        return {PROBABILITY: mean, EPISTEMIC: epistemic, ALEATORIC: aleatoric}


class BoundarySums(RoleSums):
    """Of a boundary's probability p; `spread` is the sum of p squared. Its variances are those of a class."""

    def add(self, values: torch.Tensor, before: int) -> None:
        """See `RoleSums.add`."""
        self.total += values
        self.spread += values * values

    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return probability, epistemic and aleatoric variance; see `ClassSums.statistics`."""
        mean, mean_of_squares = self.total / samples, self.spread / samples
        epistemic = (mean_of_squares - mean * mean).clamp_(min=0)
        return {
            BOUNDARIES: mean,
            BOUNDARY_EPISTEMIC: epistemic,
            BOUNDARY_ALEATORIC: (mean - mean_of_squares).clamp_(min=0),
        }


class FlowSums(RoleSums):
    """Of flows; `spread` is the sum of their `unit_vectors`."""

    def add(self, values: torch.Tensor, before: int) -> None:
        """See `RoleSums.add`."""
        self.total += values
        self.spread += unit_vectors(values)

    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return mean flow and circular variance.

        References
        ----------
        Mardia & Jupp, Directional Statistics (2000), section 2.3: 1 less the length of the mean of the unit vectors.
        """
        variance = (1 - _length(self.spread / samples)).clamp_(min=0)
        return {FLOW: self.total / samples, FLOW_VARIANCE: variance}


class MomentSums(RoleSums):
    """Of any values; `spread` is the sum of squared deviations from their mean, which loses no digits to large means.

    References
    ----------
    Welford, Technometrics 4:419 (1962); of two sets of samples: Chan et al., The American Statistician 37:242 (1983).
    """

    def add(self, values: torch.Tensor, before: int) -> None:
        """See `RoleSums.add`."""
        from_old = values - self.total / before if before else torch.zeros_like(values)
        self.total += values
        self.spread += from_old * (values - self.total / (before + 1))

    def plus(self, other: RoleSums, samples: tuple[int, int]) -> RoleSums:
        """See `RoleSums.plus`."""
        own, others = samples
        apart = other.total / others - self.total / own
        between = apart * apart * (own * others / (own + others))
        return type(self)(self.total + other.total, self.spread + other.spread + between)

    def moments(self, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance between samples, (batch, channels, *spatial) each."""
        return self.total / samples, (self.spread / samples).clamp_(min=0)


class DistanceSums(MomentSums):
    """Of distances."""

    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return mean and variance per channel."""
        mean, variance = self.moments(samples)
        return {DISTANCES: mean, DISTANCE_VARIANCE: variance}


class ValueSums(MomentSums):
    """Of any values."""

    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return mean and variance per channel."""
        mean, variance = self.moments(samples)
        return {VALUE: mean, VALUE_VARIANCE: variance}


class AffinitySums(MomentSums):
    """Of affinities."""

    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return mean per channel, and the variance averaged over the channels."""
        mean, variance = self.moments(samples)
        return {AFFINITY: mean, AFFINITY_VARIANCE: _sum(variance) / variance.shape[1]}


class RaySums(MomentSums):
    """Of rays."""

    def statistics(self, samples: int) -> dict[Field, torch.Tensor]:
        """Return mean per ray, and the coefficient of variation of all rays.

        It is the root of the variance, averaged over the rays, divided by their mean length.
        """
        mean, variance = self.moments(samples)
        rays = mean.shape[1]
        radius = (_sum(mean) / rays).clamp_(min=_SHORTEST_RADIUS)
        return {RAY: mean, RAY_VARIATION: (_sum(variance) / rays).sqrt_() / radius}


SUMS: dict[Role, type[RoleSums]] = {
    CLASSES: ClassSums,
    FLOWS: FlowSums,
    RAYS: RaySums,
    DISTANCE: DistanceSums,
    BOUNDARY: BoundarySums,
    AFFINITIES: AffinitySums,
    VALUES: ValueSums,
}
"""The sums that are kept of each role of a member's output."""


def unit_vectors(flows: torch.Tensor) -> torch.Tensor:
    """Return the directions of flows as unit vectors.

    Flows are first divided by their largest component, so that no square overflows or underflows.

    Parameters
    ----------
    flows : (batch, axes, *spatial) float32

    Returns
    -------
    torch.Tensor
        Same shape; zero where a flow is zero or not finite.
    """
    scaled = flows / reduce(torch.maximum, flows.abs().unbind(dim=1))[:, None]
    # Where the largest component is zero, infinite or NaN, a part of the quotient is NaN, and so is its length.
    return scaled.div_(_length(scaled)).nan_to_num_(nan=0.0)


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Add the channels one after the other, (batch, 1, *spatial) of (batch, channels, *spatial)."""
    return reduce(torch.add, values.unbind(dim=1))[:, None]


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """Return (batch, 1, *spatial) of (batch, axes, *spatial), by operations that round alike at every position."""
    return _sum(vectors * vectors).sqrt_()
