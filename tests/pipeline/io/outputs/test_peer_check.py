"""Images as ome-zarr reads them: what was written passes, and what another library would see otherwise does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from chorus.cluster.commands.convert_file import convert_and_record
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.files.conversion import ConvertSettings
from chorus.pipeline.io.files.raster_files import find_files
from chorus.pipeline.io.outputs import peer_check
from chorus.pipeline.io.outputs.peer_check import check_image
from tests.support.making import pixels, write_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of two levels with a label image."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", pixels((300, 400)))
    (file,) = find_files([str(tmp_path / "a.tif")])
    convert_and_record(str(tmp_path), file, ConvertSettings(region=256, chunk=64), strict=True)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r+")
    labels = group.create_group("labels", attributes={"ome": {"version": "0.5", "labels": ["nucleus"]}})
    source = dict(group.attrs["ome"]) | {"image-label": {"version": "0.5"}}  # type: ignore[call-overload]
    nucleus = labels.create_group("nucleus", attributes={"ome": {k: v for k, v in source.items() if k != "omero"}})
    for level in ("s0", "s1"):
        stored = group[level]
        assert isinstance(stored, zarr.Array)
        nucleus.create_array(level, data=(np.asarray(stored[:]) > 500).astype(np.uint32), dimension_names=["y", "x"])
    check_image(str(tmp_path / "a.ome.zarr"))
    return tmp_path / "a.ome.zarr"


def edit(group: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads((group / "zarr.json").read_text())
    change(document["attributes"]["ome"])
    (group / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("group", "change"),
    [
        ("labels/nucleus", lambda ome: ome.pop("multiscales")),
        (".", lambda ome: ome.update(version="0.99")),
        (".", lambda ome: ome["multiscales"][0]["axes"].pop()),
        (".", lambda ome: ome["multiscales"][0]["datasets"][1].update(path="s7")),
    ],
)
def test_metadata_that_is_not_valid_is_an_error(group: str, change: Callable[[Any], Any], image: Path) -> None:
    edit(image / group, change)
    with pytest.raises(ImageError, match=r"is no valid \w+ of OME-Zarr"):
        check_image(str(image))


def test_a_level_that_cannot_be_decoded_is_an_error(image: Path) -> None:
    (chunk,) = [path for path in (image / "labels/nucleus/s1/c").rglob("*") if path.is_file()][:1]
    chunk.write_bytes(chunk.read_bytes()[:-4])
    with pytest.raises(ImageError, match=r"labels/nucleus: its coarsest level cannot be read"):
        check_image(str(image))


def test_what_ome_zarr_sees_otherwise_is_an_error(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = peer_check._seen(str(image))
    label = str(image / "labels/nucleus")
    without = {path: levels for path, levels in seen.items() if path != label}
    fewer, other = seen | {label: seen[label][:1]}, seen | {label: [seen[label][0], seen[label][1] + 1]}
    for given, said in ((without, "does not find"), (fewer, "other levels"), (other, "other values")):
        monkeypatch.setattr(peer_check, "_seen", lambda url, given=given: given)
        with pytest.raises(ImageError, match=rf"nucleus: ome-zarr .*{said}"):
            check_image(str(image))


def test_an_image_of_an_older_version_passes(tmp_path: Path) -> None:
    check_image(str(write_image(tmp_path / "old.zarr", pixels((70, 80)), ngff="0.4")))
