"""The report of a run that is made here by hand, from simulated fields and a posterior drawn from their labels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.report.page import write_report
from chorus.pipeline.report.pictures import draw_views
from tests.support.reports import (
    CHANNELS,
    CLASSES,
    SHAPE,
    Page,
    pixels_of,
    score,
    write_result,
    write_source,
    write_tables,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run over a plate of four fields (one empty), and an image that failed."""
    out, plate = tmp_path / "out", tmp_path / "plate.ome.zarr"
    rows = []
    for field, uncertainty in enumerate((0.02, 0.09, 0.05)):
        path = f"B/02/{field}"
        image, labels = simulate_field(field, SHAPE)
        write_source(plate / path, image[None], "cyx")
        write_result(out, f"plate.ome.zarr/{path}", labels)
        rows.append(score(plate, f"plate.ome.zarr/{path}", uncertainty, path))
    image, labels = simulate_field(3, SHAPE, "empty")
    write_source(plate / "B/02/3", image[None], "cyx")
    rows.append(score(plate, "plate.ome.zarr/B/02/3", None, "B/02/3", status="empty"))
    broken = tmp_path / "broken.zarr"
    rows.append(score(broken, "broken.zarr", None, status="failed", message="broken.zarr: <axes> are missing"))
    write_tables(out, rows)
    return out


def test_page_loads_nothing_from_outside(run: Path) -> None:
    page = Page(write_report(str(run)))
    assert page.loads == []
    assert not re.search(r"url\(|@import", page.source)
    # All that stands there are links that a person may follow.
    assert "http" not in re.sub(r'<a href="https://doi\.org/[^"]*"', "", page.source)


def test_every_picture_is_a_small_image_with_a_description(run: Path) -> None:
    page = Page(write_report(str(run)))
    assert len(page.images) == 3 * 3 + 1
    assert len(page.data["thumbnails"]) == 4
    for image in page.images:
        assert image["alt"]
        shape = pixels_of(image["src"] or "").shape
        assert max(shape) <= 512
        assert (str(shape[0]), str(shape[1])) == (image["height"], image["width"])


def test_images_are_ranked_by_uncertainty_and_the_empty_and_failed_stand_apart(run: Path) -> None:
    page = Page(write_report(str(run), top=2))
    places = [page.source.index(f"</span> plate.ome.zarr/B/02/{field}") for field in (1, 2, 0)]
    assert places == sorted(places)
    assert "lowest uncertainty" in page.words
    failed = page.words[page.words.index("Failed", page.words.index("lowest uncertainty")) :]
    assert "broken.zarr: <axes> are missing" in failed
    assert "no predicted foreground" in page.words


def test_names_and_messages_cannot_bring_markup_into_the_page(run: Path) -> None:
    page = Page(write_report(str(run)))
    assert "<axes>" not in page.source
    assert "&lt;axes&gt;" in page.source


def test_a_run_without_images_gives_a_page_that_says_so(tmp_path: Path) -> None:
    write_tables(tmp_path, [])
    assert "holds no images" in Page(write_report(str(tmp_path))).words


def test_a_run_in_which_no_image_was_done_gives_a_page(tmp_path: Path) -> None:
    write_tables(tmp_path, [score(tmp_path / "a.zarr", "a.zarr", None, status="failed", message="gone")])
    assert "No image has an uncertainty" in Page(write_report(str(tmp_path))).words


def test_a_run_record_with_nothing_in_it_is_enough(run: Path) -> None:
    (run / "run.json").write_text("{}")
    assert len(Page(write_report(str(run))).images) == 10


def test_an_image_whose_source_is_gone_keeps_its_place_and_says_why(tmp_path: Path) -> None:
    _, labels = simulate_field(0, SHAPE)
    write_result(tmp_path, "a.zarr", labels)
    write_tables(tmp_path, [score(tmp_path / "moved.zarr", "a.zarr", 0.1)])
    page = Page(write_report(str(tmp_path)))
    assert len(page.images) == 1
    assert "moved.zarr" in page.words


def test_without_an_uncertainty_map_the_best_of_the_others_is_shown(tmp_path: Path) -> None:
    image, labels = simulate_field(0, SHAPE)
    write_source(tmp_path / "a.zarr", image, "yx")
    for kept, shown in ((CHANNELS[:2], ""), (CHANNELS[:2] + CHANNELS[3:], "epistemic"), ((), "")):
        out = tmp_path / f"out{len(kept)}"
        write_result(out, "a.zarr", labels, kept)
        views = draw_views(str(tmp_path / "a.zarr"), str(out / "images/a.zarr"), CLASSES)
        assert views.uncertainty_name == shown
        assert (views.uncertainty is None) == (shown == "")
        assert views.image is not None
        assert views.outlines is not None


def test_of_channels_times_and_planes_the_first_is_shown_and_named(tmp_path: Path) -> None:
    image, labels = simulate_field(0, SHAPE)
    stack = np.zeros((2, 3, 4, *SHAPE), np.uint16)
    stack[0, 0, 0] = image
    write_source(tmp_path / "a.zarr", stack, "tczyx", ("dna", "actin", "tubulin"))
    write_source(tmp_path / "flat.zarr", image, "yx")
    write_result(tmp_path, "a.zarr", labels, axes="tzyx")
    views = draw_views(str(tmp_path / "a.zarr"), str(tmp_path / "images/a.zarr"), CLASSES)
    assert views.notes == ("first of 2 time points", "first of 4 z planes", "channel dna, one of 3")
    flat = draw_views(str(tmp_path / "flat.zarr"), str(tmp_path / "images/a.zarr"), CLASSES)
    assert views.image is not None
    assert flat.image is not None
    assert views.image.uri == flat.image.uri
    assert views.uncertainty is not None


def test_outlines_lie_on_the_rim_of_the_labels_in_the_class_colour(tmp_path: Path) -> None:
    labels = np.zeros((512, 512), np.uint16)
    labels[100:300, 200:400] = 1
    write_source(tmp_path / "a.zarr", np.arange(512 * 512, dtype=np.uint32).reshape(512, 512).astype(np.uint16), "yx")
    write_result(tmp_path, "a.zarr", labels)
    views = draw_views(
        str(tmp_path / "a.zarr"), str(tmp_path / "images/a.zarr"), [CLASSES[0], ClassInfo("n", "#ff0000")]
    )
    assert views.outlines is not None
    drawn = pixels_of(views.outlines.uri).astype(int)
    red = drawn[..., 0] - drawn[..., 1] > 60
    rows, columns = np.nonzero(red)
    assert abs(rows.min() - 100) <= 2
    assert abs(rows.max() - 299) <= 2
    assert abs(columns.min() - 200) <= 2
    assert not red[110:290, 210:390].any()


def test_an_image_without_a_pyramid_is_read_in_steps(tmp_path: Path) -> None:
    pixels = np.zeros((2500, 2100), np.uint16)
    pixels[1250:] = 1000
    write_source(tmp_path / "a.zarr", pixels, "yx")
    views = draw_views(str(tmp_path / "a.zarr"), str(tmp_path / "none"), CLASSES)
    assert views.image is not None
    assert (views.image.height, views.image.width) == (512, 430)
    shown = pixels_of(views.image.uri)
    assert shown[:250].max() < 20
    assert shown[262:].min() > 235


def test_a_place_without_a_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"run\.json: not found.*chorus predict"):
        write_report(str(tmp_path))
