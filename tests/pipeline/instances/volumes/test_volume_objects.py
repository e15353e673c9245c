"""Objects of blocks: those of the volume, whatever the cut; against plain loops, Cellpose and drawn truth."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box
from chorus.pipeline.instances.volumes.regions import VolumeSettings, label_block
from tests.support.volumes import balls, cropped, flows_to_centres, objects_by_loops, tubes

SMALL = VolumeSettings(diameter=7.0, minimum_size=6)
Volume = tuple[NDArray[np.bool_], NDArray[np.float32]]


def by_blocks(volume: Volume, boxes: list[Box], chosen: VolumeSettings) -> tuple[NDArray[np.uint64], list[Box]]:
    """Names in the volume, and the crops that were read."""
    foreground = volume[0]
    names, read = np.full(foreground.shape, 2**63, np.uint64), []
    for box in boxes:
        found = label_block(lambda b: cropped(*volume, b, chosen.anisotropy), box, foreground.shape, chosen)
        names[box.z.slice, box.y.slice, box.x.slice] = found.names
        read.append(found.crop)
    return names, read


def blocks_of(shape: tuple[int, int, int], size: tuple[int, int, int]) -> list[Box]:
    grid = BlockGrid(shape, size)
    return [grid.box(index) for index in range(grid.count)]


def whole(volume: Volume, chosen: VolumeSettings) -> NDArray[np.uint64]:
    return by_blocks(volume, blocks_of(volume[0].shape, volume[0].shape), chosen)[0]


@st.composite
def volumes(draw: st.DrawFn, largest: int = 44) -> tuple[Volume, float]:
    """Touching, cut, nested and tiny balls, with flows that are right, noisy, NaN or nonsense; planes near or far."""
    shape = tuple(draw(st.integers(1, most)) for most in (largest // 2, largest, largest))
    anisotropy = draw(st.sampled_from([1.0, 1.0, 2.5, 0.6]))
    place = st.floats(-3, largest + 3)
    spheres = draw(st.lists(st.tuples(place, place, place, st.floats(0.5, 12)), max_size=25))
    labels = balls(shape, spheres, anisotropy)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    noise = draw(st.sampled_from([0.0, 0.5, 3.0]))
    flows = flows_to_centres(labels, anisotropy, noise=noise, seed=draw(st.integers(0, 99)))
    foreground = labels > 0
    if draw(st.booleans()):  # holes, voxels without an object, and flows that are none
        foreground ^= rng.random(shape) < 0.02
        flows[:, rng.random(shape) < 0.01] = np.nan
    return (foreground, flows), anisotropy


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(volumes(), st.tuples(*[st.integers(5, 21)] * 3), st.randoms())
def test_objects_do_not_depend_on_how_the_volume_is_cut(
    drawn: tuple[Volume, float], size: tuple[int, int, int], order: Any
) -> None:
    volume, anisotropy = drawn
    boxes = blocks_of(volume[0].shape, size)
    order.shuffle(boxes)
    for diameter in (7.0, 2.0):  # of which the second has a first halo that often is not enough
        chosen = replace(SMALL, diameter=diameter, anisotropy=anisotropy)
        names, _ = by_blocks(volume, boxes, chosen)
        np.testing.assert_array_equal(names, whole(volume, chosen))


def steady(truth: NDArray[np.int32], anisotropy: float) -> NDArray[np.float32]:
    """Flows that end at rest in the middle of a voxel, where float32 and float64 agree."""
    flows = flows_to_centres(truth, anisotropy)
    for label in np.unique(truth[truth > 0]):
        centre = tuple(round(float(found.mean())) for found in np.nonzero(truth == label))
        at = np.stack(np.nonzero(truth == label))
        apart = (np.array(centre)[:, None] - at) * np.array([[anisotropy], [1], [1]])
        length = np.sqrt((apart**2).sum(axis=0))
        flows[:, *at] = np.where(length > 0, 5 * apart / np.maximum(length, 1e-9), 0)
    return flows


@pytest.mark.parametrize("anisotropy", [1.0, 2.5, 0.6])
def test_objects_of_a_volume_are_those_of_plain_loops(anisotropy: float) -> None:
    shape = (max(4, round(14 / anisotropy)), 17, 18)
    truth = balls(shape, [(6, 5, 5, 4.6), (6, 12, 7, 4.2), (5, 9, 14, 4.4), (14, 16, 16, 4)], anisotropy)
    flows = steady(truth, anisotropy)
    chosen = replace(SMALL, anisotropy=anisotropy)
    expected = objects_by_loops(truth > 0, flows, chosen.steps, chosen.minimum_size, anisotropy)
    found = whole((truth > 0, flows), chosen)
    assert len(np.unique(expected)) == 5
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["tubes", "huge", "wave", "nonsense"])
def test_objects_of_any_length_are_followed_through_all_blocks(kind: str) -> None:
    shape = (10, 20, 170)
    x = np.mgrid[: shape[0], : shape[1], : shape[2]][2]
    foreground = np.ones(shape, bool)
    flows = np.stack([np.sin(x / 30), 2 * np.cos(x / 20), np.full(shape, 4.0)]).astype(np.float32)
    if kind == "tubes":
        truth, flows = tubes(shape, (100, 50))
        foreground = truth > 0
    elif kind == "huge":
        flows = flows_to_centres(foreground.astype(np.int32))
    elif kind == "nonsense":
        flows = np.random.default_rng(1).normal(0, 5, flows.shape).astype(np.float32)
    expected = whole((foreground, flows), SMALL)
    names, _ = by_blocks((foreground, flows), blocks_of(shape, (6, 20, 80)), SMALL)
    np.testing.assert_array_equal(names, expected)
    if kind == "tubes":
        assert len(set(zip(truth.ravel().tolist(), names.ravel().tolist(), strict=True))) == 3
    if kind == "huge":
        assert len(np.unique(names)) == 1


def packed(shape: tuple[int, int, int], radius: float, anisotropy: float) -> NDArray[np.int32]:
    """Balls that touch those beside, before and above them."""
    apart = 1.9 * radius
    centres = itertools.product(*(np.arange(0.9 * radius, n, apart) for n in (shape[0] * anisotropy, *shape[1:])))
    return balls(shape, [(*centre, radius) for centre in centres], anisotropy)


@pytest.mark.parametrize("anisotropy", [1.0, 2.0])
def test_touching_balls_are_each_found_once_whatever_the_blocks(anisotropy: float) -> None:
    truth = packed((round(36 / anisotropy), 62, 70), 6.0, anisotropy)
    chosen = VolumeSettings(12, anisotropy=anisotropy)
    volume = truth > 0, flows_to_centres(truth, anisotropy)
    names, crops = by_blocks(volume, blocks_of(truth.shape, (17, 31, 35)), chosen)
    sizes = np.bincount(truth.ravel())
    large = np.isin(truth, np.flatnonzero(sizes >= 100)) & (truth > 0)
    pairs = set(zip(truth[large].tolist(), names[large].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # none is split, none merged
    halo = chosen.first_halo
    assert all(crop.shape[0] <= 17 + 2 * halo[0] and crop.shape[2] <= 35 + 2 * halo[2] for crop in crops)


def test_objects_are_those_of_cellpose_in_3d() -> None:
    metrics, dynamics = pytest.importorskip("cellpose.metrics"), pytest.importorskip("cellpose.dynamics")
    truth = packed((30, 46, 46), 8.0, 1.0)
    flows = flows_to_centres(truth, noise=1.0)
    theirs = dynamics.compute_masks(flows, (truth > 0) * 1.0, cellprob_threshold=0.5, do_3D=True, min_size=15)
    names = whole((truth > 0, flows), VolumeSettings(16))
    ours = np.unique(names, return_inverse=True)[1].reshape(truth.shape)
    precision = metrics.average_precision([theirs.astype(np.int32)], [ours.astype(np.int32)], threshold=[0.5, 0.9])[0]
    assert precision.min() > 0.95


def test_a_volume_without_foreground_or_without_flows_has_no_objects() -> None:
    nothing, flows = np.zeros((6, 20, 21), bool), np.zeros((3, 6, 20, 21), np.float32)
    assert not whole((nothing, flows + 5), SMALL).any()
    assert not whole((~nothing, flows), SMALL).max() > nothing.size
    assert not whole((~nothing, flows + np.nan), SMALL).any()


def test_cavities_are_filled_and_specks_removed() -> None:
    truth = balls((30, 30, 30), [(14, 14, 14, 9), (27, 27, 27, 1)])
    foreground = truth > 0
    foreground[11, 10, 12], foreground[17, 16, 19] = False, False
    names = whole((foreground, flows_to_centres(truth)), VolumeSettings(18))
    np.testing.assert_array_equal(names > 0, truth == 1)
    assert len(np.unique(names)) == 2
