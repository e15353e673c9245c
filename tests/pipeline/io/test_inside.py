"""Names that somebody else wrote stay below their root, at every door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import example, given
from hypothesis import strategies as st

from chorus.cluster.commands.convert_file import convert_and_record
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.ledger import Ledger, RegionRecord
from chorus.pipeline.ensembles.entries import ClassEntry
from chorus.pipeline.errors import ChorusError, ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.conversion import ConvertSettings
from chorus.pipeline.io.files.raster_files import RasterFile
from chorus.pipeline.io.inside import fault, inside, is_name
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.report.thumbnails import thumbnail_url
from tests.support.making import write_image, write_light_ensemble

HOSTILE = [
    "..", "../x", "a/../../x", "../../../../planted", "/etc/passwd", "//host/share", "a//b", "./x", "a/.", ". ./x",
    ".. /x", "..\\x", "a\\..\\..\\x", "C:x", "c:/x", "C:\\x", "file:///x", "s3://bucket/x", "memory:/x",
    "%2e%2e/x", "a/%2E%2e/%2e./x", "%2fetc", "a\0b", "a\nb", "a\rb", "a\x1b[31mb", "a\x7fb", "a\x85b", "a\u202eb",
    "a\u2028b", "a\udcffb", "...", "",
]  # fmt: skip
PLAIN = ["0", "A/1/0", "A/1/0/", "nucleus cell", "Zelle-ß", "細胞", "a.b..c", "..a", "a..", "100%", "xy:z", "-1", "~"]


@pytest.mark.parametrize("path", HOSTILE)
def test_what_leaves_its_root_is_refused_in_one_sentence(path: str) -> None:
    assert fault(path)
    with pytest.raises(RefusedError) as caught:
        inside("/data/out", path)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


@pytest.mark.parametrize("path", PLAIN)
def test_plain_paths_are_let_through_as_they_are(path: str) -> None:
    assert inside("s3://bucket/out", path) == f"s3://bucket/out/{path.strip('/')}"


@given(st.text(alphabet="./\\aA%2eEfF:~ \0\n-", max_size=12))
@example("a/..%2f../x")
def test_whatever_is_let_through_lies_below_its_root(path: str) -> None:
    try:
        url = inside("/data/out", path)
    except ChorusError:
        return
    assert Path(url).resolve().is_relative_to("/data/out")
    assert Path(url).resolve() != Path("/data/out")


def test_a_name_is_one_part_of_a_path() -> None:
    assert is_name("nucleus")
    assert not any(map(is_name, ["a/b", "a/", "", "..", "x" * 201]))


def collection(url: Path, series: list[str]) -> None:
    layout = {"version": "0.5", "bioformats2raw.layout": 3}
    group = zarr.create_group(str(url), zarr_format=3, attributes={"ome": layout})
    group.create_group("OME", attributes={"ome": {"version": "0.5", "series": series}})


def test_a_collection_that_lists_an_image_elsewhere_fails_for_that_image_alone(tmp_path: Path) -> None:
    url = tmp_path / "download/x/c.ome.zarr"
    hostile = [path for path in HOSTILE if path.isprintable() and path]
    collection(url, [*hostile, "0", "0/", "0/labels"])
    pixels = np.random.default_rng(0).integers(0, 1000, (64, 64), "uint16")
    write_image(url / "0", pixels)
    write_image(tmp_path / "planted", pixels)
    found = list(find_images([str(url)]))
    good = [image for image in found if isinstance(image, SourceImage)]
    bad = [image for image in found if isinstance(image, FailedImage)]
    assert [image.name for image in good] == ["c.ome.zarr/0"]
    assert len(bad) == len(hostile) + 1
    assert len({image.name for image in found}) == len(found)
    for image in bad:
        assert image.name.startswith("c.ome.zarr/refused-")
        assert image.message.isprintable()
    assert [image for image in bad if "lies within" in image.message]


def test_a_run_over_it_leaves_nothing_outside_of_its_output(tmp_path: Path) -> None:
    url = tmp_path / "download/x/y/z/c.ome.zarr"
    collection(url, ["../../../../planted", "0"])
    pixels = np.random.default_rng(0).integers(0, 1000, (64, 64), "uint16")
    write_image(url / "0", pixels)
    write_image(tmp_path / "download/planted", pixels)
    home = tmp_path / "home/user"
    ensemble = write_light_ensemble(tmp_path / "ensemble", members=1)
    settings = RunSettings(executor="serial", thumbnails=True)
    predict(
        PredictRequest(sources=[str(url)], ensemble=str(ensemble), out=str(home / "data/results"), run=settings),
        Silent(),
    )
    scores = pq.read_table(home / "data/results/scores.parquet").to_pydict()
    assert sorted(scores["status"]) == ["done", "failed"]
    files = {file for file in home.rglob("*") if file.is_file()}
    assert all(file.is_relative_to(home / "data/results") for file in files)
    assert not list(tmp_path.glob("planted*"))


def plate(url: Path, well: str, field: str) -> None:
    told = {
        "version": "0.5", "rows": [{"name": "A"}], "columns": [{"name": "1"}],
        "wells": [{"path": well, "rowIndex": 0, "columnIndex": 0}],
    }  # fmt: skip
    group = zarr.create_group(str(url), zarr_format=3, attributes={"ome": {"version": "0.5", "plate": told}})
    group.create_group("A/1", attributes={"ome": {"version": "0.5", "well": {"images": [{"path": field}]}}})


@pytest.mark.parametrize("well, field", [("../../A/1", "0"), ("A/1", "../../../x"), ("A/1", "/x"), ("A/../../1", "0")])
def test_wells_and_fields_of_a_plate_stay_within_it(tmp_path: Path, well: str, field: str) -> None:
    plate(tmp_path / "p.ome.zarr", well, field)
    (found,) = find_images([str(tmp_path / "p.ome.zarr")])
    assert isinstance(found, FailedImage)
    assert ".." not in found.name


def test_arrays_of_an_image_stay_within_it(tmp_path: Path) -> None:
    write_image(tmp_path / "secret.ome.zarr", np.ones((32, 32), "uint16"))
    write_image(tmp_path / "a.ome.zarr", np.ones((32, 32), "uint16"))
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r+")
    attributes = group.attrs.asdict()
    told = attributes.get("ome", attributes)
    told["multiscales"][0]["datasets"][0]["path"] = "../secret.ome.zarr/0"  # type: ignore[index, call-overload]
    group.attrs.put(attributes)
    with pytest.raises(ImageError, match="the path of an array"):
        open_image(str(tmp_path / "a.ome.zarr"), "image", "", "a")


@pytest.mark.parametrize("name", ["..", "../x", "a\nb", "a\0b", "x" * 201, "\\", "a\u202eb"])
def test_classes_have_plain_names(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        ClassEntry(name=name)


def test_keys_of_a_bucket_and_names_in_tables_stay_below_their_folders(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(RefusedError):
        convert_and_record(out, RasterFile("s3://b/x.tif", "../../x.ome.zarr", ""), ConvertSettings())
    with pytest.raises(RefusedError):
        thumbnail_url(out, "../../../x")
    record = RegionRecord.model_construct(region=0)
    with pytest.raises(RefusedError):
        Ledger(out).record_region("../../x", record)
    assert not storage.exists(out)
