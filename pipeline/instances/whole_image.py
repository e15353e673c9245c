"""Flows of a label image, and the label image that flows lead to, for one plane in memory.

This is for training's validation and for evaluation. Objects depend a little on where the plane is cut: Cellpose
samples flows by the array's own size and removes objects by their share of it. Results that do not depend on the
cut, for planes of any size, need another way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.instances.dynamics import directions
from chorus.pipeline.members.cellpose_network import import_cellpose
from chorus.pipeline.members.contract import FLOW_LENGTH

# Steps of Euler's method, as `CellposeModel.eval` takes for objects of 30 pixels.
_STEPS = 200


def flows_of(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Flows towards the centres of objects, (2, y, x) float32: dy and dx of vectors of length 5, background zero.

    The gradient of heat that diffuses within each object from its centre.

    Parameters
    ----------
    labels : (y, x) of any integer type, 0 for background; it is not changed

    Raises
    ------
    RefusedError
        where Cellpose is not installed

    References
    ----------
    Stringer et al., Nature Methods 2021 (Cellpose); ``cellpose.dynamics.labels_to_flows``.
    """
    # A copy, since Cellpose renumbers in place.
    one = np.array(labels, dtype=np.int64, order="C")
    found = import_cellpose("dynamics").labels_to_flows([one], device=torch.device("cpu"))[0]
    result: NDArray[np.float32] = np.float32(FLOW_LENGTH) * found[2:4].astype(np.float32)
    return result


def label_image(
    foreground: NDArray[np.float32],
    flows: NDArray[np.float32],
    *,
    minimum_size: int = 15,
    flow_error: float | None = None,
) -> NDArray[np.int32]:
    """Objects of one whole plane by Cellpose's own dynamics: (y, x) int32, 0 for background.

    Pixels that are more likely foreground than not follow the flows; those that meet are an object. An object of more
    than 0.4 of the plane is removed, as Cellpose does.

    Parameters
    ----------
    foreground : (y, x) float32, probability 0 to 1
    flows : (2, y, x) float32, dy and dx; only their direction counts
    minimum_size : objects of fewer pixels are removed
    flow_error : objects whose own flows differ from `flows` by more, in the mean square of unit vectors, are removed;
        None keeps all. Cellpose's 0.4 suits its own large networks: of the small ones of `nuclei-fluo` it takes many
        right objects away (AP at 0.5 on validation images 0.77 to 0.81 with it, 0.84 to 0.86 without).

    Raises
    ------
    RefusedError
        where Cellpose is not installed

    References
    ----------
    Stringer et al., Nature Methods 2021 (Cellpose); ``cellpose.dynamics.compute_masks``.
    """
    # The threshold is only compared with, so that a probability of 0.5 does for a logit of 0.
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
