"""Files of other formats seen as OME-Zarr: found, read in windows and failed one by one, as OME-Zarr is."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.files.conversion import ConvertSettings, convert_file
from chorus.pipeline.io.files.raster_files import find_files
from chorus.pipeline.io.formats import registry as formats
from chorus.pipeline.io.formats.numpy_files import NPY
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.file_store import FileStore, file_in, source_store
from chorus.pipeline.io.sources.reading import open_level, read_window
from tests.support.format_files import LifImage, write_czi, write_ilastik, write_lif, write_nd2, write_svs
from tests.support.making import pixels, write_image


def write_npy(path: Path) -> None:
    np.save(path, pixels((3, 300, 700)))


def write_tiff(path: Path) -> None:
    tifffile.imwrite(path, pixels((2, 300, 700)), metadata={"axes": "CYX"}, ome=True, tile=(128, 128))


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.czi": lambda path: write_czi(path, [pixels((2, 300, 700)), pixels((2, 90, 100), seed=1)], names=["A", "B"]),
    "a.nd2": lambda path: write_nd2(path, pixels((2, 2, 1, 300, 700, 2)), stages_um=((0.0, 0.0), (9.0, 9.0))),
    "a.lif": lambda path: write_lif(path, [LifImage("one", pixels((1, 1, 2, 300, 700, 2)))]),
    "a.svs": lambda path: write_svs(path, (pixels((720, 880, 3)) % 256).astype(np.uint8)),
    "a.bif": lambda path: write_svs(path, (pixels((720, 880, 3)) % 256).astype(np.uint8)),
    "a.h5": lambda path: write_ilastik(path, pixels((300, 700, 2)), "yxc"),
    "a.npy": write_npy,
    "a.ome.tif": write_tiff,
}


def read(image: SourceImage, window: Window, *, level: int = 0, t: int = 0, z: int = 0) -> np.ndarray[Any, Any]:
    array = open_level(image.url, image.levels[level].path, image.ngff)
    channels = range(len(image.channels))
    return read_window(array, image.axes, t, z, channels, window, strict=True, source=True)


def read_all(images: Sequence[SourceImage | FailedImage]) -> None:
    """Read every plane of images; the message of one that has failed is raised, too."""
    for image in images:
        if isinstance(image, FailedImage):
            raise ImageError(image.message)
        lengths = {"t": 1, "z": 1} | dict(zip(image.axes, image.levels[0].shape, strict=True))
        for t, z in np.ndindex(lengths["t"], lengths["z"]):
            read(image, Window.of(0, lengths["y"], 0, lengths["x"]), t=t, z=z)


def found(*sources: Path) -> list[SourceImage]:
    images = list(find_images([str(source) for source in sources]))
    assert all(isinstance(image, SourceImage) for image in images), images
    return images  # type: ignore[return-value]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_read_directly_has_the_pixels_and_metadata_of_its_conversion(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    (file,) = find_files([str(tmp_path / name)])
    convert_file(file.url, str(tmp_path / "out.ome.zarr"), ConvertSettings(region=256, chunk=64))
    direct, converted = found(tmp_path / name), found(tmp_path / "out.ome.zarr")
    for one, other in zip(direct, converted, strict=True):
        assert (one.axes, one.units, one.channels) == (other.axes, other.units, other.channels)
        finest, stored = one.levels[0], other.levels[0]
        assert (finest.shape, finest.dtype, finest.scale) == (stored.shape, stored.dtype, stored.scale)
        assert finest.translation == stored.translation
        lengths = dict(zip(one.axes, finest.shape, strict=True))
        inner = Window.of(lengths["y"] // 3, lengths["y"], 11, lengths["x"] - 7)
        last = {axis: lengths.get(axis, 1) - 1 for axis in "tz"}
        assert np.array_equal(read(one, inner, **last), read(other, inner, **last))
        assert read(one, inner).any()


def test_a_folder_gives_zarr_and_files_of_microscopes_and_leaves_out_what_may_be_anything(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        write(tmp_path / f"{name[2:].replace('.', '-')}{name[1:]}")
    write_image(tmp_path / "z.ome.zarr", pixels((40, 50)))
    images = found(tmp_path)
    assert [image.name for image in images] == [
        "bif.ome.zarr",
        "czi.ome.zarr/0",
        "czi.ome.zarr/1",
        "lif.ome.zarr",
        "nd2.ome.zarr/0",
        "nd2.ome.zarr/1",
        "svs.ome.zarr",
        "z.ome.zarr",
    ]
    named = found(tmp_path / "h5.h5", tmp_path / "npy.npy", tmp_path / "ome-tif.ome.tif")
    assert [image.name for image in named] == ["h5.ome.zarr", "npy.ome.zarr", "ome-tif.ome.zarr"]


def test_the_levels_of_a_slide_are_those_of_the_file(tmp_path: Path) -> None:
    stored = (pixels((720, 880, 3)) % 256).astype(np.uint8)
    write_svs(tmp_path / "a.svs", stored)
    (image,) = found(tmp_path / "a.svs")
    assert [level.shape for level in image.levels] == [(3, 720, 880), (3, 180, 220)]
    assert image.levels[1].scale[1:] == pytest.approx((4 * 0.499, 4 * 0.499))
    assert image.levels[1].translation[1:] == pytest.approx((1.5 * 0.499, 1.5 * 0.499))
    window = Window.of(20, 180, 30, 220)
    assert np.array_equal(np.moveaxis(read(image, window, level=1), 0, -1), stored[::4, ::4][20:180, 30:220])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.7, 0.98])
def test_a_file_that_is_cut_short_is_one_failed_image_and_the_others_are_done(
    name: str, kept: float, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * kept)])
    write_image(tmp_path / "b.ome.zarr", pixels((40, 50)))
    *images, other = find_images([str(tmp_path / name), str(tmp_path / "b.ome.zarr")])
    assert isinstance(other, SourceImage)
    # Where the header is whole, windows without their pixels say so; none of them is invented.
    with pytest.raises(ImageError, match=name):
        read_all(images)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("a.czi", "pylibCZIrw", "czi"),
        ("a.nd2", "nd2", "nd2"),
        ("a.lif", "liffile", "lif"),
        ("a.bif", "openslide", "slides"),
        ("a.h5", "h5py", "hdf5"),
    ],
)
def test_a_reader_that_is_not_installed_is_one_sentence_that_names_the_extra(
    name: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / name)
    write_image(tmp_path / "b.ome.zarr", pixels((40, 50)))
    monkeypatch.setitem(sys.modules, module, None)
    failed, done = find_images([str(tmp_path / name), str(tmp_path / "b.ome.zarr")])
    assert isinstance(done, SourceImage)
    assert isinstance(failed, FailedImage)
    assert f"install it with `pip install 'chorus-bioimage[{extra}]'`" in failed.message


def test_a_black_file_is_black_and_not_taken_for_damaged(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((70, 80), np.uint16))
    (image,) = found(tmp_path / "a.npy")
    assert not read(image, Window.of(0, 70, 0, 80)).any()


def test_a_file_that_changes_is_opened_again_and_a_store_travels_between_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((70, 80), 3, np.uint16))
    (image,) = found(tmp_path / "a.npy")
    array = open_level(image.url, "s0", "0.5")
    copied = pickle.loads(pickle.dumps(array))
    assert np.array_equal(copied[:], array[:])
    np.save(tmp_path / "a.npy", np.full((60, 80), 5, np.uint16))
    assert open_level(image.url, "s0", "0.5")[:].tolist() == np.full((60, 80), 5).tolist()


def test_a_window_of_a_huge_file_takes_the_memory_of_a_window(tmp_path: Path) -> None:
    header = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint16, shape=(100_000, 100_000))
    header[70_000:70_010, 30_000:30_010] = 7
    del header
    before = psutil.Process().memory_info().rss
    (image,) = found(tmp_path / "a.npy")
    values = read(image, Window.of(69_800, 70_440, 29_800, 30_440))
    assert (values == 7).sum() == 100
    assert psutil.Process().memory_info().rss - before < 200 << 20


def test_nothing_is_written_into_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((70, 80), np.uint16))
    store = source_store(str(tmp_path / "a.npy"))
    assert isinstance(store, FileStore)
    assert store.read_only
    with pytest.raises(ValueError, match="not written"):
        store.with_read_only(False)


def test_a_zarr_or_folder_with_the_name_of_a_file_is_none(tmp_path: Path) -> None:
    write_image(tmp_path / "a.czi", pixels((40, 50)))
    assert file_in(str(tmp_path / "a.czi")) is None
    assert found(tmp_path / "a.czi")[0].levels[0].shape[-2:] == (40, 50)
    assert file_in("gs://bucket/a.czi") is None


def test_files_of_microscopes_on_a_bucket_or_in_memory_are_refused_in_one_sentence() -> None:
    with (
        pytest.raises(ImageError, match="are read on local disks alone; copy it to one first"),
        formats.open_rasters("memory://bucket/a.czi"),
    ):
        pass


class Points:
    """Entry points of plug-ins: one that works, one that takes a suffix that is taken, one that is none."""

    worm = replace(NPY, name="worm", suffixes=(".worm",), in_folders=True, searched=True)
    thief = replace(NPY, name="thief", suffixes=(".tif",))
    nothing = 3


def test_a_plug_in_brings_a_format_and_one_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, f"{__name__}:Points.{name}", formats.GROUP) for name in ("nothing", "thief", "worm")]
    monkeypatch.setattr(formats, "entry_points", lambda group: points)
    formats.registry.cache_clear()
    try:
        np.save(tmp_path / "a.npy", pixels((40, 50)))
        (tmp_path / "a.npy").rename(tmp_path / "a.worm")
        assert np.array_equal(read(found(tmp_path)[0], Window.of(0, 40, 0, 50))[0], pixels((40, 50)))
        first, second = formats.registry().failures
        assert "FormatKind" in first
        assert ".tif is read by another one already" in second
    finally:
        formats.registry.cache_clear()


def test_no_suffix_belongs_to_two_formats_and_every_extra_is_declared() -> None:
    suffixes = [suffix for kind in formats.registry().kinds for suffix in kind.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    for kind in formats.registry().kinds:
        assert bool(kind.modules) == bool(kind.extra)
        assert not kind.extra or kind.extra in extras["optional-dependencies"]
        assert not kind.searched or (kind.windows and kind.in_folders)


def test_the_docs_have_every_format_as_it_is_declared() -> None:
    lines = (Path(__file__).parents[4] / "docs/formats.md").read_text().splitlines()
    rows = {line.split("|")[1].strip(): line.split("|") for line in reversed(lines) if line.startswith("| ")}
    for kind in formats.registry().kinds:
        _, _, files, reader, licence, extra, windows, *_ = rows[kind.name]
        assert all(f"`{suffix}`" in files for suffix in kind.suffixes)
        assert (reader.strip(), licence.strip()) == (kind.reader, kind.licence)
        assert extra.strip().strip("`") == kind.extra
        assert windows.strip() == ("yes" if kind.windows else "no")
