"""NIfTI, NRRD and MHA as SimpleITK writes them: the same pixels, sizes in micrometres, one sentence for the rest."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import zarr
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.files.conversion import ConvertSettings, convert_file
from chorus.pipeline.io.files.raster_files import find_files
from chorus.pipeline.io.formats.rasters import Raster
from chorus.pipeline.io.formats.registry import open_rasters

SUFFIXES = ("nii", "nii.gz", "nrrd", "mha")
VOLUME = np.random.default_rng(0).integers(0, 60_000, (5, 20, 30)).astype(np.uint16)
NRRD = "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 3 2\nencoding: raw\n"


def write(path: Path, pixels: NDArray[np.generic], spacing: tuple[float, ...], *, vector: bool = False) -> Path:
    """By SimpleITK; `spacing` from x on, in millimetres."""
    image = SimpleITK.GetImageFromArray(pixels, isVector=vector)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def only(path: Path) -> Raster:
    with open_rasters(str(path)) as found:
        assert isinstance(found, list)
        (raster,) = found
        return raster


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_a_volume_has_its_pixels_and_their_sizes(suffix: str, dtype: str, tmp_path: Path) -> None:
    pixels = VOLUME.astype(dtype)
    raster = only(write(tmp_path / f"a.{suffix}", pixels, (0.0005, 0.0006, 0.002)))
    assert (raster.axes, raster.shape, raster.dtype) == ("zyx", (5, 20, 30), dtype)
    assert raster.scale == {"z": 2, "y": 0.6, "x": 0.5}
    assert set(raster.units.values()) == {"micrometer"}
    for z in range(5):
        np.testing.assert_array_equal(raster.read(0, z, range(1), Window.of(3, 17, 4, 29))[0], pixels[z, 3:17, 4:29])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_plane_without_sizes_has_none(suffix: str, tmp_path: Path) -> None:
    raster = only(write(tmp_path / f"a.{suffix}", VOLUME[0], (1.0, 1.0)))
    assert (raster.axes, raster.scale) == ("yx", {})


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "nii.gz"])
def test_values_of_several_components_are_channels(suffix: str, tmp_path: Path) -> None:
    pixels = np.stack([np.moveaxis(VOLUME[first : first + 3], 0, -1) for first in (0, 2)]).astype(np.float32)
    raster = only(write(tmp_path / f"a.{suffix}", pixels, (0.001, 0.001, 0.001), vector=True))
    assert raster.lengths == {"c": 3, "z": 2, "y": 20, "x": 30}
    np.testing.assert_array_equal(raster.read(0, 1, range(3), Window.of(0, 20, 0, 30)), VOLUME[2:].astype(np.float32))


def test_nifti_of_four_axes_has_time(tmp_path: Path) -> None:
    raster = only(write(tmp_path / "a.nii", np.stack([VOLUME, VOLUME[::-1]]), (0.001, 0.001, 0.003, 5.0)))
    assert raster.lengths == {"t": 2, "z": 5, "y": 20, "x": 30}
    assert raster.scale == {"z": 3, "y": 1, "x": 1}
    np.testing.assert_array_equal(raster.read(1, 0, range(1), Window.of(0, 20, 0, 30))[0], VOLUME[-1])


def test_nrrd_names_its_units(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    header = NRRD + 'spacings: 0.5 250\nunits: "um" "nm"\n\n'
    path.write_bytes(header.encode() + bytes(range(6)))
    assert only(path).scale == {"y": 0.25, "x": 0.5}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_convert_keeps_pixels_and_sizes(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{suffix}", VOLUME, (0.0005, 0.0006, 0.002))
    (file,) = find_files([str(path)])
    assert file.name == "a.ome.zarr"
    convert_file(file.url, str(tmp_path / "out"), ConvertSettings(region=64, chunk=32))
    group = zarr.open_group(tmp_path / "out", mode="r")
    np.testing.assert_array_equal(group["s0"][:], VOLUME)  # type: ignore[index]
    (level, *_) = group.attrs["ome"]["multiscales"][0]["datasets"]  # type: ignore[index,call-overload]
    assert level["coordinateTransformations"][0]["scale"] == [2, 0.6, 0.5]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_that_is_cut_short_is_refused(suffix: str, compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    image = SimpleITK.GetImageFromArray(VOLUME)
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
    whole = path.read_bytes()
    for size in (0, 3, 200, len(whole) // 2, len(whole) - 16):  # gzip ends with 8 bytes that are no pixels
        path.write_bytes(whole[:size])
        with pytest.raises(ImageError, match=r"a\.\w+(\.gz)?: (is cut short|is damaged)") as caught:
            only(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.nrrd", NRRD + "data file: secret.raw\n\n", "pixels are in another file"),
        ("a.mha", "ObjectType = Image\nNDims = 2\nElementDataFile = secret.raw\n", "pixels are in another file"),
        ("a.nii.gz", "no gzip", "no gzip file"),
        ("a.mha", "hello", "is damaged, or no .mha file"),
        ("a.nrrd", "hello", "is damaged, or no .nrrd file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(6))
    (tmp_path / name).write_text(content)
    with pytest.raises(ImageError, match=said) as caught:
        only(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_file_in_memory_is_read_as_well(tmp_path: Path) -> None:
    data = write(tmp_path / "a.nii", VOLUME, (1.0, 1.0, 1.0)).read_bytes()
    with open_rasters("b.nii.gz", gzip.compress(data)) as found:
        assert isinstance(found, list)
        np.testing.assert_array_equal(found[0].read(0, 2, range(1), Window.of(0, 20, 0, 30))[0], VOLUME[2])
