"""Levels over each other: scales that disagree with shapes, translations, planes of the finest level."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.io.models import Level, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.level_geometry import AxisPlace, place_of, with_scales_of_shapes
from tests.support.ngff import multiscales, write_image


def level(path: str, shape: tuple[int, ...], scale: float | tuple[float, ...], start: float = 0.0) -> Level:
    scales = (scale,) * len(shape) if isinstance(scale, float) else scale
    return Level(path, shape, shape, "uint16", scales, (start,) * len(shape))


def scales(*levels: Level) -> list[tuple[float, ...]]:
    return [one.scale for one in with_scales_of_shapes("zyx"[-len(levels[0].shape) :], levels)[0]]


def test_scales_of_other_ratios_than_shapes_are_those_of_the_shapes() -> None:
    levels = [level("0", (512, 512), 0.325), level("1", (128, 128), 0.65), level("2", (32, 32), 1.3)]
    mended, note = with_scales_of_shapes("yx", levels)
    assert [one.scale[0] for one in mended] == pytest.approx([0.325, 1.3, 5.2])
    assert note == "scales disagree with the shapes of levels 1 (yx), 2 (yx): sizes are those of the shapes"


def test_one_scale_for_all_levels_is_that_of_the_first() -> None:
    assert scales(level("0", (512, 512), 0.5), level("1", (256, 256), 0.5)) == [(0.5, 0.5), (1.0, 1.0)]


def test_only_the_axis_that_disagrees_is_mended() -> None:
    found = scales(level("0", (8, 96, 96), 1.0), level("1", (4, 48, 48), (1.0, 2.0, 2.0)))
    assert found[1] == (2.0, 2.0, 2.0)
    found = scales(level("0", (8, 96, 96), 1.0), level("1", (8, 48, 48), 2.0))
    assert found[1] == (1.0, 2.0, 2.0)


@given(
    length=st.integers(1, 5000),
    factor=st.sampled_from([1.5, 2.0, 3.0, 4.0, 8.0]),
    size=st.floats(1e-3, 1e3),
    rounding=st.sampled_from([math.floor, math.ceil, round]),
)
def test_scales_that_go_with_shapes_stay_however_lengths_were_rounded(
    length: int, factor: float, size: float, rounding: Any
) -> None:
    coarse = max(int(rounding(length / factor)), 1)
    levels = [level("0", (length, length), size), level("1", (coarse, coarse), size * factor)]
    assert with_scales_of_shapes("yx", levels) == (tuple(levels), "")


@given(depth=st.integers(0, 6), length=st.integers(1, 5000), up=st.booleans())
def test_a_pyramid_of_repeated_halves_stays(depth: int, length: int, up: bool) -> None:
    levels, left = [], length
    for index in range(depth + 1):
        levels.append(level(str(index), (left, left), float(2**index)))
        left = max((left + up) // 2, 1)
    assert with_scales_of_shapes("yx", levels) == (tuple(levels), "")


def test_levels_that_are_listed_from_coarse_to_fine_are_turned_round() -> None:
    levels = [level("1", (48, 48), 2.0), level("0", (96, 96), 1.0)]
    found, note = with_scales_of_shapes("yx", levels)
    assert [one.path for one in found] == ["0", "1"]
    assert note == ""


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_levels_begin_together_without_a_translation_and_with_that_of_their_means(start: float) -> None:
    fine, coarse = level("0", (96, 96), 1.0), level("1", (48, 48), 2.0, start)
    assert place_of(fine, coarse, 0) == AxisPlace(2.0, 0.0, 96)


def test_a_translation_moves_a_level_over_the_finest() -> None:
    fine, coarse = level("0", (96, 96), 0.5, 3.0), level("1", (40, 40), 1.0, 3.0 + 0.25 + 4.0)
    place = place_of(fine, coarse, 0)
    assert (place.factor, place.offset) == (2.0, 8.0)
    assert place.edge(5) == 18.0


@pytest.mark.parametrize(("factor", "planes"), [(1.0, [0, 1, 2]), (2.0, [0, 2, 4]), (3.0, [1, 4, 7]), (4.0, [1, 5, 7])])
def test_a_plane_is_in_the_middle_of_those_that_it_stands_for(factor: float, planes: list[int]) -> None:
    place = AxisPlace(factor, 0.0, 8)
    assert [place.plane(index) for index in range(3)] == planes


def test_an_image_says_that_its_scales_were_not_followed(tmp_path: Path) -> None:
    metadata = multiscales("cyx", 2)
    metadata["datasets"][1]["coordinateTransformations"][0]["scale"] = [1.0, 8.0, 8.0]
    (image,) = find_images([write_image(tmp_path / "a.zarr", "0.4", levels=2, metadata=metadata)])
    assert isinstance(image, SourceImage)
    assert image.levels[1].scale == (1.0, 2.0, 2.0)
    assert "scales disagree with the shapes of levels 1 (yx)" in image.note
