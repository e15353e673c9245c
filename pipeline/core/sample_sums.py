"""Sums over samples, and what they say per pixel: probability, epistemic and aleatoric variance, and flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from chorus.pipeline.core.fields import (
    ALEATORIC,
    EPISTEMIC,
    FIELDS,
    FLOW,
    FLOW_VARIANCE,
    PROBABILITY,
    Field,
)


@dataclass
class SampleSums:
    """Running sums of a batch of tiles over members m and augmentations t, in the order of the members.

    Attributes
    ----------
    probability : (batch, classes, y, x) float32, sum of p_tm
    squares : (batch, y, x) float32, sum over samples and classes of p_tm squared
    flows : (batch, 2, y, x) float32, sum of the flows; (batch, 0, y, x) if there are none
    directions : of the same shape, sum of their `unit_vectors`
    samples : number of samples added
    """

    probability: torch.Tensor
    squares: torch.Tensor
    flows: torch.Tensor
    directions: torch.Tensor
    samples: int = 0

    @classmethod
    def zeros(cls, batch: int, classes: int, tile: int, device: torch.device, *, flows: bool = False) -> SampleSums:
        """Return empty sums.

        Parameters
        ----------
        batch, classes : number of tiles and of probability maps
        tile : edge of a tile in pixels
        device : that holds the sums
        flows : whether the run has flows
        """
        vectors = (batch, 2 if flows else 0, tile, tile)
        return cls(
            torch.zeros((batch, classes, tile, tile), device=device),
            torch.zeros((batch, tile, tile), device=device),
            torch.zeros(vectors, device=device),
            torch.zeros(vectors, device=device),
        )

    def add_member(self, samples: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Add a member's samples, in the order of the augmentations.

        Parameters
        ----------
        samples : per augmentation, probability (batch, classes, y, x) and flows (batch, 2, y, x) or (batch, 0, y, x),
            float32

        Returns
        -------
        torch.Tensor
            The member's own mean probability, (batch, classes, y, x) float32.
        """
        total, count = torch.zeros_like(self.probability), 0
        for probability, flows in samples:
            total += probability
            for square in (probability * probability).unbind(dim=1):
                self.squares += square
            if self.flows.shape[1]:
                self.add_flows(flows)
            count += 1
        self.probability += total
        self.samples += count
        return total / count

    def add_flows(self, flows: torch.Tensor) -> None:
        """Add the flows of one sample.

        Parameters
        ----------
        flows : (batch, 2, y, x) float32
        """
        self.flows += flows
        self.directions += unit_vectors(flows)

    def statistics(self) -> dict[Field, torch.Tensor]:
        """Return each field that is blended and follows from the sums.

        Returns
        -------
        dict
            By field, (batch, channels, y, x) float32.

        References
        ----------
        Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 1, 3 and 4, after Kwon et al.,
        Computational Statistics & Data Analysis 142:106816 (2020): aleatoric is the mean of p - p^2, epistemic the
        mean of p^2 less the square of the mean; both averaged over the classes. Circular variance: Mardia & Jupp,
        Directional Statistics (2000), section 2.3: 1 less the length of the mean of the unit vectors.
        """
        classes = self.probability.shape[1]
        mean = self.probability / self.samples
        mean_of_squares = self.squares / self.samples
        total = mean[:, 0]
        square_of_mean = mean[:, 0] * mean[:, 0]
        for k in range(1, classes):
            total = total + mean[:, k]
            square_of_mean = square_of_mean + mean[:, k] * mean[:, k]
        epistemic = ((mean_of_squares - square_of_mean) / classes).clamp_(min=0)
        aleatoric = ((total - mean_of_squares) / classes).clamp_(min=0)
        maps = {PROBABILITY: mean, EPISTEMIC: epistemic[:, None], ALEATORIC: aleatoric[:, None]}
        if self.flows.shape[1]:
            direction = self.directions / self.samples
            variance = (1 - _length(direction)).clamp_(min=0)
            maps |= {FLOW: self.flows / self.samples, FLOW_VARIANCE: variance}
        return maps

    def maps(self) -> torch.Tensor:
        """Return `statistics` as one tensor.

        Returns
        -------
        torch.Tensor
            (batch, channels, y, x) float32, see `chorus.pipeline.core.fields.FieldLayout`.
        """
        return stacked(self.statistics())


def stacked(maps: Mapping[Field, torch.Tensor]) -> torch.Tensor:
    """Concatenate the maps of some fields, in the order of the fields.

    Parameters
    ----------
    maps : (batch, channels, y, x) per field, of one dtype

    Returns
    -------
    torch.Tensor
        (batch, all channels, y, x).
    """
    return torch.cat([maps[field] for field in FIELDS.values() if field in maps], dim=1)


def unit_vectors(flows: torch.Tensor) -> torch.Tensor:
    """Return the directions of flows as unit vectors.

    Flows are first divided by their larger component, so that no square overflows or underflows.

    Parameters
    ----------
    flows : (batch, 2, y, x) float32

    Returns
    -------
    torch.Tensor
        Same shape; zero where a flow is zero or not finite.
    """
    larger = torch.maximum(flows[:, :1].abs(), flows[:, 1:].abs())
    scaled = flows / larger
    # Where the larger component is zero, infinite or NaN, a part of the quotient is NaN, and so is its length.
    return scaled.div_(_length(scaled)).nan_to_num_(nan=0.0)


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """Return (batch, 1, y, x) of (batch, 2, y, x), by operations that round alike at every position of an array."""
    squares = vectors * vectors
    return (squares[:, :1] + squares[:, 1:]).sqrt_()
