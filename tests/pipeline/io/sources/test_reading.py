"""Channels, levels and windows: against NumPy's own slicing, damaged files and real data."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import Level, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import (
    LevelChoice,
    choose_channels,
    choose_level,
    open_level,
    pixel_size_um,
    read_window,
    unknown_pixel_size,
)


def image(
    channels: tuple[str, ...] = ("0",),
    sizes: tuple[tuple[float, float], ...] = ((1.0, 1.0),),
    unit: str | None = "micrometer",
) -> SourceImage:
    levels = tuple(
        Level(str(i), (len(channels), 64, 64), (1, 32, 32), "uint16", (1.0, *size), (0.0, 0.0, 0.0))
        for i, size in enumerate(sizes)
    )
    units = (None, unit, unit)
    return SourceImage("/data/a.zarr", "image", "", "a.ome.zarr", "0.5", "cyx", units, levels, channels)


def stored(folder: Path, pixels: np.ndarray[Any, Any], **options: Any) -> zarr.Array[Any]:
    array = zarr.create_array(str(folder / "a.zarr"), shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels
    return open_level(str(folder), "a.zarr")


# channels


def test_expected_channel_names_are_found_in_any_case_and_order() -> None:
    assert choose_channels(image(("GFP", "Dapi", "Cy5")), [], ["dapi", "gfp"]) == (1, 0)


def test_equal_numbers_of_channels_are_taken_in_order() -> None:
    assert choose_channels(image(("0", "1")), [], ["dna", "actin"]) == (0, 1)
    assert choose_channels(image(("Hoechst",)), [], ["dna"]) == (0,)


def test_requested_channels_are_names_before_they_are_indices() -> None:
    assert choose_channels(image(("405", "0", "488")), ["0", "2"], ["dna", "actin"]) == (1, 2)
    assert choose_channels(image(("405", "0", "488")), ["488"], ["405"]) == (2,)


def test_an_rgb_image_for_a_one_channel_ensemble_is_asked_for_its_channel() -> None:
    with pytest.raises(ImageError, match=r"red, green, blue.*1 \(dna\); say which with --channel NAME$"):
        choose_channels(image(("red", "green", "blue")), [], ["dna"])


@pytest.mark.parametrize(
    ("channels", "requested", "words"),
    [
        (("a", "b"), ["c"], "no channel 'c'"),
        (("a", "b"), ["2"], "no channel '2'"),
        (("a", "A"), ["a"], "2 channels are called 'a'"),
        (("a", "b"), ["a", "b"], "2 channels were asked for"),
    ],
)
def test_requested_channels_that_do_not_exist_are_refused(
    channels: tuple[str, ...], requested: list[str], words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        choose_channels(image(channels), requested, ["dna"])


# levels

PYRAMID = ((0.25, 0.25), (0.5, 0.5), (1.0, 1.0))


@pytest.mark.parametrize(
    ("sizes", "level", "wanted", "choice"),
    [
        (PYRAMID, None, 0.5, LevelChoice(1, (1.0, 1.0))),
        (PYRAMID, None, 0.54, LevelChoice(1, (1.0, 1.0))),
        (PYRAMID, None, 0.8, LevelChoice(1, (0.625, 0.625))),
        (PYRAMID, None, 4.0, LevelChoice(2, (0.25, 0.25))),
        (PYRAMID, None, 0.125, LevelChoice(0, (2.0, 2.0))),
        (PYRAMID, None, None, LevelChoice(0, (1.0, 1.0))),
        (PYRAMID, 2, None, LevelChoice(2, (1.0, 1.0))),
        (PYRAMID, 2, 0.5, LevelChoice(2, (2.0, 2.0))),
        (PYRAMID, 0, 0.26, LevelChoice(0, (1.0, 1.0))),
        (((0.5, 0.25), (1.0, 0.5)), None, 1.0, LevelChoice(1, (1.0, 0.5))),
    ],
)
def test_the_level_nearest_to_the_wanted_pixel_size_is_taken_without_losing_detail(
    sizes: tuple[tuple[float, float], ...], level: int | None, wanted: float | None, choice: LevelChoice
) -> None:
    assert choose_level(image(sizes=sizes), level, wanted) == choice


def test_without_a_known_unit_images_are_taken_as_they_are() -> None:
    assert choose_level(image(sizes=PYRAMID, unit=None), None, 0.5) == LevelChoice(0, (1.0, 1.0))
    assert choose_level(image(sizes=PYRAMID, unit="furlong"), 1, 0.5) == LevelChoice(1, (1.0, 1.0))
    assert "unknown" in unknown_pixel_size(image(sizes=PYRAMID, unit=None), 0.5)
    assert "'furlong'" in unknown_pixel_size(image(sizes=PYRAMID, unit="furlong"), 0.5)
    assert unknown_pixel_size(image(sizes=PYRAMID, unit="microns"), 0.5) == ""
    assert unknown_pixel_size(image(sizes=PYRAMID, unit=None), None) == ""


@pytest.mark.parametrize(("unit", "size"), [("parsec", 1.0), ("inch", 1 / 72), ("micrometer", 352.7778), ("pm", 1.0)])
def test_an_absurd_pixel_size_fails_the_image_with_a_sentence_that_names_it(unit: str, size: float) -> None:
    with pytest.raises(ImageError, match=r"its pixel size is .* micrometers, the ensemble wants 0\.5"):
        choose_level(image(sizes=((size, size),), unit=unit), None, 0.5)


def test_a_level_out_of_range_is_refused() -> None:
    for level in (3, -1):
        with pytest.raises(ImageError, match=rf"no level {level}; give --level from 0 to 2"):
            choose_level(image(sizes=PYRAMID), level, None)


@pytest.mark.parametrize(("unit", "um"), [("nanometer", 0.5), ("angstrom", 0.05), ("millimeter", 500_000.0)])
def test_units_are_converted_to_micrometres(unit: str, um: float) -> None:
    assert pixel_size_um(image(sizes=((500.0, 500.0),), unit=unit), 0) == pytest.approx((um, um))


# windows


@st.composite
def window_cases(draw: st.DrawFn) -> dict[str, Any]:
    letters = draw(st.sampled_from(["yx", "cyx", "zyx", "tyx", "czyx", "tcyx", "tzyx", "tczyx"]))
    axes = "".join(draw(st.permutations(letters)))
    shape = tuple(draw(st.integers(1, 9 if axis in "yx" else 4)) for axis in axes)
    chunks = tuple(draw(st.integers(1, length)) for length in shape)
    length = dict(zip(axes, shape, strict=True))

    def span(axis: str) -> tuple[int, int]:
        start = draw(st.integers(0, length[axis] - 1))
        return start, draw(st.integers(start + 1, length[axis]))

    zarr_format = draw(st.sampled_from([2, 3]))
    options: dict[str, Any] = {"zarr_format": zarr_format, "chunks": chunks}
    if zarr_format == 3 and draw(st.booleans()):
        options["shards"] = tuple(chunk * draw(st.integers(1, 3)) for chunk in chunks)
    dtype = draw(st.sampled_from(["uint8", ">u2", "int32", "float32"] if zarr_format == 2 else ["uint16", "float16"]))
    return {
        "axes": axes,
        "pixels": np.arange(1, math.prod(shape) + 1).reshape(shape).astype(dtype),
        "options": options,
        "t": draw(st.integers(0, length.get("t", 1) - 1)),
        "z": draw(st.integers(0, length.get("z", 1) - 1)),
        "channels": draw(st.lists(st.integers(0, length.get("c", 1) - 1), min_size=1, max_size=4))
        if "c" in axes
        else [0],
        "window": Window.of(*span("y"), *span("x")),
    }


@given(window_cases())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_window_equals_the_same_slice_of_the_whole_array(case: dict[str, Any]) -> None:
    axes, pixels, window = case["axes"], case["pixels"], case["window"]
    with tempfile.TemporaryDirectory() as folder:
        array = stored(Path(folder), pixels, **case["options"])
        found = read_window(array, axes, case["t"], case["z"], case["channels"], window, strict=True)
    whole = np.moveaxis(pixels, [axes.index(a) for a in "tzcyx" if a in axes], range(len(axes)))
    whole = whole.reshape([dict(zip(axes, pixels.shape, strict=True)).get(a, 1) for a in "tzcyx"])
    expected = whole[case["t"], case["z"], case["channels"], window.y.slice, window.x.slice]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == pixels.dtype.newbyteorder("=")
    assert found.flags.c_contiguous


def test_a_window_outside_the_array_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    array = stored(tmp_path, np.zeros((8, 8), "u1"), chunks=(4, 4))
    for window, channels, z in [
        ((0, 9, 0, 8), [0], 0),
        ((0, 8, -1, 8), [0], 0),
        ((0, 8, 0, 8), [1], 0),
        ((0, 8, 0, 8), [0], 1),
    ]:
        with pytest.raises(ValueError, match="outside an array"):
            read_window(array, "yx", 0, z, channels, Window.of(*window))


def chunk_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json")))


@pytest.mark.parametrize("damage", ["cut", "garbled", "emptied"])
@pytest.mark.parametrize("channels", [[0, 1], [1, 0]])
@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2},
        {"zarr_format": 3},
        {"zarr_format": 3, "compressors": zarr.codecs.GzipCodec()},
        {"zarr_format": 3, "compressors": zarr.codecs.BloscCodec()},
        {"zarr_format": 3, "shards": (2, 32, 32)},
    ],
    ids=["v2", "zstd", "gzip", "blosc", "sharded"],
)
def test_a_damaged_chunk_is_one_sentence_that_names_the_place(
    tmp_path: Path, options: dict[str, Any], channels: list[int], damage: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 1000, (2, 32, 32), np.uint16)
    array = stored(tmp_path, pixels, chunks=(1, 16, 16), **options)
    for file in chunk_files(tmp_path):
        data = file.read_bytes()
        damaged = {"cut": data[: len(data) // 2], "garbled": bytes(b ^ 0x5A for b in data), "emptied": b""}
        file.write_bytes(damaged[damage])
    with pytest.raises(ImageError) as caught:
        read_window(array, "cyx", 0, 0, channels, Window.of(3, 9, 2, 20))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/a.zarr: t 0, z 0, y 3-9, x 2-20: a chunk cannot be decoded (")
    assert message.endswith("copy the image again from its origin")
    assert "\n" not in message
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}, {"shards": (32, 32)}], ids=str)
def test_a_missing_chunk_is_background_unless_strict(tmp_path: Path, options: dict[str, Any]) -> None:
    array = stored(tmp_path, np.ones((64, 64), "u2"), chunks=(16, 16), fill_value=7, **options)
    chunk_files(tmp_path)[-1].unlink()
    last = Window.of(50, 64, 50, 64)
    assert (read_window(array, "yx", 0, 0, [0], last) == 7).all()
    assert (read_window(array, "yx", 0, 0, [0], Window.of(0, 32, 0, 32), strict=True) == 1).all()
    with pytest.raises(ImageError, match=r"a\.zarr: chunk (c/)?[13][/.][13] is missing"):
        read_window(array, "yx", 0, 0, [0], last, strict=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_counted_and_located_in_the_plane(tmp_path: Path, value: float) -> None:
    pixels = np.zeros((2, 20, 20), "f4")
    pixels[1, 7, 11] = pixels[1, 9, 3] = value
    array = stored(tmp_path, pixels, chunks=(1, 8, 8))
    assert read_window(array, "cyx", 0, 0, [0, 1], Window.of(0, 7, 0, 20)).shape == (2, 7, 20)
    with pytest.raises(ImageError, match=r"2 pixels are NaN or infinite, the first at channel 1, y 7, x 11"):
        read_window(array, "cyx", 0, 0, [1], Window.of(5, 20, 2, 20))


def test_storage_that_fails_is_explained_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = stored(tmp_path, np.ones((8, 8), "u2"), chunks=(4, 4))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(array), "get_orthogonal_selection", refuse)
    with pytest.raises(ImageError, match=r"a\.zarr: permission denied"):
        read_window(array, "yx", 0, 0, [0], Window.of(0, 8, 0, 8))


def test_a_level_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="7: not found"):
        open_level(str(tmp_path), "7")


def test_windows_are_read_from_memory_and_errors_name_the_url() -> None:
    url = f"memory://reading-{os.getpid()}"
    pixels = np.arange(1, 257, dtype="u2").reshape(16, 16)
    zarr.create_array(f"{url}/0", shape=(16, 16), chunks=(4, 4), shards=(8, 8), dtype="u2")[...] = pixels
    array = open_level(url, "0")
    found = read_window(array, "yx", 0, 0, [0], Window.of(3, 9, 2, 13), strict=True)
    np.testing.assert_array_equal(found[0], pixels[3:9, 2:13])
    storage.write_bytes(f"{url}/0/c/0/0", b"garbage")
    with pytest.raises(ImageError, match=rf"^memory:/+reading-{os.getpid()}/0: t 0.*cannot be decoded"):
        read_window(array, "yx", 0, 0, [0], Window.of(0, 4, 0, 4))


def test_every_real_image_gives_a_window_of_its_first_channel(shared_data: Path) -> None:
    for source in find_images([str(shared_data / "ome_zarr")]):
        assert isinstance(source, SourceImage)
        array = open_level(source.url, source.levels[0].path)
        pixels = read_window(array, source.axes, 0, 0, [0], Window.of(0, 60, 0, 50))
        assert pixels.shape == (1, 60, 50)
        assert pixels.dtype.name == source.levels[0].dtype
