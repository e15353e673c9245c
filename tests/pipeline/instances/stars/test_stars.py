"""Objects by stars: exact areas, suppression as it is defined, pixels, and no dependence on the partition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.instances.stars.candidates import Candidates, StarMaps, StarSettings
from chorus.pipeline.instances.stars.drawing import draw
from chorus.pipeline.instances.stars.polygons import areas_of, ray_directions, shared_area, whole_vertices
from chorus.pipeline.instances.stars.regions import StarObjects, label_stars
from chorus.pipeline.instances.stars.suppression import KEPT, SUPPRESSED, suppress
from tests.support.paths import SHARED
from tests.support.stars import cut, plain_shared_area, plain_suppression, random_maps

lengths = st.lists(st.floats(0, 12, width=32), min_size=8, max_size=8)


def whole_plane(maps: StarMaps, chosen: StarSettings) -> StarObjects:
    shape = maps.window.shape
    candidates = Candidates.of(maps, shape, chosen)
    return label_stars(lambda window: candidates, maps.window, shape, candidates.longest, chosen)


@pytest.mark.parametrize("count", [3, 4, 8, 12, 32, 96])
def test_rays_are_evenly_spread_unit_vectors_that_flips_exchange(count: int) -> None:
    directions = ray_directions(count)
    angles = 2 * np.pi * np.arange(count) / count
    np.testing.assert_allclose(directions, np.stack([np.sin(angles), np.cos(angles)], axis=1), atol=1e-15)
    mirrored = directions[-np.arange(count) % count]
    np.testing.assert_array_equal(mirrored * [-1, 1], directions)


@given(lengths, lengths, st.integers(-9, 9), st.integers(-9, 9))
def test_the_shared_area_is_exact(a: list[float], b: list[float], y: int, x: int) -> None:
    rays = np.array([a, b], np.float32)
    one, other = whole_vertices(np.array([[100, 100], [100 + y, 100 + x]]), rays)
    area = shared_area(one, other, y, x)
    assert area == pytest.approx(float(plain_shared_area(one, other, (y, x))), abs=1e-9)
    assert area == pytest.approx(shared_area(other, one, -y, -x), abs=1e-9)


@given(lengths)
def test_a_polygon_shares_its_area_with_itself(a: list[float]) -> None:
    vertices = whole_vertices(np.array([[50, 50]]), np.array([a], np.float32) + 3)
    assert shared_area(vertices[0], vertices[0], 0, 0) == pytest.approx(areas_of(vertices)[0], abs=1e-9)


def test_vertices_are_truncated_in_coordinates_of_the_plane() -> None:
    vertices = whole_vertices(np.array([[1, 1], [10, 10]]), np.full((2, 4), 2.5, np.float32))
    # At the edge towards zero, that is outwards or inwards as StarDist's integers are.
    np.testing.assert_array_equal(vertices[1], [[0, 2], [2, 0], [0, -3], [-3, 0]])
    np.testing.assert_array_equal(vertices[0], [[0, 2], [2, 0], [0, -2], [-2, 0]])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.2, 0.5, 0.8]))
def test_suppression_is_that_of_all_pairs(seed: int, threshold: float) -> None:
    candidates = Candidates.of(random_maps(seed, (20, 24)), (20, 24), StarSettings(0.85, grid=(2, 1)))
    vertices = whole_vertices(candidates.points, candidates.rays)
    state = suppress(candidates.points, vertices, np.zeros(len(candidates), bool), threshold)
    expected = plain_suppression(candidates.points, vertices, areas_of(vertices), threshold)
    assert np.flatnonzero(state == KEPT).tolist() == expected


@settings(max_examples=30)
@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_what_is_decided_without_some_candidates_stays_so_with_them(seed: int, other: int) -> None:
    maps, chosen = random_maps(seed, (40, 40)), StarSettings(0.6)
    candidates = Candidates.of(maps, (40, 40), chosen)
    vertices = whole_vertices(candidates.points, candidates.rays)
    nothing = np.zeros(len(candidates), bool)
    known = np.random.default_rng(other).random(len(candidates)) < 0.7
    touched = np.array(
        [
            any(
                shared_area(vertices[i], vertices[j], *(candidates.points[j] - candidates.points[i])) > 0
                for j in np.flatnonzero(~known)
            )
            for i in np.flatnonzero(known)
        ],
        bool,
    )
    part = candidates[known]
    decided = suppress(part.points, vertices[known], touched, 0.4)
    truth = suppress(candidates.points, vertices, nothing, 0.4)[known]
    assert ((decided == truth) | ((decided != KEPT) & (decided != SUPPRESSED))).all()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.tuples(st.integers(20, 70), st.integers(20, 70)),
    st.integers(5, 40),
    st.sampled_from([(1, 1), (2, 2), (1, 2)]),
)
def test_objects_do_not_depend_on_the_partition(
    seed: int, shape: tuple[int, int], size: int, grid: tuple[int, int]
) -> None:
    maps, chosen = random_maps(seed, shape), StarSettings(0.6, 0.4, 6, grid)
    whole = whole_plane(maps, chosen)
    expected = {
        name: (score, variation)
        for name, score, variation in zip(whole.objects.anchors, whole.scores, whole.variation, strict=True)
    }
    regions = RegionGrid.make(shape, size)
    windows = [regions.window(index) for index in range(regions.count)]
    longest = max(Candidates.of(cut(maps, window), shape, chosen).longest for window in windows)
    names, first = np.zeros(shape, np.uint64), np.unique(whole.objects.names, return_index=True)
    for window in windows:
        found = label_stars(lambda crop: Candidates.of(cut(maps, crop), shape, chosen), window, shape, longest, chosen)
        names[window.y.slice, window.x.slice] = found.objects.names
        inside = np.unique(found.objects.names)
        assert np.isin(inside, first[0]).all()
        for index in np.flatnonzero(np.isin(found.objects.anchors, inside[inside > 0])):
            assert (found.scores[index], found.variation[index]) == expected[found.objects.anchors[index]]
            mask = found.objects.around == index
            at = found.objects.crop
            of_whole = whole.objects.names[at.y.slice, at.x.slice] == found.objects.anchors[index]
            np.testing.assert_array_equal(mask, of_whole)
    np.testing.assert_array_equal(names, whole.objects.names)


def test_parts_of_a_plane_have_its_candidates() -> None:
    maps, chosen = random_maps(3, (50, 61)), StarSettings(0.5, grid=(2, 4))
    whole = Candidates.of(maps, (50, 61), chosen)
    regions = RegionGrid.make((50, 61), 17)
    parts = [Candidates.of(cut(maps, regions.window(i)), (50, 61), chosen) for i in range(regions.count)]
    joined = Candidates.joined(parts)
    for name in ("points", "scores", "classes", "rays", "variation"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    assert (joined.points % (2, 4) == 0).all()
    assert joined.points.min(axis=0).tolist() >= [4, 8]


def test_of_equally_probable_candidates_the_upper_and_left_one_is_better() -> None:
    probability = np.zeros((20, 20), np.float32)
    probability[8, 9] = probability[8, 11] = probability[10, 5] = 0.75
    probability[12, 12] = 0.875
    maps = StarMaps(probability[None], np.full((8, 20, 20), 3.0, np.float32), None, Window.of(0, 20, 0, 20))
    candidates = Candidates.of(maps, (20, 20), StarSettings())
    assert candidates.points.tolist() == [[12, 12], [8, 9], [8, 11], [10, 5]]


@given(lengths, st.integers(-3, 22), st.integers(-3, 22))
def test_pixels_are_those_of_scikit_image(a: list[float], y: int, x: int) -> None:
    rays = np.array([a], np.float32) + np.float32(0.51)
    labels = draw(np.array([[y, x]]), rays, Window.of(0, 20, 0, 20))
    corners = rays[0].astype(np.float64)[:, None] * ray_directions(8)
    expected = np.zeros((20, 20), np.int32)
    expected[polygon(corners[:, 0] + y, corners[:, 1] + x, (20, 20))] = 1
    on_an_edge = np.isclose(corners, np.round(corners), atol=1e-6).any()
    assert (labels != expected).sum() <= (8 if on_an_edge else 0)


def test_the_better_object_is_drawn_on_top_and_small_ones_are_removed() -> None:
    labels = draw(np.array([[5, 5], [5, 8]]), np.full((2, 32), 3.2, np.float32), Window.of(0, 11, 0, 14))
    assert labels[5, 6] == 1
    assert labels[5, 10] == 2
    maps = random_maps(5, (60, 60))
    sizes = np.unique(whole_plane(maps, StarSettings(0.6, 0.4, 12)).objects.names, return_counts=True)[1]
    assert sizes.min() >= 12


@pytest.mark.parametrize("grid", [1, 2])
def test_objects_are_those_of_stardist(grid: int) -> None:
    folder = SHARED / "interop" / f"stardist2d_grid{grid}"
    if not folder.is_dir():
        pytest.skip("no shared/interop beside the checkout: set CHORUS_SHARED")
    thresholds = json.loads((folder / "thresholds.json").read_text())
    chosen = StarSettings(thresholds["prob"], thresholds["nms"], 1, (grid, grid))
    for path in sorted(path for path in folder.glob("*.npz") if path.stem != "scores"):
        with np.load(path) as file:
            if "dist" not in file:
                continue
            fine = [np.repeat(np.repeat(file[name], grid, 0), grid, 1) for name in ("prob", "dist")]
            labels, points = file["labels"], file["points"]
        maps = StarMaps(
            fine[0][None], np.moveaxis(fine[1], -1, 0), None, Window.of(0, labels.shape[0], 0, labels.shape[1])
        )
        found = whole_plane(maps, chosen).objects
        expected = np.concatenate([[0], points[:, 0] * labels.shape[1] + points[:, 1] + 1]).astype(np.uint64)
        np.testing.assert_array_equal(np.unique(found.names), np.unique(expected))
        assert (found.names != expected[labels]).sum() <= 5  # their rays are stored as float16
