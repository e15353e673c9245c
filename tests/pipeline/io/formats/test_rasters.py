"""Raster files as images of t, c, z, y, x: pixels, names, sizes, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.formats.rasters import PartOf, Raster
from chorus.pipeline.io.formats.registry import open_rasters, stem

DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64"]


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def pixels(raster: Raster) -> np.ndarray:
    """All pixels in t, c, z, y, x, read in windows of 7 x 11."""
    sizes = {axis: raster.lengths.get(axis, 1) for axis in "tczyx"}
    found = np.zeros(tuple(sizes.values()), raster.dtype)
    channels = range(sizes["c"])
    for t in range(sizes["t"]):
        for z in range(sizes["z"]):
            for y in range(0, sizes["y"], 7):
                for x in range(0, sizes["x"], 11):
                    window = Window.of(y, min(y + 7, sizes["y"]), x, min(x + 11, sizes["x"]))
                    found[t, :, z, window.y.slice, window.x.slice] = raster.read(t, z, channels, window)
    return found


def only(path: Path) -> tuple[Raster, np.ndarray]:
    with open_rasters(str(path)) as rasters:
        assert isinstance(rasters, list)
        (raster,) = rasters
        return raster, pixels(raster)


@settings(max_examples=25)
@given(
    axes=st.sampled_from(["YX", "CYX", "ZYX", "TYX", "TZCYX", "CZYX", "TCYX"]),
    lengths=st.lists(st.integers(2, 4), min_size=3, max_size=3),
    plane=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(DTYPES),
    options=st.sampled_from([{}, {"tile": (16, 16)}, {"compression": "zlib", "rowsperstrip": 5}, {"bigtiff": True}]),
    byteorder=st.sampled_from("<>"),
)
def test_every_pixel_of_an_ome_tiff_arrives_in_its_place(
    tmp_path: Path, axes: str, lengths: list[int], plane: tuple[int, int], dtype: str, options: Any, byteorder: str
) -> None:
    data = noise((*lengths[: len(axes) - 2], *plane), dtype)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, data, ome=True, metadata={"axes": axes}, photometric="minisblack", byteorder=byteorder, **options
    )
    raster, found = only(path)
    letters = axes.lower()
    kept = [a for a in "tczyx" if a in letters]
    expected = data.transpose([letters.index(a) for a in kept])
    assert raster.dtype == dtype
    # Axes of one pixel may be left out by the format, not by us.
    assert np.array_equal(found.squeeze(), expected.squeeze())
    assert {a: n for a, n in raster.lengths.items() if n > 1} == {
        a: n for a, n in zip(kept, expected.shape, strict=True) if n > 1
    }


def test_sizes_of_an_ome_tiff_come_in_micrometers_with_its_channel_names(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {
        "axes": "TZCYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 500,
        "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 0.002, "PhysicalSizeZUnit": "mm", "TimeIncrement": 500,
        "TimeIncrementUnit": "ms", "Channel": {"Name": ["DNA", "actin"]},
    }  # fmt: skip
    data = noise((2, 3, 2, 20, 30), "uint16")
    tifffile.imwrite(path, data, metadata=metadata, photometric="minisblack")
    raster, _ = only(path)
    assert raster.channels == ("DNA", "actin")
    assert raster.scale == {"t": 0.5, "z": 2.0, "y": 0.5, "x": 0.5}
    assert raster.units == {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


def test_an_imagej_hyperstack_keeps_axes_calibration_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    data = noise((3, 2, 20, 30), "uint16")
    tifffile.imwrite(
        path, data, imagej=True, resolution=(4, 4), metadata={"axes": "ZCYX", "unit": "um", "spacing": 1.5}
    )
    raster, found = only(path)
    assert raster.axes == "czyx"
    assert np.array_equal(found[0], data.transpose(1, 0, 2, 3))
    assert raster.scale == {"z": 1.5, "y": 0.25, "x": 0.25}
    tifffile.imwrite(path, data[0], imagej=True, metadata={"axes": "CYX", "Labels": ["DNA", "actin"]})
    assert only(path)[0].channels == ("DNA", "actin")


@pytest.mark.parametrize(
    "resolution, unit, size", [(20_000, "CENTIMETER", 0.5), (300, "INCH", None), (72, "INCH", None), (2, "NONE", None)]
)
def test_resolution_tags_are_pixel_sizes_unless_they_are_of_print(
    tmp_path: Path, resolution: int, unit: str, size: float | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((20, 30), "uint8"), resolution=(resolution, resolution), resolutionunit=unit)
    assert only(path)[0].scale == ({} if size is None else {"y": size, "x": size})


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_rgb_samples_become_named_channels(tmp_path: Path, planar: str) -> None:
    data = noise((20, 30, 3), "uint8")
    stored = data if planar == "contig" else data.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    raster, found = only(tmp_path / "a.tif")
    assert (raster.axes, raster.channels) == ("cyx", ("red", "green", "blue"))
    assert np.array_equal(found[0, :, 0], data.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 2), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_of_8_and_16_bits_is_read_exactly(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    data = noise(shape, dtype)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(data))
    raster, found = only(tmp_path / "a.png")
    expected = data[None] if data.ndim == 2 else data.transpose(2, 0, 1)
    assert raster.dtype == dtype
    assert np.array_equal(found[0, :, 0], expected)
    assert len(raster.channels) == (0 if data.ndim == 2 else shape[2])


def test_palette_images_keep_their_indices_and_bits_become_zero_and_one(tmp_path: Path) -> None:
    indices = noise((20, 30), "uint8")
    image = Image.fromarray(indices, "L").copy()
    image.putpalette(noise((768,), "uint8").tolist())
    image.save(tmp_path / "a.png")
    assert np.array_equal(only(tmp_path / "a.png")[1].squeeze(), indices)
    Image.fromarray(indices > 99).save(tmp_path / "b.png")
    assert np.array_equal(only(tmp_path / "b.png")[1].squeeze(), indices > 99)


def test_jpeg_gives_what_pillow_decodes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise((20, 30, 3), "uint8")).save(path)
    with Image.open(path) as image:
        assert np.array_equal(only(path)[1][0, :, 0], np.asarray(image).transpose(2, 0, 1))


def test_pages_without_a_meaning_become_z(tmp_path: Path) -> None:
    data = noise((5, 20, 30), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata=None)
    raster, found = only(tmp_path / "a.tif")
    assert raster.axes == "zyx"
    assert np.array_equal(found[0, 0], data)


def test_a_file_of_a_set_points_to_the_file_where_the_image_begins(tmp_path: Path) -> None:
    data = noise((2, 20, 30), "uint16")
    ids = {name: f"00000000-0000-0000-0000-00000000000{name}" for name in "ab"}
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{n}.ome.tif">urn:uuid:{ids[n]}</UUID>'
        "</TiffData>"
        for z, n in enumerate("ab")
    )
    for z, name in enumerate("ab"):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{ids[name]}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
            'Type="uint16" SizeX="30" SizeY="20" SizeC="1" SizeZ="2" SizeT="1">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", data[z], description=xml, metadata=None)
    assert np.array_equal(only(tmp_path / "a.ome.tif")[1][0, 0], data)
    with open_rasters(str(tmp_path / "b.ome.tif")) as found:
        assert found == PartOf(str(tmp_path / "a.ome.tif"))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"ome": True}, {"imagej": True}])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.97])
def test_a_tiff_that_is_cut_short_is_refused_and_not_filled_up(tmp_path: Path, options: Any, share: float) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((4, 60, 70), "uint16"), photometric="minisblack", **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ImageError, match=r"a\.tif: .*leave it out"):
        only(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0"])
def test_a_file_that_is_no_image_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as raised:
        only(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_data_type_without_a_place_in_the_pipeline_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise((20, 30), "uint64"))
    with pytest.raises(ImageError, match="uint64 is not supported; save it as one of"):
        only(tmp_path / "a.tif")


def test_the_whole_suffix_goes(tmp_path: Path) -> None:
    assert stem("a.b.OME.TIF") == "a.b"
    assert stem("a.tiff") == "a"
    assert stem("a.csv") is None
