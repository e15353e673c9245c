"""The mutex watershed: the partition of a plain loop, of the two tools that have it, and of the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.instances.maps.mutex import MutexSettings, mutex_objects, mutex_watershed
from chorus.pipeline.instances.volumes.blocks import Box
from tests.support.object_maps import PLANE_OFFSETS, VOLUME_OFFSETS, affinities_of, mutex_by_loops
from tests.support.paths import SHARED
from tests.support.volumes import balls

ORACLE = SHARED / "interop" / "torch_em_affs" / "mws_noisy_truth.npz"


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).shape[1]
    return bool(pairs == len(np.unique(a)) == len(np.unique(b)))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    levels=st.sampled_from([2, 4, 1000]),
    seed=st.integers(0, 9999),
)
def test_partition_is_that_of_a_plain_loop_also_where_weights_are_equal(
    shape: tuple[int, int, int], levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.integers(0, levels + 1, (len(VOLUME_OFFSETS), *shape)) / levels).astype(np.float32)
    values[rng.random(values.shape) < 0.03] = np.nan
    mask = rng.random(shape) < 0.9
    found = mutex_watershed(values, VOLUME_OFFSETS, mask)
    expected = mutex_by_loops(values, VOLUME_OFFSETS, mask)
    np.testing.assert_array_equal(found > 0, mask)
    assert same_partition(found, expected)
    firsts = [np.flatnonzero(found.ravel() == label)[0] for label in range(1, found.max() + 1)]
    assert firsts == sorted(firsts)


def test_many_clusters_that_exclude_each_other_keep_their_exclusions_when_they_grow() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((len(PLANE_OFFSETS), 1, 40, 40)).astype(np.float32)
    mask = np.ones((1, 40, 40), bool)
    assert same_partition(mutex_watershed(values, PLANE_OFFSETS, mask), mutex_by_loops(values, PLANE_OFFSETS, mask))


def test_objects_of_ideal_affinities_are_the_labels() -> None:
    labels = balls((16, 40, 40), [(8, 12, 12, 8), (8, 12, 27, 7.5), (6, 28, 20, 9)])
    affinities = affinities_of(labels, VOLUME_OFFSETS)
    box = Box.of(0, 16, 0, 40, 0, 40)
    found = mutex_objects(affinities, labels > 0, MutexSettings(VOLUME_OFFSETS), box)
    assert same_partition(found, labels)


def test_fragments_are_given_to_the_neighbour_that_they_are_least_divided_from() -> None:
    labels = np.ones((1, 12, 24), np.int32)
    labels[:, :, 12:] = 2
    labels[:, 5:7, 9:11] = 3
    affinities = affinities_of(labels, PLANE_OFFSETS)
    box, mask = Box.of(0, 1, 0, 12, 0, 24), np.ones(labels.shape, bool)
    kept = mutex_objects(affinities, mask, MutexSettings(PLANE_OFFSETS, fragment_size=0), box)
    assert kept.max() == 3
    filled = mutex_objects(affinities, mask, MutexSettings(PLANE_OFFSETS, fragment_size=10), box)
    assert same_partition(filled, np.where(labels == 3, 1, labels))


def test_strides_are_counted_from_the_first_pixel_of_the_image() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((len(PLANE_OFFSETS), 1, 33, 35)).astype(np.float32)
    mask = np.zeros((1, 33, 35), bool)
    mask[:, 5:, 7:] = True
    whole = mutex_watershed(values, PLANE_OFFSETS, mask, (1, 3, 2))
    crop = mutex_watershed(values[:, :, 5:, 7:], PLANE_OFFSETS, mask[:, 5:, 7:], (1, 3, 2), (0, 5, 7))
    np.testing.assert_array_equal(whole[:, 5:, 7:], crop)
    assert crop.max() < mutex_watershed(values[:, :, 5:, 7:], PLANE_OFFSETS, mask[:, 5:, 7:]).max()


@pytest.mark.skipif(not ORACLE.exists(), reason="real data are not beside the checkout")
def test_partition_is_that_of_elf_and_of_mwatershed() -> None:
    with np.load(ORACLE) as oracle:
        offsets = [tuple(offset) for offset in oracle["offsets"].tolist()]
        values, elf, mwatershed = oracle["disaffinities"], oracle["elf_mws"], oracle["mwatershed_seg"]
    found = mutex_watershed(values, offsets, np.ones(values.shape[1:], bool))  # type: ignore[arg-type]
    assert found.max() == 12
    assert same_partition(found, elf)
    assert same_partition(found, mwatershed)
