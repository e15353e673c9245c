"""Shapes of objects: those of SimpleITK on the whole label image, and the same numbers wherever an object lies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import pdist

from chorus.pipeline.instances import shapes
from chorus.pipeline.instances.shapes import CUBIC, SQUARE, Spacing, cut_out, feret_diameter, shape_rows

MASKS = arrays(bool, st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 6)] * 3)))


def blobs(shape: tuple[int, ...], seed: int) -> NDArray[np.int32]:
    """Objects of irregular shape, none at the border."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    inner = np.zeros(shape, bool)
    inner[(slice(2, -2),) * len(shape)] = True
    labels, _ = ndimage.label((smooth > smooth.std() * 0.8) & inner)
    return labels


def measured(labels: NDArray[np.int32], spacing: Spacing) -> NDArray[np.float64]:
    boxes = ndimage.find_objects(labels)
    rows = shape_rows(lambda index: cut_out(labels, index + 1, boxes[index]), len(boxes), spacing)
    return rows.to_numpy()


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ((90, 110), (1.0, 1.0)),
        ((90, 110), (1.0, 1.5)),
        ((40, 44, 48), (1.0, 1.0, 1.0)),
        ((40, 44, 48), (3.2, 1.0, 1.0)),
    ],
)
def test_shapes_are_those_of_simpleitk_on_the_whole_image(shape: tuple[int, ...], steps: tuple[float, ...]) -> None:
    labels = blobs(shape, seed=len(shape))
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(steps[::-1])
    reference = SimpleITK.LabelShapeStatisticsImageFilter()
    reference.ComputeFeretDiameterOn()
    reference.ComputeOrientedBoundingBoxOn()
    reference.Execute(image)
    found = measured(labels, Spacing(steps, 0.5))
    assert len(found) > 5
    compared = 0
    for label, row in enumerate(found, 1):
        expected = [
            0.5,
            reference.GetFeretDiameter(label),
            reference.GetPerimeter(label),
            reference.GetRoundness(label),
        ]
        np.testing.assert_allclose(row[:4], expected, rtol=1e-9)
        ratios = [reference.GetElongation(label)] + ([reference.GetFlatness(label)] if len(shape) == 3 else [])
        if all(1.1 < ratio < 1e3 for ratio in ratios):  # of others the axes are any
            sides = sorted(reference.GetOrientedBoundingBoxSize(label), reverse=True)
            np.testing.assert_allclose(row[4:], [*ratios, *sides], rtol=1e-6)
            compared += 1
    assert compared >= 3


@settings(max_examples=40, deadline=None)
@given(MASKS, st.lists(st.integers(0, 30), min_size=6, max_size=6))
def test_a_shape_does_not_depend_on_where_its_object_lies(mask: NDArray[np.bool_], around: list[int]) -> None:
    mask[(0,) * mask.ndim] = mask[(-1,) * mask.ndim] = True
    spacing = SQUARE if mask.ndim == 2 else CUBIC
    pads = list(zip(around[::2], around[1::2], strict=True))[: mask.ndim]
    alone, moved = measured(mask.astype(np.int32), spacing), measured(np.pad(mask, pads).astype(np.int32), spacing)
    np.testing.assert_array_equal(alone, moved)


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from([1, 256]))
def test_the_feret_diameter_is_the_largest_of_all_distances(mask: NDArray[np.bool_], few: int) -> None:
    mask[(0,) * mask.ndim] = True
    steps = (2.5, 1.0, 1.3)[-mask.ndim :]
    points = np.argwhere(mask) * np.array(steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "_FEW", few)
        found = feret_diameter(mask, steps)
    assert found == pytest.approx(pdist(points).max(initial=0.0), rel=1e-12)


def test_boxes_and_elongation_of_a_bar_are_its_sides() -> None:
    bar = np.ones((10, 30), bool)
    row = shape_rows(lambda _: bar, 1, SQUARE).iloc[0]
    assert (row["oriented_length"], row["oriented_width"]) == pytest.approx((30, 10))
    assert row["elongation"] == pytest.approx(math.sqrt((30**2 - 1) / (10**2 - 1)), rel=0.01)
    assert row["feret_diameter"] == pytest.approx(math.hypot(9, 29))
    assert np.isnan(row["pixel_size_um"])


def test_what_has_no_width_has_no_elongation_and_what_is_too_large_no_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    line = shape_rows(lambda _: np.ones((1, 9), bool), 1, SQUARE).iloc[0]
    assert np.isnan(line["elongation"])
    assert line["feret_diameter"] == 8
    monkeypatch.setattr(shapes, "LARGEST", 80)
    found = measured(np.ones((9, 9), np.int32), Spacing((1.0, 1.0), 0.25))[0]
    assert found[0] == 0.25
    assert np.isnan(found[1:]).all()
