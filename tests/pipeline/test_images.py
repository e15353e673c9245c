"""Finding images: both NGFF versions, plates, collections, folders, broken files, and other storages."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from fsspec.implementations.local import LocalFileSystem
from moto.server import ThreadedMotoServer

from pipeline import storage
from pipeline.errors import RefusedError
from pipeline.geometry import Window
from pipeline.images import expand, find_images
from pipeline.layout import FailedImage, SourceImage
from pipeline.ngff import DTYPES, collection_series, plate_metadata, well_metadata
from pipeline.reading import open_level, read_window

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
FORMATS = {"0.4": 2, "0.5": 3}


def write_group(url: str, ngff: str, metadata: dict[str, Any]) -> None:
    attributes = {"ome": {"version": "0.5", **metadata}} if ngff == "0.5" else metadata
    zarr.open_group(url, mode="a", zarr_format=FORMATS[ngff]).attrs.update(attributes)


def multiscales(axes: str, levels: int = 1, **more: Any) -> dict[str, Any]:
    datasets = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": [float(2**i)] * len(axes)}]}
        for i in range(levels)
    ]
    units = {"space": {"unit": "micrometer"}}
    listed = [{"name": axis, "type": TYPES[axis], **units.get(TYPES[axis], {})} for axis in axes]
    return {"axes": listed, "datasets": datasets, **more}


def write_image(
    url: str | Path,
    ngff: str = "0.5",
    axes: str = "cyx",
    shape: tuple[int, ...] = (2, 16, 16),
    *,
    dtype: str = "uint16",
    levels: int = 1,
    metadata: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    options: dict[str, Any] = {"zarr_format": FORMATS[ngff], "chunks": tuple(min(4, n) for n in shape)}
    if ngff == "0.5":
        options["shards"] = tuple(2 * chunk for chunk in options["chunks"])
    else:
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    write_group(str(url), ngff, {"multiscales": [metadata or multiscales(axes, levels)], **more})
    for level in range(levels):
        array = zarr.create_array(f"{url}/{level}", shape=shape, dtype=dtype, **options)
        array[...] = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return str(url)


def write_plate(url: str | Path, ngff: str, *, missing: str = "") -> str:
    wells = ["A/1", "A/2", "B/1"]
    plate = {
        "columns": [{"name": "1"}, {"name": "2"}],
        "rows": [{"name": "A"}, {"name": "B"}],
        "wells": [{"path": w, "rowIndex": "AB".index(w[0]), "columnIndex": int(w[2]) - 1} for w in wells],
        "acquisitions": [{"id": 0, "name": "first"}],
        "name": "screen",
    }
    write_group(str(url), ngff, {"plate": plate})
    for well in wells:
        if well != missing:
            write_group(f"{url}/{well}", ngff, {"well": {"images": [{"path": "0", "acquisition": 0}, {"path": "1"}]}})
            for field in "01":
                write_image(f"{url}/{well}/{field}", ngff, "yx", (8, 8))
    return str(url)


def names(*sources: str | Path) -> list[str]:
    found = list(find_images([str(source) for source in sources]))
    assert not [image for image in found if isinstance(image, FailedImage)]
    return [image.name for image in found]


def only(source: str | Path) -> SourceImage:
    (image,) = find_images([str(source)])
    assert isinstance(image, SourceImage), image
    return image


def failure(source: str | Path) -> str:
    (image,) = find_images([str(source)])
    assert isinstance(image, FailedImage), image
    assert image.message.startswith(image.root)
    assert "\n" not in image.message
    return image.message


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


def refused(source: str | Path) -> str:
    with pytest.raises(RefusedError) as caught:
        list(find_images([str(source)]))
    assert str(caught.value).startswith(str(source))
    return str(caught.value)


def test_a_named_source_that_is_no_ome_zarr_is_refused_with_the_mend(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "two"), shape=(4, 4), dtype="u1", zarr_format=2)
    zarr.create_array(str(tmp_path / "three"), shape=(4, 4), dtype="u1")
    (tmp_path / "image.tif").write_bytes(b"II*")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "two": "a plain Zarr array",
        "three": "a plain Zarr array",
        "image.tif": "a file",
        "empty": "an empty folder",
        ".": "a folder without any",
    }.items():
        message = refused((tmp_path / name).resolve())
        assert f"holds no OME-Zarr image, it is {words}; give" in message
        assert message.endswith("convert TIFF and PNG first with `chorus convert`")
    assert refused(tmp_path / "none").endswith("none: not found; check the path or URL")


def test_a_folder_without_permission_is_refused_named_and_fails_alone_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.zarr")
    (tmp_path / "closed").mkdir()
    listing = LocalFileSystem.ls

    def closed(fs: LocalFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listing(fs, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", closed)
    assert "permission denied" in refused(tmp_path / "closed")
    found = list(find_images([str(tmp_path)]))
    assert [type(image) for image in found] == [SourceImage, FailedImage]


def test_sources_are_expanded_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b.zarr", "a.zarr", "c[1].zarr"):
        (tmp_path / name).mkdir()
    listing = tmp_path / "list.txt"
    listing.write_text(f"# wells\n{tmp_path}/z.zarr\n\n{tmp_path}/a.zarr\ns3://bucket/x.zarr/\n")
    found = expand([f"{tmp_path}/c[1].zarr", f"{tmp_path}/[ab].zarr", str(listing), f"file://{tmp_path}/b.zarr"])
    local = [str(tmp_path / name) for name in ("c[1].zarr", "a.zarr", "b.zarr")]
    assert found == [*local, f"{tmp_path}/z.zarr", "s3://bucket/x.zarr"]
    assert expand(found) == found


def test_a_glob_without_a_match_and_a_list_that_is_not_there_are_refused(tmp_path: Path) -> None:
    assert "matches nothing" in refused(tmp_path / "*.zarr")
    assert "not found" in refused(tmp_path / "list.txt")


def test_images_are_found_in_memory() -> None:
    root = f"memory://images-{os.getpid()}"
    write_image(f"{root}/deep/a.zarr", "0.4")
    write_image(f"{root}/b.zarr")
    assert names(root) == ["b.ome.zarr", "a.ome.zarr"]
    assert names(f"{root}/*.zarr") == ["b.ome.zarr"]
    assert "not found" in refused(f"{root}/none")


class RangeHandler(SimpleHTTPRequestHandler):
    """Python's file server with what every real one has: range requests, which sharded arrays need."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        file, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if "forbidden" in self.path:
            return self.send_error(403)
        if not (wanted and file.is_file()):
            return super().do_GET()
        data = file.read_bytes()
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()  # type: ignore[union-attr]
        start, stop = (int(first), int(last or len(data)) + 1) if first else (len(data) - int(last), len(data))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data[start:stop])))
        self.end_headers()
        self.wfile.write(data[start:stop])
        return None


@pytest.fixture
def http(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_images_and_plates_are_read_over_http(tmp_path: Path, http: str, ngff: str) -> None:
    write_image(tmp_path / "a.zarr", ngff)
    write_plate(tmp_path / "p.zarr", ngff)
    assert names(f"{http}/a.zarr/", f"{http}/p.zarr")[:2] == ["a.ome.zarr", "p.ome.zarr/A/1/0"]
    array = open_level(f"{http}/a.zarr", "0")
    window = Window.of(2, 7, 3, 15)
    expected = np.arange(512).reshape(2, 16, 16)[:, 2:7, 3:15]
    np.testing.assert_array_equal(read_window(array, "cyx", 0, 0, [0, 1], window, strict=True), expected)
    np.testing.assert_array_equal(read_window(array, "cyx", 0, 0, [1, 0], window), expected[::-1])


def test_http_sources_that_are_no_image_are_refused(tmp_path: Path, http: str) -> None:
    write_image(tmp_path / "folder/a.zarr")
    for name in ("folder", "none"):
        assert "folders cannot be listed over HTTP" in refused(f"{http}/{name}")
    assert "403" in refused(f"{http}/forbidden.zarr")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    fs, _ = storage.filesystem("s3://bucket")
    type(fs).clear_instance_cache()  # an instance keeps the endpoint that it was made with
    yield "s3://bucket"
    type(fs).clear_instance_cache()
    server.stop()


def test_images_are_found_in_a_bucket_and_a_missing_bucket_is_said(s3: str) -> None:
    fs, bucket = storage.filesystem(s3)
    fs.mkdir(bucket)
    write_image(f"{s3}/day/a.zarr")
    write_image(f"{s3}/day/two/b.zarr", "0.4")
    assert names(s3) == ["a.ome.zarr", "b.ome.zarr"]
    assert names(f"{s3}/*/a*") == ["a.ome.zarr"]
    array = open_level(f"{s3}/day/a.zarr", "0")
    assert read_window(array, "cyx", 0, 0, [1], Window.of(0, 1, 0, 3), strict=True).tolist() == [[[256, 257, 258]]]
    assert "no such bucket" in refused("s3://other-bucket/a.zarr")
    assert "not found" in refused(f"{s3}/none")


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
