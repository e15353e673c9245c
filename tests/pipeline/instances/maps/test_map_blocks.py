"""Blocks of maps: a fixed grid, any order, and the objects of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.instances.maps.blocks import SeenBlocks
from chorus.pipeline.instances.maps.joining import block_pieces, same_objects, united_names
from chorus.pipeline.instances.maps.mutex import MutexSettings
from chorus.pipeline.instances.maps.objects import map_objects, replaced
from chorus.pipeline.instances.maps.rules import MapSettings, label_box
from chorus.pipeline.instances.maps.seeded import BoxLabels
from chorus.pipeline.instances.methods import MapMethod
from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box
from chorus.pipeline.metrics.objects import count_objects
from tests.support.object_maps import PLANE_OFFSETS, VOLUME_OFFSETS, MapsInMemory, maps_of
from tests.support.volumes import balls

METHODS: tuple[MapMethod, ...] = ("distances", "boundaries", "agglomeration", "affinities")
Shape = tuple[int, int, int]


def whole_box(shape: Shape) -> Box:
    return Box.of(0, shape[0], 0, shape[1], 0, shape[2])


def packed(shape: Shape, radius: float, seed: int) -> NDArray[np.int32]:
    """Many touching balls at jittered places of a lattice."""
    rng, step = np.random.default_rng(seed), 1.8 * radius
    lattice = [np.arange(step / 2, n, step) if n > 1 else np.zeros(1) for n in shape]
    places = np.stack(np.meshgrid(*lattice, indexing="ij"), axis=-1).reshape(-1, 3)
    places = places + rng.uniform(-0.2, 0.2, places.shape) * radius * (np.array(shape) > 1)
    return balls(shape, [(*place, radius) for place in places.tolist()])


grids = st.builds(
    lambda shape, size, halo: SeenBlocks(BlockGrid(shape, size), halo, tuple(max(0, h - 1) for h in halo)),
    st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 9), st.integers(3, 30), st.integers(3, 30)),
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
)


@given(blocks=grids)
def test_a_zone_is_seen_by_both_blocks_of_its_face(blocks: SeenBlocks) -> None:
    faces = [face for index in range(blocks.grid.count) for face in blocks.faces(index)]
    assert len(faces) == 2 * len(set(faces))
    for face in faces:
        zone = blocks.zone(face)
        zone.within(blocks.outer(face.first)), zone.within(blocks.outer(face.second))
        first, second = blocks.grid.box(face.first), blocks.grid.box(face.second)
        ends = (first.z, first.y, first.x)[face.axis], (second.z, second.y, second.x)[face.axis]
        assert ends[0].stop == ends[1].start


@settings(max_examples=80, deadline=None)
@given(blocks=grids, share=st.sampled_from([0.3, 0.6, 0.8]), seed=st.integers(0, 999))
def test_seeds_of_blocks_are_the_components_of_the_whole_however_far_they_extend(
    blocks: SeenBlocks, share: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random(blocks.grid.shape) < share
    names, pairs, zones = np.zeros(mask.shape, np.uint64), [], {}
    for index in np.random.default_rng(seed).permutation(blocks.grid.count).tolist():
        outer, box = blocks.outer(index), blocks.grid.box(index)
        seen = mask[outer.z.slice, outer.y.slice, outer.x.slice]
        labels, _ = ndimage.label(seen)
        pieces = block_pieces(BoxLabels(labels.astype(np.int32), seen), blocks, index)
        names[box.z.slice, box.y.slice, box.x.slice] = pieces.names
        for face, zone in pieces.zones.items():
            zones.setdefault(face, {})[index] = zone
    for face, both in zones.items():
        pairs.append(same_objects(both[face.first], both[face.second]))
    wide_enough = all(m > 0 for m, n in zip(blocks.margin, blocks.grid.counts, strict=True) if n > 1)
    found = replaced(names, *united_names(pairs))
    expected, count = ndimage.label(mask)
    np.testing.assert_array_equal(found > 0, mask)
    if wide_enough:
        firsts = np.array([0, *(1 + np.flatnonzero(expected.ravel() == n)[0] for n in range(1, count + 1))])
        np.testing.assert_array_equal(found, firsts[expected])


def in_order(maps: MapsInMemory, blocks: SeenBlocks, chosen: MapSettings, order: list[int]) -> NDArray[np.uint64]:
    """As `map_objects`, with blocks in any order, each labelled twice: as if several regions had read it."""
    found = {index: block_pieces(label_box(maps, blocks.outer(index), chosen), blocks, index) for index in order * 2}
    names = np.zeros(blocks.grid.shape, np.uint64)
    for index, pieces in found.items():
        box = blocks.grid.box(index)
        names[box.z.slice, box.y.slice, box.x.slice] = pieces.names
    faces = sorted(
        {face for pieces in found.values() for face in pieces.zones}, key=lambda face: order.index(face.first)
    )
    pairs = [same_objects(found[face.first].zones[face], found[face.second].zones[face]) for face in faces]
    return replaced(names, *united_names(pairs))


@settings(max_examples=12, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    flat=st.booleans(),
    noise=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_objects_do_not_depend_on_the_order_of_blocks_or_on_how_often_they_are_read(
    method: MapMethod, flat: bool, noise: float, seed: int, data: st.DataObject
) -> None:
    shape, offsets = ((1, 50, 44), PLANE_OFFSETS) if flat else ((14, 30, 26), VOLUME_OFFSETS)
    maps = maps_of(packed(shape, 5, seed), offsets, noise=noise, seed=seed)
    size, halo = ((1, 20, 17), (0, 6, 6)) if flat else ((8, 12, 16), (5, 6, 6))
    blocks = SeenBlocks(BlockGrid(shape, size), halo, tuple(max(0, h - 2) for h in halo))
    chosen = MapSettings(method, minimum_size=1, mutex=MutexSettings(offsets))
    order = data.draw(st.permutations(range(blocks.grid.count)))
    np.testing.assert_array_equal(in_order(maps, blocks, chosen, order), map_objects(maps, blocks, chosen))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_objects_of_blocks_are_those_of_the_whole(method: MapMethod, flat: bool) -> None:
    shape, offsets = ((1, 150, 130), PLANE_OFFSETS) if flat else ((36, 60, 60), VOLUME_OFFSETS)
    labels = packed(shape, 8, 1)
    maps = maps_of(labels, offsets, noise=0.1)
    chosen = MapSettings(method, minimum_size=20, mutex=MutexSettings(offsets))
    size, halo = ((1, 64, 64), (0, 16, 16)) if flat else ((20, 32, 32), (16, 16, 16))
    reach = chosen.distances.reach
    blocks = SeenBlocks(BlockGrid(shape, size), halo, tuple(max(0, h - reach) for h in halo))
    found = map_objects(maps, blocks, chosen)
    whole = map_objects(maps, SeenBlocks(BlockGrid(shape, shape), halo, halo), chosen)
    np.testing.assert_array_equal(whole > 0, label_box(maps, whole_box(shape), chosen).labels > 0)
    assert count_objects(whole, found).average_precision[8] == 1  # IoU 0.9
    assert count_objects(labels, found).average_precision[0] > 0.9


def test_objects_are_named_by_their_first_pixel_and_small_ones_are_left_out() -> None:
    labels = packed((1, 60, 60), 6, 0)
    chosen = MapSettings("affinities", minimum_size=60, mutex=MutexSettings(PLANE_OFFSETS))
    blocks = SeenBlocks(BlockGrid((1, 60, 60), (1, 25, 25)), (0, 16, 16), (0, 16, 16))
    found = map_objects(maps_of(labels, PLANE_OFFSETS), blocks, chosen)
    names, first, sizes = np.unique(found, return_index=True, return_counts=True)
    np.testing.assert_array_equal(names[1:], first[1:] + 1)
    assert sizes.min() >= 60
    assert (np.bincount(labels.ravel())[1:] < 60).any()


def test_the_grid_is_fixed_by_the_shape_and_the_settings() -> None:
    chosen = MapSettings("distances", diameter=25)
    assert chosen.blocks((1, 3000, 1000)).grid.counts == (1, 3, 1)
    assert chosen.blocks((1, 3000, 1000)).halo == (0, 25, 25)
    assert chosen.blocks((100, 300, 100)).grid.counts == (2, 3, 1)
    assert MapSettings("affinities", diameter=25, anisotropy=5).blocks((100, 300, 100)).halo == (5, 25, 25)
    assert MapSettings("distances", diameter=25, anisotropy=9).blocks((100, 300, 100)).halo == (9, 25, 25)
    assert chosen.blocks((1, 3000, 1000)).margin == (0, 4, 4)
    assert MapSettings("affinities", diameter=500).blocks((1, 9, 9)).halo == (0, 64, 64)
