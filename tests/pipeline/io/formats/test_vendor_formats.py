"""Files of microscopes and slide scanners: pixels and metadata as they were written, and as other readers read them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import czifile
import liffile
import nd2
import numpy as np
import openslide
import pydicom
import pytest
import tifffile
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.formats.rasters import PartOf, Raster
from chorus.pipeline.io.formats.registry import open_rasters
from tests.support.format_files import (
    LifImage,
    write_czi,
    write_dicom,
    write_ilastik,
    write_lif,
    write_nd2,
    write_plantseg,
    write_svs,
)


def whole(raster: Raster) -> NDArray[Any]:
    """(t, z, c, y, x) of an image, read in windows of 70 x 90."""
    lengths = {"t": 1, "z": 1, "c": 1} | raster.lengths
    found = np.zeros([lengths[axis] for axis in "tzcyx"], raster.dtype)
    for t, z in np.ndindex(lengths["t"], lengths["z"]):
        for y in range(0, lengths["y"], 70):
            for x in range(0, lengths["x"], 90):
                window = Window.of(y, min(y + 70, lengths["y"]), x, min(x + 90, lengths["x"]))
                found[t, z][:, window.y.slice, window.x.slice] = raster.read(t, z, range(lengths["c"]), window)
    return found


@pytest.fixture
def images() -> Any:
    """A function that opens a file and returns its images, open until the test ends."""
    with ExitStack() as stack:

        def opened(path: Path) -> list[Raster]:
            found = stack.enter_context(open_rasters(str(path)))
            assert not isinstance(found, PartOf)
            return found

        yield opened


Images = Callable[[Path], list[Raster]]


def noise(shape: tuple[int, ...], dtype: str = "uint16") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def test_scenes_of_a_czi_are_images_with_their_pixels_names_colours_and_pixel_size(
    images: Images, tmp_path: Path
) -> None:
    scenes = [noise((2, 250, 410)), noise((2, 100, 130))]
    write_czi(tmp_path / "a.czi", scenes, names=["DAPI", "GFP"])
    found = images(tmp_path / "a.czi")
    for raster, pixels in zip(found, scenes, strict=True):
        assert np.array_equal(whole(raster)[0, 0], pixels)
        assert raster.axes == "cyx"
        assert raster.channels == ("DAPI", "GFP")
        assert raster.colors == ("0000FF", "00FFFF")
        assert raster.scale == {"y": 0.5, "x": 0.5}
    with czifile.CziFile(tmp_path / "a.czi") as other:
        mosaic = other.asarray().squeeze()  # (scene, c, y, x) of one plane for both
    assert np.array_equal(mosaic[0, :, :250, :410], whole(found[0])[0, 0])
    assert np.array_equal(mosaic[1, :, :100, -130:], whole(found[1])[0, 0])


@pytest.mark.parametrize("compression", [None, "zstd1:"])
def test_colours_of_a_czi_come_as_red_green_blue(compression: str | None, images: Images, tmp_path: Path) -> None:
    pixels = noise((120, 90, 3), "uint8")
    write_czi(tmp_path / "a.czi", [pixels], compression=compression)
    (raster,) = images(tmp_path / "a.czi")
    assert raster.channels == ("red", "green", "blue")
    assert raster.samples == 3
    assert np.array_equal(np.moveaxis(whole(raster)[0, 0], 0, -1), pixels)
    if compression is None:  # czifile of Python 3.11 knows no zstd
        with czifile.CziFile(tmp_path / "a.czi") as other:
            assert np.array_equal(other.asarray().squeeze(), pixels)


def test_positions_of_an_nd2_are_images_with_time_planes_channels_colours_and_places(
    images: Images, tmp_path: Path
) -> None:
    pixels = noise((2, 3, 4, 80, 100, 2))
    stages = ((1000.0, 2000.0), (1100.0, 2000.0), (1200.0, 2000.0))
    write_nd2(tmp_path / "a.nd2", pixels, stages_um=stages)
    found = images(tmp_path / "a.nd2")
    other = nd2.imread(tmp_path / "a.nd2")  # (t, p, z, c, y, x)
    for position, raster in enumerate(found):
        assert np.array_equal(whole(raster), np.moveaxis(pixels[:, position], -1, 2))
        assert np.array_equal(whole(raster), other[:, position])
        assert raster.axes == "tczyx"
        assert raster.channels == ("DAPI", "GFP")
        assert raster.colors == ("0000FF", "00FF00")
        assert raster.scale == {"t": 2.0, "z": 1.5, "y": 0.5, "x": 0.5}
        assert raster.name == f"A{position}"
        y, x = stages[position]
        assert raster.position == {"y": y - 79 / 4, "x": x - 99 / 4}
        assert raster.acquired == "11/30/2026  10:00:00 AM"


def test_an_nd2_that_lacks_a_frame_is_refused_where_its_library_would_give_zeros(tmp_path: Path) -> None:
    write_nd2(tmp_path / "a.nd2", noise((5, 1, 1, 64, 64, 1)))
    data = (tmp_path / "a.nd2").read_bytes()
    (tmp_path / "a.nd2").write_bytes(data.replace(b"ImageDataSeq|3!", b"ImageDataSeq|9!"))
    assert not nd2.imread(tmp_path / "a.nd2")[3].any()
    with (
        pytest.raises(ImageError, match="frame 3 of 5 is missing, the file was cut short"),
        open_rasters(str(tmp_path / "a.nd2")),
    ):
        pass


def test_compressed_frames_of_an_nd2_are_unpacked_up_to_their_size(images: Images, tmp_path: Path) -> None:
    pixels = noise((2, 1, 1, 64, 64, 2))
    write_nd2(tmp_path / "a.nd2", pixels, pack=zlib.compress)
    (raster,) = images(tmp_path / "a.nd2")
    assert np.array_equal(whole(raster), np.moveaxis(pixels[:, 0], -1, 2))
    write_nd2(tmp_path / "bomb.nd2", pixels, pack=lambda frame: zlib.compress(frame + bytes(1 << 28)))
    (bomb,) = images(tmp_path / "bomb.nd2")
    with pytest.raises(ImageError, match="frame 0 does not unpack to the 16384 bytes that it has"):
        whole(bomb)


def test_images_and_mosaic_tiles_of_a_lif_are_images(images: Images, tmp_path: Path) -> None:
    mosaic = noise((2, 3, 4, 80, 100, 2))
    single = noise((1, 1, 1, 50, 60, 1), "uint8")
    tiles = ((0.001, 0.002), (0.003, 0.004))
    write_lif(tmp_path / "a.lif", [LifImage("one", single), LifImage("many", mosaic, tiles_m=tiles)])
    one, *many = images(tmp_path / "a.lif")
    with liffile.LifFile(tmp_path / "a.lif") as other:
        assert np.array_equal(np.squeeze(whole(one)), other.images[0].asarray())
        assert np.array_equal(np.moveaxis(other.images[1].asarray(), -1, 3), np.stack([whole(tile) for tile in many]))
    assert one.name == "one"
    assert one.axes == "cyx"
    for index, tile in enumerate(many):
        assert np.array_equal(whole(tile), np.moveaxis(mosaic[index], -1, 2))
        assert tile.name == f"many tile {index}"
        assert tile.channels == ("Green", "Red")
        assert tile.colors == ("00FF00", "FF0000")
        assert tile.scale == {"t": 2.0, "z": 0.5, "y": 0.5, "x": 0.5}
        assert tile.position == {axis: metres * 1e6 for axis, metres in zip("yx", tiles[index], strict=True)}


@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
@pytest.mark.parametrize("name", ["tifffile.svs", "openslide.bif"])
def test_a_slide_is_one_image_with_its_levels_and_without_label_and_thumbnail(
    compression: str, name: str, images: Images, tmp_path: Path
) -> None:
    """OpenSlide takes a format by its content, so that a slide of Aperio stands here for those that it reads."""
    pixels = np.ascontiguousarray(noise((90, 110, 3), "uint8").repeat(8, 0).repeat(8, 1))
    write_svs(tmp_path / name, pixels, compression=compression)
    (raster,) = images(tmp_path / name)
    assert raster.shape == (3, 720, 880)
    assert raster.scale == {"y": 0.499, "x": 0.499}
    assert raster.acquired == "11/30/26"
    if name == "tifffile.svs":
        with openslide.OpenSlide(tmp_path / name) as other:
            stored = np.asarray(other.read_region((0, 0), 0, other.dimensions))[..., :3]
    else:
        stored = tifffile.imread(tmp_path / name, series=0, level=0)
    expected = np.moveaxis(stored.astype(int), -1, 0)
    difference = np.abs(whole(raster)[0, 0] - expected)
    assert difference.max() <= (0 if compression == "deflate" else 4)  # two decoders of JPEG round otherwise
    (coarser,) = raster.levels
    assert (coarser.height, coarser.width) == (180, 220)
    small = coarser.read(0, 0, range(3), Window.of(20, 180, 30, 220))
    if compression == "deflate":
        assert np.array_equal(np.moveaxis(small, 0, -1), pixels[::4, ::4][20:180, 30:220])


@pytest.mark.parametrize(("axes", "shape"), [("yx", (60, 70)), ("tzyxc", (2, 3, 40, 50, 2)), ("xyc", (50, 60, 2))])
def test_hdf5_of_ilastik_has_the_axes_that_it_names(
    axes: str, shape: tuple[int, ...], images: Images, tmp_path: Path
) -> None:
    pixels = noise(shape)
    write_ilastik(tmp_path / "a.h5", pixels, axes)
    (raster,) = images(tmp_path / "a.h5")
    order = [axes.index(axis) for axis in "tzcyx" if axis in axes]
    assert np.array_equal(np.squeeze(whole(raster)), np.squeeze(pixels.transpose(order)))


def test_hdf5_of_plantseg_has_its_pixel_size_and_labels_are_left_out(images: Images, tmp_path: Path) -> None:
    pixels = noise((5, 60, 70))
    write_plantseg(tmp_path / "a.h5", pixels, [0.25, 0.1, 0.1])
    (raster,) = images(tmp_path / "a.h5")
    assert raster.name == "raw"
    assert raster.scale == {"z": 0.25, "y": 0.1, "x": 0.1}
    assert np.array_equal(whole(raster)[0, :, 0], pixels)


def test_hdf5_with_pixels_in_another_file_is_refused_and_links_are_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["raw"] = np.ones((8, 8), np.uint8)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["raw"] = h5py.ExternalLink("other.h5", "raw")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("raw", (8, 8), np.uint8, external=[("/etc/hostname", 0, 64)])
    layout = h5py.VirtualLayout((8, 8), np.uint8)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "raw", (8, 8))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    for name, words in {"link": "no dataset", "external": "in another file", "virtual": "in another file"}.items():
        with pytest.raises(ImageError, match=words), open_rasters(str(tmp_path / f"{name}.h5")):
            pass


@pytest.mark.parametrize(
    ("shape", "dtype", "axes"),
    [((40, 50), "float32", "yx"), ((40, 50, 3), "uint8", "cyx"), ((4, 50, 60), "uint16", "zyx")],
)
def test_numpy_arrays_have_axes_by_their_number(
    shape: tuple[int, ...], dtype: str, axes: str, images: Images, tmp_path: Path
) -> None:
    pixels = noise(shape, "uint8").astype(dtype)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "b.npz", first=pixels, about=np.arange(3))
    (raster,), (packed,) = images(tmp_path / "a.npy"), images(tmp_path / "b.npz")
    assert raster.axes == packed.axes == axes
    assert packed.name == "first"
    expected = np.moveaxis(pixels, -1, 0) if axes == "cyx" else pixels
    assert np.array_equal(np.squeeze(whole(raster)), expected)
    assert np.array_equal(np.squeeze(whole(packed)), expected)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match="cannot be read"), open_rasters(str(tmp_path / "a.npy")):
        pass


def test_the_files_of_a_dicom_slide_are_one_image_with_levels(images: Images, tmp_path: Path) -> None:
    pixels = noise((200, 300, 3), "uint8")
    write_dicom(tmp_path, pixels)
    (raster,) = images(tmp_path / "level-0.dcm")
    assert np.array_equal(np.moveaxis(whole(raster)[0, 0], 0, -1), pixels)
    assert raster.scale == {"y": 0.5, "x": 0.5}
    (coarser,) = raster.levels
    small = np.moveaxis(coarser.read(0, 0, range(3), Window.of(0, 50, 0, 75)), 0, -1)
    assert np.array_equal(small, pixels[::4, ::4])
    other = pydicom.dcmread(tmp_path / "level-1.dcm")
    assert np.array_equal(other.pixel_array[0][:50], small[:50, :64])
    with open_rasters(str(tmp_path / "level-1.dcm")) as part:
        assert part == PartOf(str(tmp_path / "level-0.dcm"))


@pytest.mark.parametrize("outside", ["../../secret.dat", "/etc/passwd"])
def test_a_slide_of_several_files_that_names_one_outside_its_folder_is_refused(outside: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"")
    (tmp_path / "a/Slidedat.ini").write_text(f"\ufeff[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = {outside}\n")
    (tmp_path / "b.vms").write_text(f"[Virtual Microscope Specimen]\nImageFile(1,0)={outside}\n")
    for name in ("a.mrxs", "b.vms"):
        with pytest.raises(ImageError, match="names the file"), open_rasters(str(tmp_path / name)):
            pass
