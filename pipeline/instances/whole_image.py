"""Flows of a label image, and the label images that flows or boundaries lead to, in memory.

This is for validation during training and for evaluation. Objects of flows depend slightly on the crop: Cellpose
samples flows by the array's own size and removes objects by their share of it. `chorus.pipeline.instances.regions`
gives results that do not depend on the crop, for planes of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.instances.flows.dynamics import directions
from chorus.pipeline.instances.maps.objects import map_objects
from chorus.pipeline.instances.maps.rules import MapSettings
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.members.contract import FLOW_LENGTH
from chorus.pipeline.members.kinds.cellpose.network import import_cellpose

# Steps of Euler's method, as `CellposeModel.eval` takes for objects of 30 pixels.
_STEPS = 200


def flows_of(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Compute flows towards the centres of objects: the gradient of heat that diffuses from an object's centre.

    Parameters
    ----------
    labels : (y, x) of any integer dtype, 0 for background; it is not changed

    Returns
    -------
    NDArray[np.float32]
        (2, y, x), dy and dx of vectors of length 5, zero in the background.

    Raises
    ------
    RefusedError
        If Cellpose is not installed.

    References
    ----------
    Stringer et al., Nature Methods 2021 (Cellpose); ``cellpose.dynamics.labels_to_flows``.
    """
    # A copy, since Cellpose renumbers in place.
    one = np.array(labels, dtype=np.int64, order="C")
    flows = import_cellpose("dynamics").labels_to_flows([one], device=torch.device("cpu"))[0]
    result: NDArray[np.float32] = np.float32(FLOW_LENGTH) * flows[2:4].astype(np.float32)
    return result


def label_image(
    foreground: NDArray[np.float32],
    flows: NDArray[np.float32],
    *,
    minimum_size: int = 15,
    flow_error: float | None = None,
) -> NDArray[np.int32]:
    """Label the objects of one whole plane by Cellpose's own dynamics.

    Pixels that are more likely foreground than not follow the flows; pixels that meet form an object. An object of more
    than 0.4 of the plane is removed, as in Cellpose.

    Parameters
    ----------
    foreground : (y, x) float32, probability, 0 to 1
    flows : (2, y, x) float32, dy and dx; only their direction counts
    minimum_size : objects of fewer pixels are removed
    flow_error : objects whose own flows differ from `flows` by more, in the mean square of unit vectors, are removed;
        None keeps all. Cellpose's 0.4 suits its own large networks: with the small ones of `nuclei-fluo` it removes
        many correct objects (AP at 0.5 on validation images 0.77 to 0.81 with it, 0.84 to 0.86 without).

    Returns
    -------
    NDArray[np.int32]
        (y, x), 0 for background.

    Raises
    ------
    RefusedError
        If Cellpose is not installed.

    References
    ----------
    Stringer et al., Nature Methods 2021 (Cellpose); ``cellpose.dynamics.compute_masks``.
    """
    # The threshold is only used in a comparison, so a probability of 0.5 serves as a logit of 0.
    masks = import_cellpose("dynamics").compute_masks(
        FLOW_LENGTH * directions(flows),
        foreground,
        niter=_STEPS,
        cellprob_threshold=0.5,
        flow_threshold=flow_error,
        min_size=minimum_size,
        device=torch.device("cpu"),
    )
    result: NDArray[np.int32] = masks.astype(np.int32)
    return result


def boundary_label_image(
    foreground: NDArray[np.float32], boundaries: NDArray[np.float32], *, minimum_size: int = 15
) -> NDArray[np.int64]:
    """Label the objects of a plane or a volume by a watershed on their boundaries, with the settings' defaults.

    Parameters
    ----------
    foreground, boundaries : (y, x) or (z, y, x) float32, probabilities
    minimum_size : objects of fewer pixels are removed

    Returns
    -------
    NDArray[np.int64]
        Of their shape, 1 to n, 0 for background.
    """
    deep = (1,) * (3 - foreground.ndim)
    maps = _BoundaryMaps(foreground.reshape(deep + foreground.shape), boundaries.reshape(deep + boundaries.shape))
    settings = MapSettings("boundaries", minimum_size=minimum_size)
    planes, rows, columns = maps.foregrounds.shape
    names = map_objects(maps, settings.blocks((planes, rows, columns)), settings)
    known, numbers = np.unique(names, return_inverse=True)
    result: NDArray[np.int64] = numbers.reshape(foreground.shape) + int(known[0] != 0)
    return result


@dataclass(frozen=True)
class _BoundaryMaps:
    """See `chorus.pipeline.instances.maps.rules.Maps`; (z, y, x)."""

    foregrounds: NDArray[np.float32]
    ridges: NDArray[np.float32]

    def mask(self, box: Box) -> NDArray[np.bool_]:
        return self.foreground(box) > np.float32(0.5)

    def foreground(self, box: Box) -> NDArray[np.floating]:
        return self.foregrounds[box.z.slice, box.y.slice, box.x.slice]

    def boundaries(self, box: Box) -> NDArray[np.floating]:
        return self.ridges[box.z.slice, box.y.slice, box.x.slice]

    def distances(self, box: Box, to: Literal["centre", "boundary"]) -> NDArray[np.floating] | None:
        return None

    def affinities(self, box: Box) -> NDArray[np.floating]:
        raise ValueError("no affinities")
