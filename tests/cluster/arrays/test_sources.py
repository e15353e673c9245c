"""What an array says of its axes, and what is refused with a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from PIL import Image

from chorus.cluster.arrays.sources import ArraySource
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.formats.rasters import only_one
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.sources.reading import pixel_size_um


def source(array: Any, **known: Any) -> ArraySource:
    defaults: dict[str, Any] = {"axes": None, "channel_axis": None, "pixel_size": None, "channels": None}
    return ArraySource.of(array, name="array", **defaults | known)


@pytest.mark.parametrize(
    ("shape", "known", "axes"),
    [
        ((8, 9), {}, "yx"),
        ((2, 8, 9), {"channel_axis": 0}, "cyx"),
        ((8, 9, 2), {"channel_axis": -1}, "yxc"),
        ((3, 8, 9), {"axes": "ZYX"}, "zyx"),
        ((2, 3, 8, 9), {"axes": "tcyx", "channel_axis": 1}, "tcyx"),
        ((8, 9, 3), {}, "yxc"),
        ((8, 9, 4), {}, "yxc"),
        ((8, 9, 3), {"axes": "zyx"}, "zyx"),
        ((8, 3, 9), {"channel_axis": 1}, "ycx"),
    ],
)
def test_axes_are_known_where_they_are_clear_or_said(shape: tuple[int, ...], known: dict[str, Any], axes: str) -> None:
    assert source(np.zeros(shape, np.uint8), **known).image.axes == axes


@pytest.mark.parametrize(
    ("shape", "known", "reason"),
    [
        ((3, 8, 4), {}, "an array of shape (3, 8, 4): say what its axes are"),
        ((8, 9, 2), {}, "an array of shape (8, 9, 2): say what its axes are"),
        ((2, 8, 9), {}, 'an array of shape (2, 8, 9): say what its axes are, such as axes="cyx"; channel_axis alone'),
        ((2, 3, 8, 9), {"channel_axis": 0}, "an array of shape (2, 3, 8, 9): say what its axes are"),
        ((9,), {}, "an array of shape (9,): say what its axes are"),
        ((8, 9), {"axes": "yy"}, "axes 'yy' do not go with an array of shape (8, 9)"),
        ((8, 9), {"axes": "cyx"}, "axes 'cyx' do not go with an array of shape (8, 9)"),
        ((8, 9, 3), {"axes": "yxs"}, "axes 'yxs' do not go with"),
        ((0, 9), {}, "axes 'yx' do not go with an array of shape (0, 9)"),
        ((2, 8, 9), {"axes": "zyx", "channel_axis": 0}, "channel_axis 0 is not where axes 'zyx' have c"),
        ((2, 8, 9), {"channel_axis": 3}, "channel_axis 3 is none of an array of shape (2, 8, 9)"),
        ((8, 9), {"pixel_size": 0.0}, "array: pixel_size 0.0 is no size; give micrometres"),
        ((8, 9), {"channels": ["a", "b"]}, "array: 2 names of channels (a, b) for 1 channels"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(
    shape: tuple[int, ...], known: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RefusedError, match=re.escape(reason)):
        source(np.zeros(shape, np.uint8), **known)


@pytest.mark.parametrize("dtype", [np.int64, bool, np.complex64])
def test_pixels_of_a_type_that_images_do_not_have_are_refused(dtype: type) -> None:
    with pytest.raises(RefusedError, match=r"array: pixels of type .* are not supported; convert them to one of uint8"):
        source(np.zeros((8, 9), dtype))


def test_dimensions_of_xarray_are_read_by_name_and_unnamed_ones_are_not_guessed() -> None:
    data = np.arange(48, dtype=np.uint16).reshape(2, 4, 6)
    named = xarray.DataArray(data, dims=["Channel", "y", "x"], coords={"Channel": ["a", "b"]})
    assert source(named).image.axes == "cyx"
    assert source(xarray.DataArray(data[0])).image.axes == "yx"
    with pytest.raises(RefusedError, match="an array of dimensions depth, y, x and shape"):
        source(xarray.DataArray(data, dims=["depth", "y", "x"]))
    coordinates = xarray.DataArray(data, dims=["c", "y", "x"], coords={"c": ["a", "b"]})
    assert source(coordinates).image.channels == ("a", "b")


def test_windows_are_read_in_the_order_of_the_axes_that_were_said() -> None:
    data = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    found = source(data, axes="xcyz").channels((1, 0), 0, 2, Window.of(1, 4, 0, 2))
    assert np.array_equal(found, data[:, [1, 0]][:, :, 1:4, 2].transpose(1, 2, 0))


def test_a_pixel_size_is_of_both_axes_or_of_each() -> None:
    data = np.zeros((3, 8, 9), np.uint8)
    assert pixel_size_um(source(data, axes="zyx", pixel_size=0.5).image, 0) == (0.5, 0.5)
    assert pixel_size_um(source(data, axes="zyx", pixel_size=(0.5, 2)).image, 0) == (0.5, 2.0)
    assert pixel_size_um(source(data, axes="zyx").image, 0) is None


def test_colours_have_the_names_and_values_that_they_have_in_a_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = source(pixels)
    with open_rasters(str(tmp_path / "a.png")) as opened:
        raster = only_one(opened, "a.png")
        assert found.image.channels == raster.channels == ("red", "green", "blue")
        window = Window.of(2, 12, 3, 30)
        np.testing.assert_array_equal(found.channels(range(3), 0, 0, window), raster.read(0, 0, range(3), window))


def test_lists_are_arrays() -> None:
    assert source([[1.0, 2.0], [3.0, 4.0]]).image.levels[0].shape == (2, 2)
