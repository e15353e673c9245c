"""Tiles of the review page against the arrays that they show, and what is not to be had through it."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
import pytest
import zarr
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

from chorus.pipeline.report.pictures import INFERNO
from chorus.serving.review.app import review_app
from chorus.serving.review.cache import Cache
from chorus.serving.review.tiles import VIRIDIS, lookup, paint_labels
from tests.support.reviews import EVIL, FIELDS, SLIDE, write_review_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def client(out: Path) -> TestClient:
    return TestClient(review_app(str(out)))


def picture(client: TestClient, url: str) -> NDArray[np.uint8]:
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def whole(client: TestClient, layer: str, level: int, query: str = "") -> NDArray[np.uint8]:
    """A level put together from its tiles."""
    layers = client.get(f"/api/image/{SLIDE}").json()["layers"]
    size = next(one for one in layers if one["id"] == layer)["levels"][level]
    rows, columns = -(-size["height"] // 512), -(-size["width"] // 512)

    def tile(y: int, x: int) -> NDArray[np.uint8]:
        return picture(client, f"/api/tiles/{SLIDE}/{layer}/{level}/0/0/{y}/{x}.webp{query}")

    return np.concatenate([np.concatenate([tile(y, x) for x in range(columns)], 1) for y in range(rows)], 0)


@pytest.mark.parametrize("level", [0, 1])
def test_tiles_of_a_channel_are_its_pixels_between_black_and_white(client: TestClient, out: Path, level: int) -> None:
    stored = zarr.open_array(out.parent / "in" / SLIDE / f"s{level}")[1].astype(np.float64)
    expected = np.rint(255 * np.clip((stored - 100) / 400, 0, 1))
    found = whole(client, "channel-1", level, "?low=100&high=500")
    grey = found if found.ndim == 2 else found[..., 0]
    assert grey.shape == stored.shape
    assert np.abs(grey - expected).max() <= 1
    red = whole(client, "channel-1", level, "?low=100&high=500&color=ff8000")
    assert np.abs(red[..., 0] - expected).max() <= 1
    assert np.abs(red[..., 1] - expected * 128 / 255).max() <= 1
    assert not red[..., 2].any()


def test_tiles_of_a_map_have_the_colours_and_the_scale_of_the_report(client: TestClient, out: Path) -> None:
    stored = zarr.open_array(out / "images" / SLIDE / "s0")[2].astype(np.float64)
    expected = matplotlib.colormaps["inferno"](np.clip(stored / 0.25, 0, 1))[..., :3] * 255
    found = whole(client, "map-uncertainty", 0)
    assert np.abs(found[..., :3] - expected).mean() < 1.5
    assert np.abs(found[..., :3] - expected).max() < 12  # eleven colours, and straight lines between them


@pytest.mark.parametrize(("anchors", "name"), [(INFERNO, "inferno"), (VIRIDIS, "viridis")])
def test_colours_are_matplotlibs(anchors: tuple[str, ...], name: str) -> None:
    places = np.linspace(0, 1, 11)
    expected = matplotlib.colormaps[name](places)[:, :3] * 255
    assert np.abs(lookup(anchors)[np.rint(255 * places).astype(int)] - expected).max() < 6


def test_lines_of_labels_meet_across_tiles_and_are_those_of_scikit_image(client: TestClient, out: Path) -> None:
    labels = zarr.open_array(out / "images" / SLIDE / "labels/semantic/s0")[:]
    expected = find_boundaries(labels, mode="inner", connectivity=1)
    found = whole(client, "labels-semantic", 0)
    assert np.array_equal(found[..., 3] == 255, expected)
    assert {tuple(color) for color in found[expected][:, :3].tolist()} == {(0x4D, 0xAF, 0x4A)}
    filled = whole(client, "labels-semantic", 0, "?style=fill")
    assert np.array_equal(filled[..., 3] == 255, labels != 0)


def test_touching_objects_are_told_apart_by_a_line_on_each_side() -> None:
    labels = np.zeros((8, 9), np.uint32)
    labels[1:7, 1:4], labels[1:7, 4:8] = 7, 8
    inner = labels[1:-1, 1:-1]
    found = paint_labels(labels, np.full((9, 3), 200, np.uint8), "line", 1)
    assert np.array_equal(found[..., 3] == 255, find_boundaries(labels, mode="inner", connectivity=1)[1:-1, 1:-1])
    assert (found[..., 3][inner == 7] == 255).sum() == 14


def test_an_image_without_small_levels_is_thinned_out_for_the_overview(tmp_path: Path) -> None:
    from chorus.serving.review.pixels import TILE, Pixels, open_layers
    from tests.support.reports import write_source

    pixels = np.random.default_rng(0).integers(0, 999, (2600, 1900), np.uint16)
    write_source(tmp_path / "a", pixels, "yx")
    layer = open_layers(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "b")).layers["channel-0"]
    assert [(step.height, step.width) for step in layer.steps] == [(2600, 1900), (1300, 950), (650, 475)]
    from chorus.pipeline.core.geometry import Window

    found = Pixels().window(layer, layer.steps[2], 0, 0, Window.of(TILE, 650, 0, 475))
    assert np.array_equal(found, pixels[::4, ::4][TILE:])


def test_values_under_the_pointer_are_those_that_are_stored(client: TestClient, out: Path) -> None:
    found = client.get(f"/api/values/{SLIDE}", params={"y": 0.5001, "x": 0.25}).json()["values"]
    assert found["channel-0"] == zarr.open_array(out.parent / "in" / SLIDE / "s0")[0, 350, 225]
    assert found["map-uncertainty"] == pytest.approx(
        float(zarr.open_array(out / "images" / SLIDE / "s0")[2, 350, 225]), rel=1e-5
    )


@pytest.mark.parametrize(
    "name",
    [
        "../scores.parquet",
        "..%2f..%2fscores.parquet",
        "/etc/passwd",
        "%2e%2e/in/slide.ome.zarr",
        "slide.ome.zarr/s0",
        "",
    ],
)
def test_only_images_of_the_table_are_opened(client: TestClient, name: str) -> None:
    for url in (
        f"thumbnails/{name}",
        f"image/{name}",
        f"tiles/{name}/channel-0/0/0/0/0/0.webp",
        f"values/{name}?y=0&x=0",
    ):
        answer = client.get(f"/api/{url}")
        assert answer.status_code == 404
        assert "root" not in answer.text


def test_a_name_of_any_letters_is_found_and_what_is_missing_is_said_without_inner_paths(
    client: TestClient, out: Path
) -> None:
    answer = client.get(f"/api/image/{quote(EVIL)}")
    assert answer.status_code == 422
    assert str(out) not in answer.json()["detail"]
    assert client.get(f"/api/thumbnails/{quote(EVIL)}").status_code == 200
    assert client.get(f"/api/tiles/{SLIDE}/channel-9/0/0/0/0/0.webp").json()["detail"].endswith("labels-semantic")
    for place in ("5/0/0/0/0", "0/1/0/0/0", "0/0/1/0/0", "0/0/0/2/0", "0/0/0/0/2"):
        assert client.get(f"/api/tiles/{SLIDE}/channel-0/{place}.webp").status_code == 404


def test_pictures_are_not_sent_twice_and_missing_thumbnails_are_made_once(client: TestClient, out: Path) -> None:
    url = f"/api/tiles/{SLIDE}/channel-0/0/0/0/0/0.webp?low=0&high=900"
    first = client.get(url)
    again = client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(url.replace("900", "800")).headers["etag"] != first.headers["etag"]
    thumbnail = client.get(f"/api/thumbnails/{FIELDS[0]}")
    assert Image.open(io.BytesIO(thumbnail.content)).width > 500
    assert (out / "report" / "thumbnails" / f"{FIELDS[0]}.webp").read_bytes() == thumbnail.content


def test_the_memory_of_what_was_read_is_bounded_and_many_who_ask_read_once() -> None:
    reads: list[int] = []
    cache: Cache[bytes] = Cache(1000, len)

    def read(key: int) -> bytes:
        reads.append(key)
        time.sleep(0.02)
        return b"x" * 100

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get(1, lambda: read(1)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [1]
    assert len(found) == 8
    for key in range(2, 30):
        cache.get(key, lambda key=key: read(key))
        assert cache.held <= 1000
    cache.get(29, lambda: read(29))
    assert reads.count(29) == 1
    with pytest.raises(OSError, match="gone"):
        cache.get("bad", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert cache.get("bad", lambda: b"now") == b"now"
