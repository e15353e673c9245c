"""Outlines of objects and ImageJ's ROI sets: filled again, they are the same pixels."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Outline2D
from numpy.typing import NDArray
from roifile import ROI_TYPE, ImagejRoi
from skimage.measure import label

from chorus.pipeline.exports.contours import polygons, signed_area
from chorus.pipeline.exports.files import Parts
from chorus.pipeline.exports.outlines import LabelledImage, Outline, by_uncertainty, object_name, ranks
from chorus.pipeline.exports.rois import roi, write_rois
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.sources.level_geometry import AxisPlace

CLASSES = (ClassInfo("background", "#000000"), ClassInfo("cell", "#4daf4a"))
RING = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], bool)

masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def filled(rings: list[NDArray[Any]], shape: tuple[int, int], *, nonzero: bool = False) -> NDArray[np.bool_]:
    """Pixels whose centres are inside, by matplotlib; of several rings by either rule for what is inside."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    winding = np.zeros(len(centres), int)
    for ring in rings:
        sign = int(np.sign(signed_area(np.asarray(ring)))) if nonzero else 1
        winding += sign * Outline2D(np.vstack([ring, ring[:1]])).contains_points(centres)
    return np.asarray((winding != 0 if nonzero else winding % 2 == 1).reshape(shape))


def image(**changes: Any) -> LabelledImage:
    content: dict[str, Any] = {"name": "a", "labels_url": "", "axes": "yx", "planes": (1, 1), "channels": 1}
    return LabelledImage(**(content | {"classes": CLASSES} | changes))


def outline(mask: NDArray[np.bool_], top: int = 0, left: int = 0, rank: int = 1, **row: Any) -> Outline:
    found = {"class": "cell", "label": 17, "area": int(mask.sum()), "t": 0, "z": 0, "uncertainty": 0.2134} | row
    name = object_name(rank, 3, "uncertainty", found["uncertainty"], found["label"])
    return Outline(rank, name, found, polygons(mask, top, left), (1, 2, 3))


@given(masks)
def test_filled_outlines_are_the_pixels_by_either_rule(mask: NDArray[np.bool_]) -> None:
    rings = [ring for part in polygons(mask) for ring in part.rings]
    assert np.array_equal(filled(rings, mask.shape), mask)
    assert np.array_equal(filled(rings, mask.shape, nonzero=True), mask)
    assert sum(signed_area(ring) for ring in rings) == mask.sum()


@given(masks)
def test_there_is_a_polygon_per_part_and_no_ring_touches_itself(mask: NDArray[np.bool_]) -> None:
    found = polygons(mask)
    parts = label(mask, connectivity=1)
    assert len(found) == parts.max()
    for index, part in enumerate(found, 1):
        assert np.array_equal(filled(list(part.rings), mask.shape), parts == index)
        assert signed_area(part.exterior) > 0
        assert all(signed_area(hole) < 0 for hole in part.holes)
        for ring in part.rings:
            assert len(np.unique(ring, axis=0)) == len(ring) >= 4
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps == 0).sum(axis=1) == 1).all()  # along the edges of pixels, turning at every vertex
            assert ((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0)).all()


@given(masks, st.integers(0, 100_000), st.integers(0, 100_000))
def test_place_only_moves_outlines(mask: NDArray[np.bool_], top: int, left: int) -> None:
    for here, there in zip(polygons(mask), polygons(mask, top, left), strict=True):
        for a, b in zip(here.rings, there.rings, strict=True):
            assert np.array_equal(a + np.array([left, top]), b)


@pytest.mark.parametrize("mask", [np.ones((3, 4), bool), RING, RING[::-1], np.eye(4, dtype=bool)])
@pytest.mark.parametrize("place", [(0, 0), (5, 7), (40_000, 60_000), (90_000, 70_000)])
def test_rois_that_are_read_back_are_the_pixels(mask: NDArray[np.bool_], place: tuple[int, int]) -> None:
    read = ImagejRoi.frombytes(roi(image(), outline(mask, *place)).tobytes())
    assert isinstance(read, ImagejRoi)
    several = len([ring for part in polygons(mask) for ring in part.rings]) > 1
    assert read.composite == several
    assert read.roitype == (ROI_TYPE.RECT if several else ROI_TYPE.TRACED)
    rings = [np.asarray(ring) - place[::-1] for ring in read.coordinates(multi=True)]
    assert np.array_equal(filled(rings, mask.shape), mask)
    assert read.name == "0001_U0.213_label17"
    assert read.hexcolor(read.stroke_color) == "#010203"
    assert read.properties == {"class": "cell", "label": 17, "area": mask.sum(), "uncertainty": 0.2134}


def test_an_object_of_a_coarser_level_is_drawn_on_the_finest() -> None:
    read = ImagejRoi.frombytes(
        roi(image(places={"y": AxisPlace(2.0), "x": AxisPlace(4.0)}), outline(RING, 3, 5)).tobytes()
    )
    assert isinstance(read, ImagejRoi)
    rings = [ring - [5 * 4, 3 * 2] for ring in read.coordinates(multi=True)]
    assert np.array_equal(filled(rings, (8, 16)), RING.repeat(2, axis=0).repeat(4, axis=1))


@pytest.mark.parametrize(
    ("planes", "channels", "place"),
    [
        ((1, 1), 3, (0, 0, 0)),
        ((1, 5), 1, (4, 0, 0)),
        ((7, 1), 1, (3, 0, 0)),
        ((1, 5), 2, (0, 4, 0)),
        ((7, 5), 1, (0, 4, 3)),
    ],
)
def test_stacks_have_positions_and_hyperstacks_slices_and_frames(
    planes: tuple[int, int], channels: int, place: tuple[int, int, int]
) -> None:
    where = {"t": 2 if planes[0] > 1 else 0, "z": 3 if planes[1] > 1 else 0}
    made = roi(image(planes=planes, channels=channels), outline(RING, **where))
    assert (made.position, made.z_position, made.t_position) == place
    assert made.c_position == 0


def test_sets_are_in_the_order_of_uncertainty_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    found = [outline(RING, rank=rank, uncertainty=1 / rank) for rank in (2, 3, 1)]
    for name in ("a.zip", "b.zip"):
        write_rois(image(), found, 3, str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        read = [ImagejRoi.frombytes(archive.read(name)) for name in names]
    assert names == ["0001_U1.000_label17.roi", "0002_U0.500_label17.roi", "0003_U0.333_label17.roi"]
    assert [f"{one.name}.roi" for one in read if isinstance(one, ImagejRoi)] == names
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip"]


@given(st.lists(st.one_of(st.just(float("nan")), st.sampled_from([0.0, 0.1, 0.2])), max_size=20))
def test_the_most_doubtful_are_first_and_the_unknown_last(uncertainty: list[float]) -> None:
    order = by_uncertainty(np.array(uncertainty, np.float64))
    known = [index for index, value in enumerate(uncertainty) if value == value]
    expected = sorted(known, key=lambda index: (-uncertainty[index], index))
    assert order.tolist() == [*expected, *(index for index in range(len(uncertainty)) if index not in known)]
    assert ranks(order)[order].tolist() == list(range(1, len(uncertainty) + 1))


@given(st.permutations(range(12)))
def test_parts_are_given_back_in_the_order_of_their_places(places: list[int]) -> None:
    with Parts(12) as parts:
        for place in places:
            parts.put(place, b"%d" % place * place)
        assert list(parts) == [b"%d" % place * place for place in range(12)]


def test_names_sort_as_ranks() -> None:
    names = [object_name(rank, 20_000, None, float("nan"), 1) for rank in (1, 9, 10, 9_999, 20_000)]
    assert names == sorted(names)
    assert names[0] == "00001_label1"
    assert object_name(3, 10, "epistemic", 0.0129, 4) == "0003_E0.013_label4"
