"""Flows: how they turn with the augmentations, and how they lead from labels to the same labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from chorus.pipeline.core import outputs
from chorus.pipeline.core.augmentation import AUGMENTATIONS, D4
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.inference.engine import Engine, PlaneWindow
from chorus.pipeline.instances.whole_image import flows_of, label_image
from tests.support.engines import settings_of

CPU = torch.device("cpu")
YX = outputs.flows_of()


def smooth(seed: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    return (field / field.std()).astype(np.float32)


def forward(name: str, plane: NDArray[Any]) -> NDArray[Any]:
    return AUGMENTATIONS[name].forward(torch.from_numpy(plane)).numpy().copy()


def turned_back(name: str, vectors: NDArray[Any]) -> NDArray[Any]:
    return AUGMENTATIONS[name].restore(torch.from_numpy(vectors), YX).numpy()


# augmentation


@pytest.mark.parametrize("name", D4)
def test_the_gradient_of_an_augmented_field_turns_back_into_the_gradient_of_the_field(name: str) -> None:
    field = smooth(0, (48, 48))
    found = turned_back(name, np.stack(np.gradient(forward(name, field))))
    np.testing.assert_allclose(found, np.stack(np.gradient(field)), atol=1e-6)


@pytest.mark.parametrize("name", D4)
def test_cellposes_flows_of_augmented_labels_turn_back_into_those_of_the_labels(name: str) -> None:
    pytest.importorskip("cellpose")
    rows, columns = np.mgrid[:64, :64]
    labels = np.zeros((64, 64), np.int32)
    # Symmetric, so that their middle is the same pixel whichever way they lie.
    labels[(rows - 20) ** 2 / 150 + (columns - 18) ** 2 / 60 < 1] = 1
    labels[(rows - 45) ** 2 / 40 + (columns - 40) ** 2 / 200 < 1] = 2
    expected = flows_of(labels)
    found = turned_back(name, flows_of(forward(name, labels)))
    # Where heat is greatest its gradient has no direction.
    expected[:, [20, 45], [18, 40]] = found[:, [20, 45], [18, 40]] = 0
    assert np.abs(found - expected).max() < 0.01
    if name != "identity":
        # Only moved, not turned, they would be far off: the test can tell.
        moved = AUGMENTATIONS[name].backward(torch.from_numpy(flows_of(forward(name, labels)))).numpy()
        assert np.abs(moved - expected).max() > 5


def test_turning_back_keeps_leading_axes_apart() -> None:
    vectors = torch.randn((3, 2, 2, 9, 9), generator=torch.Generator().manual_seed(0))
    for name in D4:
        one = AUGMENTATIONS[name].restore
        assert torch.equal(one(vectors, YX)[1, 1], one(vectors[1, 1], YX))


class Gradient:
    """A member that is equivariant: its flows are the gradient of what it sees, its logit is what it sees."""

    activation = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        dy, dx = torch.gradient(tiles, dim=(2, 3))
        return torch.cat([tiles, dy, dx], dim=1)

    def parameters_bytes(self) -> int:
        return 0


def test_the_mean_flow_of_an_equivariant_member_is_its_plain_flow() -> None:
    field = smooth(1, (70, 83))
    grid = Grid.make(field.shape, 32, 0.5)
    whole = Window.of(0, 70, 0, 83)
    plane = PlaneWindow(field[None], whole, grid)
    plain = settings_of("sigmoid", False, 2, 32, ("identity",), 2, flows=True)
    once = Engine([Gradient()], plain, CPU).posterior(plane, whole)
    all_eight = Engine([Gradient()], replace(plain, augmentations=D4), CPU).posterior(plane, whole)
    np.testing.assert_allclose(all_eight.flows, once.flows, atol=1e-6)
    np.testing.assert_allclose(all_eight.probability, once.probability, atol=1e-6)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(all_eight.flow_variance[inside], 0, atol=1e-5)
    # Blending leaves them alone but for the edges of tiles, where the member sees one side only.
    assert np.abs(once.flows - np.stack(np.gradient(field)))[inside].max() < 0.1
    assert np.abs(once.flows).max() > 0.5


# labels and flows


@pytest.mark.parametrize(("seed", "quality"), [(0, "ordinary"), (1, "dense")])
def test_flows_of_labels_lead_back_to_the_same_objects(seed: int, quality: Any) -> None:
    metrics = pytest.importorskip("cellpose.metrics")
    _, labels = simulate_field(seed, (256, 300), quality)
    found = label_image((labels > 0).astype(np.float32), flows_of(labels))
    assert found.dtype == np.int32
    precision = metrics.average_precision([labels.astype(np.int32)], [found], threshold=[0.75])[0]
    assert precision.tolist() == [[1.0]]


def test_flows_are_5_long_in_objects_and_zero_beside_them() -> None:
    pytest.importorskip("cellpose")
    labels = simulate_field(2, (128, 160), "dense")[1] * np.uint16(7)  # ids need not be consecutive
    before = labels.copy()
    flows = flows_of(labels)
    assert (flows.shape, flows.dtype) == ((2, 128, 160), np.float32)
    assert np.array_equal(labels, before)
    length = np.hypot(*flows)
    assert (length[labels == 0] == 0).all()
    np.testing.assert_allclose(np.median(length[labels > 0]), 5, rtol=1e-5)
    assert not flows_of(np.zeros((20, 30), np.uint8)).any()


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    inside: NDArray[np.bool_] = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return inside


def test_small_objects_objects_that_contradict_their_flows_and_background_are_left_out() -> None:
    pytest.importorskip("cellpose")
    labels = np.zeros((96, 96), np.int32)
    for index, (centre, radius) in enumerate([((20, 20), 9), ((20, 70), 9), ((70, 20), 3)], start=1):
        labels[disc(labels.shape, centre, radius)] = index
    flows, foreground = flows_of(labels), 0.9 * (labels > 0).astype(np.float32)
    assert label_image(foreground, flows).max() == 3
    assert label_image(foreground, flows, minimum_size=40).max() == 2
    assert label_image(0.5 * foreground, flows).max() == 0  # none more likely than not
    rng = np.random.default_rng(0)
    flows[:, labels == 2] += rng.normal(0, 6, (2, int((labels == 2).sum()))).astype(np.float32)
    left = label_image(foreground, flows, flow_error=0.4)
    assert not left[labels == 2].any()
    assert left[[20, 70], [20, 20]].all()
    assert label_image(foreground, flows)[labels == 2].any()
