"""What an ensemble says per pixel: sample moments become probability, epistemic and aleatoric variance, labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.fields import (
    ALEATORIC,
    EPISTEMIC,
    FIELDS,
    FLOW,
    FLOW_VARIANCE,
    PROBABILITY,
    SAMPLES,
    UNCERTAINTY,
    Field,
)


@dataclass(frozen=True)
class Posterior:
    """The posterior over a window of a plane.

    Attributes
    ----------
    fields : by name, (channels, y, x) float32 of each field that is blended and that the run has, see
        `chorus.pipeline.core.fields`; foreground classes only where the ensemble is multi-label
    labels : (y, x) uint8 or uint16, the predicted class, 0 is background
    masks : (y, x) what `labels` says, or bit k - 1 set for class k where the ensemble is multi-label
    member_masks : (members, y, x) the same of each member's own mean
    """

    fields: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.unsignedinteger]
    masks: NDArray[np.unsignedinteger]
    member_masks: NDArray[np.unsignedinteger]

    def maps(self, field: Field) -> NDArray[np.float32]:
        """The maps of a field, (channels, y, x) float32; (0, y, x) where the run has none."""
        if field.name in self.fields:
            return self.fields[field.name]
        if not field.parts or not all(name in self.fields for name in field.parts):
            return np.empty((0, *self.labels.shape), np.float32)
        first, *more = (self.fields[name] for name in field.parts)
        total = first
        for part in more:
            total = total + part
        return total

    def _single(self, field: Field) -> NDArray[np.float32]:
        only: NDArray[np.float32] = self.maps(field)[0]
        return only

    @property
    def probability(self) -> NDArray[np.float32]:
        """(classes, y, x) float32, mean over members and augmentations."""
        return self.maps(PROBABILITY)

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Predictive variance, epistemic + aleatoric, (y, x) float32, 0 to 0.25."""
        return self._single(UNCERTAINTY)

    @property
    def epistemic(self) -> NDArray[np.float32]:
        """(y, x) float32, variance between samples, averaged over the classes, 0 to 0.25."""
        return self._single(EPISTEMIC)

    @property
    def aleatoric(self) -> NDArray[np.float32]:
        """(y, x) float32, variance within samples, averaged over the classes, 0 to 0.25."""
        return self._single(ALEATORIC)

    @property
    def flow_variance(self) -> NDArray[np.float32]:
        """(1, y, x) float32, how far members and augmentations disagree about the direction of the flow.

        0 all say the same, 1 they say nothing in common; (0, y, x) where the ensemble gives none.
        """
        return self.maps(FLOW_VARIANCE)

    @property
    def flows(self) -> NDArray[np.float32]:
        """(2, y, x) float32, mean flow (dy, dx) towards the middle of a pixel's object.

        About 5 times the unit vector, as Cellpose has it; (0, y, x) where the ensemble gives none.
        """
        return self.maps(FLOW)

    @property
    def samples(self) -> NDArray[np.float32]:
        """(1, y, x) float32, how many samples the tiles got that a pixel is the mean of, weighted as they are.

        (0, y, x) with full effort, where all get the same.
        """
        return self.maps(SAMPLES)


@dataclass
class SampleSums:
    """Running sums of a batch of tiles over members m and augmentations t, members in order.

    Attributes
    ----------
    probability : (batch, classes, y, x) float32, sum of p_tm
    squares : (batch, y, x) float32, sum over samples and classes of p_tm squared
    flows : (batch, 2, y, x) float32, sum of the flows; (batch, 0, y, x) where there are none
    directions : of the same shape, sum of their `unit_vectors`
    samples : how many were added
    """

    probability: torch.Tensor
    squares: torch.Tensor
    flows: torch.Tensor
    directions: torch.Tensor
    samples: int = 0

    @classmethod
    def zeros(cls, batch: int, classes: int, tile: int, device: torch.device, *, flows: bool = False) -> SampleSums:
        vectors = (batch, 2 if flows else 0, tile, tile)
        return cls(
            torch.zeros((batch, classes, tile, tile), device=device),
            torch.zeros((batch, tile, tile), device=device),
            torch.zeros(vectors, device=device),
            torch.zeros(vectors, device=device),
        )

    def add_member(self, samples: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Add a member's samples, in the order of the augmentations; returns its own mean, (batch, classes, y, x).

        Parameters
        ----------
        samples : probability (batch, classes, y, x) and flows (batch, 2, y, x), or (batch, 0, y, x), of each
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
        """Add a sample's flows, (batch, 2, y, x)."""
        self.flows += flows
        self.directions += unit_vectors(flows)

    def statistics(self) -> dict[Field, torch.Tensor]:
        """Of each field that is blended and follows from the sums, (batch, channels, y, x) float32.

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
        found = {PROBABILITY: mean, EPISTEMIC: epistemic[:, None], ALEATORIC: aleatoric[:, None]}
        if self.flows.shape[1]:
            direction = self.directions / self.samples
            variance = (1 - _length(direction)).clamp_(min=0)
            found |= {FLOW: self.flows / self.samples, FLOW_VARIANCE: variance}
        return found

    def maps(self) -> torch.Tensor:
        """`statistics` as one tensor, (batch, channels, y, x), see `chorus.pipeline.core.fields.FieldLayout`."""
        return stacked(self.statistics())


def stacked(maps: Mapping[Field, torch.Tensor]) -> torch.Tensor:
    """Maps (batch, channels, y, x) of some fields as one tensor, in the order of the fields."""
    return torch.cat([maps[field] for field in FIELDS.values() if field in maps], dim=1)


def unit_vectors(flows: torch.Tensor) -> torch.Tensor:
    """Directions of flows (batch, 2, y, x) float32; zero where a flow is zero or not finite.

    Flows are first divided by their larger component, so that no square is too large or too small for a float.
    """
    larger = torch.maximum(flows[:, :1].abs(), flows[:, 1:].abs())
    scaled = flows / larger
    # Where the larger component is zero, infinite or NaN, a part of the quotient is NaN, and so is its length.
    return scaled.div_(_length(scaled)).nan_to_num_(nan=0.0)


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """(batch, 1, y, x) of (batch, 2, y, x), by operations that round alike wherever a number stands in its array."""
    squares = vectors * vectors
    return (squares[:, :1] + squares[:, 1:]).sqrt_()


def predicted_labels(probability: torch.Tensor, *, multilabel: bool) -> torch.Tensor:
    """Predicted class per pixel of (classes, ..., y, x) probabilities, (..., y, x) int32 (deepflash2, Eq. 2).

    The argmax, the first class where several are equal. Multi-label: the most probable foreground class where it
    reaches 0.5, background elsewhere.
    """
    best = probability[0]
    label = torch.full_like(best, 1 if multilabel else 0, dtype=torch.int32)
    for k in range(1, probability.shape[0]):
        better = probability[k] > best
        best = torch.where(better, probability[k], best)
        label = torch.where(better, k + 1 if multilabel else k, label)
    if multilabel:
        label = torch.where(best >= 0.5, label, 0)
    return label


def class_masks(probability: torch.Tensor, *, multilabel: bool) -> torch.Tensor:
    """Which classes a pixel belongs to, shaped as `predicted_labels`: the label, or a bit per class if multi-label."""
    if not multilabel:
        return predicted_labels(probability, multilabel=False)
    masks = torch.zeros_like(probability[0], dtype=torch.int32)
    for k in range(probability.shape[0]):
        masks |= (probability[k] >= 0.5).to(torch.int32) << k
    return masks


def mask_of(masks: NDArray[np.unsignedinteger], label: int, *, multilabel: bool) -> NDArray[np.bool_]:
    """Where foreground class `label` (1, 2, ...) is, out of what `class_masks` gave."""
    if multilabel:
        return np.asarray((masks >> (label - 1)) & 1 == 1)
    return np.asarray(masks == label)
