"""The posterior of a window as arrays, and the masks of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.field import Field
from chorus.pipeline.core.fields import ALEATORIC, EPISTEMIC, FLOW, FLOW_VARIANCE, PROBABILITY, SAMPLES, UNCERTAINTY


@dataclass(frozen=True)
class Posterior:
    """The posterior over a window of a plane.

    Attributes
    ----------
    fields : by name, (channels, y, x) float32 of each field that is blended and that the run has, see
        `chorus.pipeline.core.fields`; probabilities of foreground classes only if the ensemble is multi-label
    labels : (y, x) uint8 or uint16, the predicted class, 0 is background
    masks : (y, x) unsigned, equal to `labels`; if the ensemble is multi-label, bit k - 1 is set for class k
    member_masks : (members, y, x) unsigned, the same of each member's own mean
    """

    fields: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.unsignedinteger]
    masks: NDArray[np.unsignedinteger]
    member_masks: NDArray[np.unsignedinteger]

    def maps(self, field: Field) -> NDArray[np.float32]:
        """Return the maps of a field.

        Parameters
        ----------
        field : any; one that is a sum of others is computed here

        Returns
        -------
        NDArray[np.float32]
            (channels, y, x); (0, y, x) if the run does not have the field.
        """
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
        """(classes, y, x) float32, 0 to 1, mean over members and augmentations."""
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
        """(1, y, x) float32, disagreement of members and augmentations about the direction of the flow.

        Circular variance: 0 if all directions are equal, 1 if they have no common direction; (0, y, x) if the run has
        no flows.
        """
        return self.maps(FLOW_VARIANCE)

    @property
    def flows(self) -> NDArray[np.float32]:
        """(2, y, x) float32, mean flow (dy, dx) towards the middle of a pixel's object.

        About 5 times the unit vector, as in Cellpose; (0, y, x) if the run has no flows.
        """
        return self.maps(FLOW)

    @property
    def samples(self) -> NDArray[np.float32]:
        """(1, y, x) float32, number of samples of the tiles that cover a pixel, blended with their weights.

        (0, y, x) with full effort, where all tiles get the same number.
        """
        return self.maps(SAMPLES)


def mask_of(masks: NDArray[np.unsignedinteger], label: int, *, multilabel: bool) -> NDArray[np.bool_]:
    """Return the mask of one foreground class.

    Parameters
    ----------
    masks : unsigned, any shape, as returned by `class_masks`
    label : of the class, 1, 2, ...
    multilabel : whether classes are independent of each other

    Returns
    -------
    NDArray[np.bool_]
        Same shape.
    """
    if multilabel:
        return np.asarray((masks >> (label - 1)) & 1 == 1)
    return np.asarray(masks == label)
