"""Thumbnails: three panels in one small file, whatever of them can be drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.errors import OutputError
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.report.thumbnails import SIDE, draw_thumbnail, thumbnail_url, thumbnails_present, write_thumbnail
from tests.support.reports import CLASSES, write_result, write_source

GREEN = (CLASSES[0], ClassInfo("nucleus", "#00ff00"))


def panels(webp: bytes) -> list[NDArray[np.int16]]:
    """Image, outlines, uncertainty."""
    strip = np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"), np.int16)
    width = (strip.shape[1] - 8) // 3
    return [strip[:, left : left + width] for left in (0, width + 4, 2 * (width + 4))]


@pytest.fixture
def square(tmp_path: Path) -> tuple[str, str]:
    """A bright square on a ramp, found as it is: the URLs of source and result."""
    labels = np.zeros((400, 600), np.uint16)
    labels[100:300, 200:400] = 1
    ramp = np.broadcast_to(np.arange(600, dtype=np.uint16), labels.shape)
    write_source(tmp_path / "a.zarr", ramp + 2000 * labels, "yx")
    write_result(tmp_path, "a.zarr", labels)
    return str(tmp_path / "a.zarr"), str(tmp_path / "images/a.zarr")


def test_the_panels_show_the_image_its_outlines_and_where_the_uncertainty_is(square: tuple[str, str]) -> None:
    source, result = square
    image, outlines, uncertainty = panels(draw_thumbnail(source, result, result, GREEN))
    assert image.shape == (SIDE * 400 // 600, SIDE, 3)
    scale = SIDE / 600
    inside = image[int(150 * scale) : int(250 * scale), int(250 * scale) : int(350 * scale)]
    assert inside.mean() > image[:20].mean() + 100
    green = outlines[..., 1] - outlines[..., 0] > 80
    rows, columns = np.nonzero(green)
    assert rows.min() == pytest.approx(100 * scale, abs=2)
    assert columns.max() == pytest.approx(400 * scale, abs=2)
    assert not green[int(130 * scale) : int(270 * scale), int(230 * scale) : int(370 * scale)].any()
    middle = uncertainty[int(200 * scale), :, 0]
    assert abs(int(np.argmax(middle[: SIDE // 2])) - 200 * scale) <= 2


def test_a_panel_that_cannot_be_drawn_is_crossed_out_and_the_others_are_there(square: tuple[str, str]) -> None:
    source, result = square
    whole = panels(draw_thumbnail(source, result, result, GREEN))
    without_source = panels(draw_thumbnail(source + "-gone", result, result, GREEN))
    without_result = panels(draw_thumbnail(source, result + "-gone", result + "-gone", GREEN))
    assert np.abs(without_source[2] - whole[2]).mean() < 3
    assert np.abs(without_result[0] - whole[0]).mean() < 3
    for crossed in (*without_source[:2], *without_result[1:]):
        assert set(crossed.flatten().tolist()) <= set(range(60, 180))


def test_a_damaged_level_is_no_error(square: tuple[str, str]) -> None:
    source, result = square
    for chunk in Path(source).rglob("c/*/*"):
        if chunk.is_file():
            chunk.write_bytes(b"torn")
    image, _, uncertainty = panels(draw_thumbnail(source, result, result, GREEN))
    assert image.max() < 170
    assert uncertainty.max() > 100


def test_a_thumbnail_is_found_by_its_image_also_that_of_a_field(square: tuple[str, str], tmp_path: Path) -> None:
    source, result = square
    out = str(tmp_path)
    names = {"a.zarr", "plate.ome.zarr/B/02/0", "plate.ome.zarr/B/02/1", "50 % of #1.ome.zarr"}
    assert thumbnails_present(out) == set()
    written = {name: write_thumbnail(out, name, source, result, GREEN) for name in names}
    assert thumbnails_present(out) == names
    assert all(Path(thumbnail_url(out, name)).read_bytes() == data for name, data in written.items())


def test_a_thumbnail_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    image, labels = simulate_field(0, (512, 512))
    write_source(tmp_path / "a.zarr", image[None], "cyx")
    write_result(tmp_path, "a.zarr", labels)
    url = str(tmp_path / "images/a.zarr")
    first = draw_thumbnail(str(tmp_path / "a.zarr"), url, url, CLASSES)
    assert first == draw_thumbnail(str(tmp_path / "a.zarr"), url, url, CLASSES)
    assert len(first) < 40_000


def test_the_channel_that_was_segmented_is_shown(tmp_path: Path) -> None:
    image, labels = simulate_field(0, (256, 256))
    write_source(tmp_path / "a.zarr", np.stack([np.zeros_like(image), image]), "cyx", ("actin", "dna"))
    write_source(tmp_path / "dna.zarr", image, "yx")
    write_result(tmp_path, "a.zarr", labels)
    url = str(tmp_path / "images/a.zarr")
    assert draw_thumbnail(str(tmp_path / "a.zarr"), url, url, CLASSES, 1) == draw_thumbnail(
        str(tmp_path / "dna.zarr"), url, url, CLASSES
    )


def test_storage_that_takes_no_thumbnail_is_an_error(square: tuple[str, str], tmp_path: Path) -> None:
    source, result = square
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(OutputError, match="thumbnails"):
        write_thumbnail(str(tmp_path), "a.zarr", source, result, GREEN)
