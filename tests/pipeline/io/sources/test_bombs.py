"""Files that say they are large, or never end, are one failed image each, in seconds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from chorus.pipeline.errors import ChorusError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.raster_files import find_files
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import expand, find_images
from tests.support.making import write_image

SECONDS = 20


def empty_image(url: Path, shape: tuple[int, ...], axes: str = "yx", chunks: tuple[int, ...] = (64, 64)) -> None:
    """An image of `shape` of which no chunk is stored."""
    types = {"t": "time", "c": "channel"}
    told = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": a, "type": types.get(a, "space")} for a in axes],
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(axes)}]}
                ],
            }
        ],
    }
    group = zarr.create_group(str(url), zarr_format=3, attributes={"ome": told})
    group.create_array("0", shape=shape, chunks=chunks, dtype="uint16")


def found(folder: Path) -> list[SourceImage | FailedImage]:
    write_image(folder / "good.ome.zarr", np.ones((32, 32), "uint16"))
    start = time.monotonic()
    images = list(find_images([str(folder)]))
    assert time.monotonic() - start < SECONDS
    assert [image.name for image in images if isinstance(image, SourceImage)] == ["good.ome.zarr"]
    return [image for image in images if isinstance(image, FailedImage)]


@pytest.mark.parametrize(
    "shape, axes, chunks",
    [
        ((1 << 31, 1 << 31), "yx", (64, 64)),
        ((1 << 62, 1 << 62), "yx", (64, 64)),
        ((1 << 40, 64, 64), "tyx", (1, 64, 64)),
        ((1 << 20, 1 << 20, 64, 64), "tzyx", (1, 1, 64, 64)),
        ((1 << 40, 64, 64), "cyx", (1, 64, 64)),
        ((1 << 18, 1 << 18), "yx", (1 << 18, 1 << 18)),
        ((1 << 33, 8), "yx", (1 << 33, 8)),
    ],
)
def test_an_image_that_claims_more_than_any_has_fails_alone(
    tmp_path: Path, shape: tuple[int, ...], axes: str, chunks: tuple[int, ...]
) -> None:
    empty_image(tmp_path / "huge.ome.zarr", shape, axes, chunks)
    (failed,) = found(tmp_path)
    assert "more than" in failed.message


def test_100_000_levels_fail_alone(tmp_path: Path) -> None:
    empty_image(tmp_path / "deep.ome.zarr", (64, 64))
    path = tmp_path / "deep.ome.zarr/zarr.json"
    document = json.loads(path.read_text())
    (multiscale,) = document["attributes"]["ome"]["multiscales"]
    multiscale["datasets"] *= 100_000
    path.write_text(json.dumps(document))
    (failed,) = found(tmp_path)
    assert "levels" in failed.message


@pytest.mark.parametrize("where", ["zarr.json", "0/zarr.json"])
def test_a_pipe_in_place_of_metadata_fails_alone(tmp_path: Path, where: str) -> None:
    empty_image(tmp_path / "pipe.ome.zarr", (64, 64))
    (tmp_path / "pipe.ome.zarr" / where).unlink()
    os.mkfifo(tmp_path / "pipe.ome.zarr" / where)
    (failed,) = found(tmp_path)
    assert "not a file" in failed.message


def test_a_pipe_in_place_of_a_chunk_is_no_pixels(tmp_path: Path) -> None:
    empty_image(tmp_path / "a.ome.zarr", (64, 64))
    (tmp_path / "a.ome.zarr/0/c/0").mkdir(parents=True)
    os.mkfifo(tmp_path / "a.ome.zarr/0/c/0/0")
    array = zarr.open_array(storage.store(str(tmp_path / "a.ome.zarr/0"), read_only=True), mode="r")
    with pytest.raises(RefusedError, match="not a file"):
        array[:]


def test_lists_and_rasters_that_are_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    os.mkfifo(tmp_path / "a.tif")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(RefusedError, match="not a file"):
        expand([str(tmp_path / "list.txt")])
    for name in ("a.tif", "a.png"):
        with pytest.raises(ChorusError, match="not a file"), open_rasters(str(tmp_path / name)):
            pass
    assert len(find_files([str(tmp_path)])) == 2
