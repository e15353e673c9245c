"""Objects of one box by each rule."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from chorus.pipeline.instances.maps.mutex import MutexSettings
from chorus.pipeline.instances.maps.rules import MapSettings, label_box
from chorus.pipeline.instances.maps.seeded import DistanceSettings, smoothed, watershed_on_distances
from chorus.pipeline.instances.maps.superpixels import SuperpixelSettings, boundary_objects, superpixels, united
from chorus.pipeline.instances.methods import MapMethod
from chorus.pipeline.instances.volumes.blocks import Box
from chorus.pipeline.metrics.objects import average_precision
from tests.support.object_maps import PLANE_OFFSETS, VOLUME_OFFSETS, distances_of, maps_of
from tests.support.volumes import balls

METHODS: tuple[MapMethod, ...] = ("distances", "boundaries", "agglomeration", "affinities")


def touching(depth: int) -> NDArray[np.int32]:
    middle = depth // 2
    places = [(12, 14), (12, 33), (33, 20), (34, 42), (54, 12), (55, 33), (16, 52), (55, 54)]
    return balls((depth, 68, 68), [(middle, y, x, 10.5) for y, x in places])


@pytest.mark.parametrize("depth", [1, 22])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("method", METHODS)
def test_touching_objects_are_found_in_planes_and_volumes(method: MapMethod, noise: float, depth: int) -> None:
    labels = touching(depth)
    offsets = PLANE_OFFSETS if depth == 1 else VOLUME_OFFSETS
    chosen = MapSettings(method, mutex=MutexSettings(offsets))
    found = label_box(maps_of(labels, offsets, noise=noise), Box.of(0, depth, 0, 68, 0, 68), chosen).labels
    assert average_precision(labels, found)[4] == 1  # IoU 0.7
    np.testing.assert_array_equal(found > 0, labels > 0)


def test_one_kind_of_distance_is_enough() -> None:
    labels = touching(1)
    centre, edge = distances_of(labels)
    for distances in ((centre, None), (None, edge)):
        found = watershed_on_distances(labels > 0, *distances, DistanceSettings())
        assert average_precision(labels, found.labels)[0] == 1
    with pytest.raises(ValueError, match="no distances"):
        watershed_on_distances(labels > 0, None, None, DistanceSettings())


def test_both_distances_decide_on_seeds() -> None:
    """A long object has one centre, and many pixels far from its boundary."""
    labels = np.zeros((1, 20, 80), np.int32)
    labels[:, 4:16, 4:76] = 1
    edge = np.full(labels.shape, 0.8, np.float32)
    edge[:, 8:12, 8:30] = edge[:, 8:12, 50:72] = 0.2
    centre = np.ones(labels.shape, np.float32)
    centre[:, 8:12, 8:30] = 0.2
    assert watershed_on_distances(labels > 0, None, edge, DistanceSettings()).labels.max() == 2
    assert watershed_on_distances(labels > 0, centre, edge, DistanceSettings()).labels.max() == 1


def test_values_that_are_no_numbers_count_as_far() -> None:
    values = np.zeros((1, 9, 9), np.float32)
    values[0, 4, 4] = np.nan
    assert smoothed(values, 0)[0, 4, 4] == 1
    assert np.isfinite(smoothed(values, 1.5)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_box_without_foreground_has_no_objects(method: MapMethod) -> None:
    maps = maps_of(np.zeros((1, 20, 20), np.int32), PLANE_OFFSETS)
    found = label_box(maps, Box.of(0, 1, 0, 20, 0, 20), MapSettings(method, mutex=MutexSettings(PLANE_OFFSETS)))
    assert not found.labels.any()


def test_boundaries_alone_divide_all_of_an_image() -> None:
    """Walls without any foreground, as PlantSeg predicts them."""
    walls = np.zeros((1, 60, 60), np.float32)
    walls[:, 19:21] = walls[:, 39:41] = walls[:, :, 29:31] = 1
    found = boundary_objects(walls, np.ones(walls.shape, bool), SuperpixelSettings(superpixel_size=20))
    assert found.max() == 6
    assert (found > 0).all()


def test_superpixels_are_united_where_the_mean_boundary_between_them_is_low() -> None:
    labels = np.repeat(np.arange(1, 5, dtype=np.int32), 10)[None, None, :].repeat(10, axis=1)
    walls = np.zeros(labels.shape, np.float32)
    walls[..., 9:11], walls[..., 19:21], walls[..., 29:31] = 0.3, 0.9, 0.45
    assert united(labels, walls, 0.5)[0, 0, ::10].tolist() == [1, 1, 2, 2]
    assert united(labels, walls, 0.4)[0, 0, ::10].tolist() == [1, 1, 2, 3]
    assert united(labels, walls, 0.0)[0, 0, ::10].tolist() == [1, 2, 3, 4]


def test_small_superpixels_are_given_to_their_neighbours() -> None:
    walls = np.zeros((1, 40, 40), np.float32)
    walls[:, 18:24, 18] = walls[:, 18:24, 23] = walls[:, 18, 18:24] = walls[:, 23, 18:24] = 1
    mask = np.ones(walls.shape, bool)
    sharp = {"sigma_seeds": 0.0, "sigma_weights": 0.0}
    small = superpixels(walls, mask, SuperpixelSettings(superpixel_size=1, **sharp))
    assert np.bincount(small.ravel())[1:].min() < 40
    large = superpixels(walls, mask, SuperpixelSettings(superpixel_size=40, **sharp))
    sizes = np.bincount(large.ravel())[1:]
    assert sizes[sizes > 0].min() >= 40


def test_an_image_without_any_boundary_is_one_object() -> None:
    walls = np.zeros((1, 16, 16), np.float32)
    assert boundary_objects(walls, np.ones(walls.shape, bool), SuperpixelSettings()).max() == 1
