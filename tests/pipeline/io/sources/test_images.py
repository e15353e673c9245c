"""What is read of an OME-Zarr: both NGFF versions, axes, types, plates, collections, folders, broken files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io.models import DTYPES, FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import expand, find_images
from chorus.pipeline.io.sources.ngff import collection_series, plate_metadata, well_metadata
from chorus.pipeline.io.sources.reading import open_level, read_window
from tests.support import making
from tests.support.ngff import TYPES, failure, multiscales, names, only, write_group, write_image, write_plate


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.parametrize(
    "axes", ["yx", "xy", "zyx", "xyz", "cyx", "cxy", "tyx", "tzyx", "czyx", "tcyx", "tczyx", "zcyx"]
)
def test_every_order_of_axes_that_ngff_allows_is_read(tmp_path: Path, ngff: str, axes: str) -> None:
    lengths = {"t": 2, "c": 3, "z": 5, "y": 9, "x": 7}
    url = write_image(tmp_path / "a.zarr", ngff, axes, tuple(lengths[axis] for axis in axes), levels=2)
    if axes == "zcyx":
        assert "space axes must be at the end" in failure(url)
        return
    image = only(url)
    assert (image.root, image.kind, image.path, image.name) == (url, "image", "", "a.ome.zarr")
    assert (image.ngff, image.axes) == (ngff, axes)
    assert image.units == tuple("micrometer" if TYPES[axis] == "space" else None for axis in axes)
    assert image.channels == (("0", "1", "2") if "c" in axes else ("0",))
    assert [level.path for level in image.levels] == ["0", "1"]
    assert image.levels[0].shape == tuple(lengths[axis] for axis in axes)
    assert image.levels[0].chunks == tuple(min(4, lengths[axis]) for axis in axes)
    assert image.levels[1].scale == (2.0,) * len(axes)


def test_axes_are_mapped_by_type_and_without_one_by_name(tmp_path: Path) -> None:
    metadata = multiscales("tcyx")
    for axis, name in zip(metadata["axes"], ["Frame", "Wavelength", "Y", "X"], strict=True):
        axis["name"] = name
    assert only(write_image(tmp_path / "a.zarr", "0.4", shape=(1, 2, 8, 8), metadata=metadata)).axes == "tcyx"
    bare = multiscales("tcyx")
    bare["axes"] = [{"name": letter} for letter in "TCYX"]
    assert only(write_image(tmp_path / "b.zarr", "0.4", shape=(1, 2, 8, 8), metadata=bare)).axes == "tcyx"


def test_transformations_of_dataset_and_multiscales_are_combined(tmp_path: Path) -> None:
    metadata = multiscales("yx")
    metadata["datasets"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [2.0, 3.0]},
        {"type": "translation", "translation": [1.0, 1.0]},
    ]
    metadata["coordinateTransformations"] = [
        {"type": "scale", "scale": [0.5, 0.1]},
        {"type": "translation", "translation": [10.0, 20.0]},
    ]
    level = only(write_image(tmp_path / "a.zarr", axes="yx", shape=(8, 8), metadata=metadata)).levels[0]
    assert level.scale == pytest.approx((1.0, 0.3))
    assert level.translation == pytest.approx((10.5, 20.1))


@pytest.mark.parametrize(
    ("omero", "channels"),
    [
        ({"channels": [{"label": "DAPI"}, {"label": "GFP", "color": "nonsense"}]}, ("DAPI", "GFP")),
        ({"channels": [{"label": "DAPI"}]}, ("DAPI", "1")),
        ({"channels": [{}, {"label": ""}, {"label": "third"}]}, ("0", "1")),
        ({"channels": "nonsense"}, ("0", "1")),
        ({}, ("0", "1")),
        ("nonsense", ("0", "1")),
    ],
)
def test_an_omero_block_names_channels_and_never_fails_an_image(
    tmp_path: Path, omero: Any, channels: tuple[str, ...]
) -> None:
    assert only(write_image(tmp_path / "a.zarr", omero=omero)).channels == channels


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_supported_type_is_read(tmp_path: Path, dtype: str) -> None:
    assert only(write_image(tmp_path / "a.zarr", dtype=dtype)).levels[0].dtype == dtype


def test_big_endian_images_are_read(tmp_path: Path) -> None:
    image = only(write_image(tmp_path / "a.zarr", "0.4", dtype=">u2"))
    array = open_level(image.url, "0")
    assert image.levels[0].dtype == "uint16"
    assert read_window(array, "cyx", 0, 0, [1], Window.of(0, 1, 0, 3)).tolist() == [[[256, 257, 258]]]


@pytest.mark.parametrize("dtype", ["int64", "uint64", "bool", "complex64"])
def test_an_unsupported_type_fails_with_the_mend(tmp_path: Path, dtype: str) -> None:
    message = failure(write_image(tmp_path / "a.zarr", dtype=dtype))
    assert re.search(rf"a\.zarr/0: data type {dtype} is not supported; store the image as one of uint8", message)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.parametrize("missing", ["", "A/2"])
def test_a_plate_gives_its_fields_and_names_a_missing_well(tmp_path: Path, ngff: str, missing: str) -> None:
    root = write_plate(tmp_path / "p.ome.zarr", ngff, missing=missing)
    found = list(find_images([root]))
    paths = ["A/1/0", "A/1/1", *([missing] if missing else ["A/2/0", "A/2/1"]), "B/1/0", "B/1/1"]
    assert [image.path for image in found] == paths
    assert [image.name for image in found] == [f"p.ome.zarr/{path}" for path in paths]
    failed = [image for image in found if isinstance(image, FailedImage)]
    assert [image.path for image in failed] == ([missing] if missing else [])
    assert all(f"{root}/A/2: the group is missing" in image.message for image in failed)
    assert all(image.kind == "plate" for image in found if isinstance(image, SourceImage))


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_metadata_of_plates_are_given_as_of_0_5(tmp_path: Path, ngff: str) -> None:
    root = write_plate(tmp_path / "p.zarr", ngff)
    plate = plate_metadata(root)
    assert (plate.version, plate.name, [well.path for well in plate.wells]) == (
        "0.5",
        "screen",
        ["A/1", "A/2", "B/1"],
    )
    well = well_metadata(root, "A/1")
    assert (well.version, [image.path for image in well.images], well.images[0].acquisition) == (
        "0.5",
        ["0", "1"],
        0,
    )


def test_a_broken_field_or_plate_fails_alone(tmp_path: Path) -> None:
    root = Path(write_plate(tmp_path / "p.zarr", "0.5"))
    (root / "A/1/0/zarr.json").write_text("{")
    write_group(str(tmp_path / "q.zarr"), "0.5", {"plate": {"rows": []}})
    found = list(find_images([str(tmp_path)]))
    failed = {image.name: image.message for image in found if isinstance(image, FailedImage)}
    assert list(failed) == ["p.ome.zarr/A/1/0", "q.ome.zarr"]
    assert "metadata cannot be read" in failed["p.ome.zarr/A/1/0"]
    assert "plate.columns is not valid NGFF (Field required)" in failed["q.ome.zarr"]
    assert len(found) == 7


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.parametrize("listed", [None, ["1", "0"]])
def test_a_collection_gives_its_series(tmp_path: Path, ngff: str, listed: list[str] | None) -> None:
    root = str(tmp_path / "c.zarr")
    write_group(root, ngff, {"bioformats2raw.layout": 3})
    for series in "01":
        write_image(f"{root}/{series}", ngff)
    if listed:
        write_group(f"{root}/OME", ngff, {"series": listed})
    series = listed or ["0", "1"]
    assert collection_series(root) == series
    assert names(root) == [f"c.ome.zarr/{path}" for path in series]
    assert {image.kind for image in find_images([root]) if isinstance(image, SourceImage)} == {"collection"}


def test_a_folder_is_searched_at_any_depth_but_not_within_images(tmp_path: Path) -> None:
    write_image(tmp_path / "deep/er/b.zarr", "0.4")
    write_image(write_image(tmp_path / "a.ome.zarr") + "/labels/nuclei", axes="yx", shape=(8, 8))
    zarr.open_group(str(tmp_path / "group"), mode="w", zarr_format=3)
    write_image(tmp_path / "group/c")
    write_plate(tmp_path / "p.zarr", "0.5")
    zarr.create_array(str(tmp_path / "plain"), shape=(4, 4), dtype="u1", zarr_format=2)
    zarr.create_array(str(tmp_path / "plain3"), shape=(4, 4), dtype="u1")
    (tmp_path / "image.tif").write_bytes(b"II*")
    (tmp_path / ".hidden").symlink_to(tmp_path / "deep")
    (tmp_path / "deep/up").symlink_to(tmp_path)
    fields = [f"p.ome.zarr/{well}/{field}" for well in ["A/1", "A/2", "B/1"] for field in "01"]
    assert names(tmp_path) == ["a.ome.zarr", "b.ome.zarr", "c.ome.zarr", *fields]
    assert names(tmp_path / "a.ome.zarr", tmp_path) == names(tmp_path)


def test_equal_names_are_told_apart_by_their_url(tmp_path: Path) -> None:
    for path in ("x/a.zarr", "y/A.ome.zarr", "y/b.zarr"):
        write_image(tmp_path / path)
    first = names(tmp_path)
    assert re.fullmatch(r"a-[0-9a-f]{6}\.ome\.zarr A-[0-9a-f]{6}\.ome\.zarr b\.ome\.zarr", " ".join(first))
    assert len(set(first)) == 3
    assert names(tmp_path) == first


def broken(metadata: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**metadata, **changes}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (broken(multiscales("cyx"), datasets=[]), "multiscales.0.datasets is not valid NGFF"),
        (broken(multiscales("cyx", 2)), "array '1', listed in multiscales.0.datasets, is missing"),
        (multiscales("yx"), r"shape \(2, 16, 16\) does not go with the axes 'yx'"),
        (broken(multiscales("cyx"), axes="cyx"), "multiscales.0.axes is not valid NGFF"),
        (
            broken(multiscales("cyx"), axes=[{"name": "a", "type": "angle"}, *multiscales("yx")["axes"]]),
            "axis 'a' has type 'angle'.*split the image along it",
        ),
        (
            broken(multiscales("zyx"), axes=[{"name": n, "type": "space"} for n in ("z", "row", "x")]),
            "axis 'row' has type 'space'",
        ),
        (
            broken(multiscales("cyx"), axes=multiscales("czx")["axes"]),
            "axes are 'czx', but y and x are needed",
        ),
        (
            broken(
                multiscales("cyx"),
                datasets=[{"path": "0", "coordinateTransformations": [{"type": "scale", "path": "scales"}]}],
            ),
            "keep numbers in a file",
        ),
    ],
)
def test_invalid_metadata_fail_with_field_and_mend(tmp_path: Path, metadata: dict[str, Any], words: str) -> None:
    assert re.search(words, failure(write_image(tmp_path / "a.zarr", metadata=metadata)))


FUTURE = '{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.6", "multiscales": []}}}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "metadata cannot be read"),
        ("[]", "metadata cannot be read"),
        (FUTURE, "NGFF version 0.6 in Zarr format 3 is not supported"),
    ],
)
def test_unreadable_metadata_fail_one_image(tmp_path: Path, text: str, words: str) -> None:
    (Path(write_image(tmp_path / "a.zarr")) / "zarr.json").write_text(text)
    assert words in failure(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('"shape": "x"', "cannot be read"),
        ('"data_type": "foo"', "'foo'"),
        ('"codecs": [{"name": "rle"}]', "'rle'"),
    ],
)
def test_an_array_that_cannot_be_opened_fails_its_image(tmp_path: Path, change: str, words: str) -> None:
    file = Path(write_image(tmp_path / "a.zarr")) / "0/zarr.json"
    file.write_text(file.read_text().rstrip().removesuffix("}") + f", {change}}}")
    assert words in failure(tmp_path / "a.zarr")


def test_all_real_plates_and_images_are_found(shared_data: Path) -> None:
    root = shared_data / "ome_zarr"
    found = list(find_images([str(root)]))
    assert {type(image) for image in found} == {SourceImage}
    idr = only(root / "6001240_labels_v0.5.zarr")
    assert ([level.path for level in idr.levels], idr.axes, idr.channels) == (
        ["2"],
        "czyx",
        ("LaminB1", "Dapi"),
    )
    wells = {image.name for image in found if "ixm" in image.name}
    assert wells == {f"ixm_plate3434_mip_v05.ome.zarr/B/{well}/{field}" for well in ("02", "03") for field in (0, 1)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("/data/a.zarr\r\n".encode(encoding))
    assert expand([str(tmp_path / "list.txt")]) == ["/data/a.zarr"]


def test_channel_labels_that_are_numbers_are_names(tmp_path: Path) -> None:
    path = making.write_image(tmp_path / "a.ome.zarr", np.zeros((4, 8, 8), np.uint8), "cyx", channels=list("abcd"))
    group = zarr.open_group(path)
    ome = dict(group.attrs["ome"])  # type: ignore[call-overload, arg-type]
    ome["omero"] = {"channels": [{"label": 405}, {"label": "dna"}, {"label": 568.0}, {"label": {}}]}
    group.attrs["ome"] = ome
    (found,) = find_images([str(path)])
    assert isinstance(found, SourceImage)
    assert found.channels == ("405", "dna", "568", "3")
