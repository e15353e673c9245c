"""Cheap members, and windows of planes for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import TileSize, Window, tile_shape
from chorus.pipeline.core.outputs import Activation, Outputs, classes_of, flows_of
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.inference.engine import PlaneWindow
from chorus.pipeline.inference.posterior_builder import InferenceSettings, Precision

CPU = torch.device("cpu")


def outputs_of(
    classes: int, activation: Activation = "softmax", *, multilabel: bool = False, flows: bool = False
) -> Outputs:
    """Of an ensemble with so many probability maps, and flows after them."""
    width = classes if multilabel else classes - (activation == "sigmoid")
    given = classes_of([str(k) for k in range(classes)], activation, width=width)
    return Outputs((given, flows_of()) if flows else (given,))


def settings_of(
    activation: Activation = "softmax",
    multilabel: bool = False,
    classes: int = 2,
    tile: TileSize = 32,
    augmentations: tuple[str, ...] = ("identity",),
    batch: int = 1,
    *,
    precision: Precision = "fp32",
    flows: bool = False,
    effort: EffortBound | None = None,
) -> InferenceSettings:
    """For members that give classes, and flows after them."""
    outputs = outputs_of(classes, activation, multilabel=multilabel, flows=flows)
    return InferenceSettings(outputs, multilabel, tile_shape(tile), augmentations, batch, precision, effort)


class Filter:
    """A cheap member that looks at neighbours and is not symmetric: one random 5 x 5 convolution."""

    activation = None

    def __init__(self, seed: int, outputs: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._weights = torch.randn((outputs, 1, 5, 5), generator=generator)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(tiles, self._weights, padding=2)

    def parameters_bytes(self) -> int:
        return self._weights.numel() * 4


def plane_window(image: NDArray[np.float32], grid: Grid, target: Window) -> PlaneWindow:
    """Only what `target` needs is handed over, so that reading too little shows."""
    needed = grid.needed(target)
    return PlaneWindow(np.ascontiguousarray(image[:, needed.y.slice, needed.x.slice]), needed, grid)


def assert_same_bytes(a: Posterior, b: Posterior) -> None:
    ours, theirs = arrays_of(a), arrays_of(b)
    assert ours.keys() == theirs.keys()
    for name, left in ours.items():
        right = theirs[name]
        assert (left.dtype, left.shape) == (right.dtype, right.shape), name
        assert left.tobytes() == right.tobytes(), name


def arrays_of(posterior: Posterior) -> dict[str, NDArray[Any]]:
    """All arrays of a posterior, (..., y, x), by name."""
    labels = {"labels": posterior.labels, "masks": posterior.masks, "member_masks": posterior.member_masks}
    return dict(posterior.fields) | labels


def posterior_of(arrays: Mapping[str, NDArray[Any]]) -> Posterior:
    """The posterior of such arrays."""
    return Posterior(
        fields={name: array for name, array in arrays.items() if name in FIELDS},
        labels=arrays["labels"],
        masks=arrays["masks"],
        member_masks=arrays["member_masks"],
    )


def noise(shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
