"""The image table: any region of a run is found by arithmetic, and the table says which images they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.state.ledger import Finished
from tests.support.plans import planned

IMAGES = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=8
).map(lambda shapes: [planned(f"{i}.ome.zarr", shape, "tzyx") for i, shape in enumerate(shapes)])


@given(IMAGES)
def test_every_region_of_the_run_is_one_region_of_one_image(images: list[PlannedImage]) -> None:
    table = ImageTable.collect(images)
    found = [table.find(region) for region in range(table.regions)]
    assert found == [(i, place) for i, image in enumerate(images) for place in range(image.regions)]
    assert [table.first_region(i) for i in range(len(images))] == [found.index((i, 0)) for i in range(len(images))]
    assert [table.image(i) for i in range(len(images))] == images
    for outside in (-1, table.regions):
        with pytest.raises(IndexError):
            table.find(outside)


@given(IMAGES)
def test_the_regions_of_an_image_cover_every_pixel_of_every_plane_once(images: list[PlannedImage]) -> None:
    for image in images:
        seen = np.zeros(image.output_shape, np.uint8)
        for index in range(image.regions):
            place = image.locate(index)
            seen[place.t, place.z, place.window.y.slice, place.window.x.slice] += 1
        assert (seen == 1).all()
        assert image.pixels == seen.size


@given(IMAGES, st.data())
def test_what_is_left_is_what_is_not_recorded(images: list[PlannedImage], data: st.DataObject) -> None:
    table = ImageTable.collect(images)
    regions = np.array(data.draw(st.lists(st.booleans(), min_size=table.regions, max_size=table.regions)), bool)
    done = np.array(data.draw(st.lists(st.booleans(), min_size=len(images), max_size=len(images))), bool)
    finished = Finished(regions, done)
    expected = [r for r in range(table.regions) if not regions[r] and not done[table.find(r)[0]]]
    assert finished.todo(table).tolist() == expected
    left = [sum(not regions[table.first_region(i) + p] for p in range(im.regions)) for i, im in enumerate(images)]
    assert finished.remaining(table).tolist() == left


def test_a_table_comes_back_from_storage(tmp_path: Path) -> None:
    table = ImageTable.collect([planned("a"), planned("b", (2, 300, 70), "zyx")])
    table.write(f"{tmp_path}/plan/images.parquet")
    read = ImageTable.read(f"{tmp_path}/plan/images.parquet")
    assert [read.image(i) for i in range(2)] == [table.image(i) for i in range(2)]
    assert read.region_counts.tolist() == table.region_counts.tolist() == [2, 20]
    assert read.same_images(table)


def test_a_table_of_no_images_is_a_table(tmp_path: Path) -> None:
    table = ImageTable.collect([])
    table.write(f"{tmp_path}/images.parquet")
    read = ImageTable.read(f"{tmp_path}/images.parquet")
    assert (len(read), read.regions, read.names) == (0, 0, [])
    assert read.same_images(table)


def test_the_digest_names_the_images_and_not_the_cut() -> None:
    base = planned("a")
    digest = ImageTable.collect([base]).digest
    assert ImageTable.collect([replace(base, region=128)]).digest == digest
    others = [replace(base, dtype="uint8"), planned("b"), planned("a", (50, 71)), replace(base, channels=(1,))]
    assert len({digest, *(ImageTable.collect([other]).digest for other in others)}) == 5


def test_images_that_failed_are_left_aside_by_name_and_by_plate() -> None:
    names = ["a.ome.zarr", "a.ome.zarr2", "p.ome.zarr/A/1/0", "p.ome.zarr/A/10/0", "q.ome.zarr/A/1/0"]
    table = ImageTable.collect([planned(name, (100 + i, 10)) for i, name in enumerate(names)])
    assert table.without([]).same_images(table)
    assert table.without(["a.ome.zarr", "p.ome.zarr/A/1"]).names == ["a.ome.zarr2", *names[3:]]
    left = table.without(["p.ome.zarr"])
    assert left.names == [names[0], names[1], names[4]]
    assert left.image(2) == table.image(4)
    assert left.same_images(ImageTable.collect([table.image(i) for i in (0, 1, 4)]))
    assert not left.same_images(table)


@pytest.mark.parametrize("count", [9_999, 10_000, 10_001])
def test_many_images_are_kept_in_order(count: int) -> None:
    table = ImageTable.collect(planned(f"{i}") for i in range(count))
    assert len(table) == count
    assert table.image(count - 1).name == str(count - 1)
    assert table.find(2 * count - 1) == (count - 1, 1)
