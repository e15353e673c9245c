"""The plan: what a run costs is what is then done, and a million regions are planned in seconds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planning import synthetic_images
from chorus.cluster.planning.cost import Cost, cost
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import model_grid, plan_images
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.runs.run import PlannedRun
from chorus.cluster.runs.setup import larger_regions
from chorus.cluster.state.ledger import Ledger
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.models import FailedImage
from chorus.pipeline.preprocessing.resampling import AxisMap
from tests.support.making import write_light_ensemble
from tests.support.ngff import multiscales, write_image
from tests.support.plans import planned


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return read_ensemble(str(write_light_ensemble(tmp_path_factory.mktemp("e"), members=3, width=1)))


def counted(images: list[PlannedImage], ensemble: Ensemble, settings: ResultSettings) -> Cost:
    """The cost, region by region and tile by tile."""
    resolved = resolve(settings, ensemble)
    tiles, unique, most, pixels, read = 0, 0, 0, 0, 0
    for image in images:
        grid = model_grid(image, resolved)
        y, x = AxisMap.make(image.model_height, image.height), AxisMap.make(image.model_width, image.width)
        for index in range(image.regions):
            window = image.locate(index).window
            needed = len(list(grid.tiles(Window(y.needed(window.y), x.needed(window.x)))))
            tiles, most, pixels = tiles + needed, max(most, needed), pixels + window.pixels
            read += window.pixels * len(image.channels) * np.dtype(image.dtype).itemsize
        unique += image.planes[0] * image.planes[1] * grid.count
    regions = sum(image.regions for image in images)
    # Four maps (two classes would be two of them) and the labels.
    written = pixels * (2 * (2 + 3) + 1)
    return Cost(len(images), regions, tiles, unique, tiles * 3 * 4, pixels / 1e6, read, written, most)


IMAGES = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2])),
    min_size=1,
    max_size=6,
)


@given(IMAGES, st.sampled_from([64, 128]), st.sampled_from([0.0, 0.25, 0.5]))
def test_cost_is_what_one_gets_by_counting(
    ensemble: Ensemble, shapes: list[tuple[int, int, int, int, int]], region: int, overlap: float
) -> None:
    images = []
    for index, (*shape, shrink) in enumerate(shapes):
        image = planned(f"{index}", tuple(shape), "tzyx", region)
        height, width = (max(1, n // shrink) for n in shape[-2:])
        images.append(replace(image, model_height=height, model_width=width, dtype=["uint8", "uint16"][index % 2]))
    settings = ResultSettings(region=region, chunk=32, overlap=overlap)
    assert cost(ImageTable.collect(images), ensemble, resolve(settings, ensemble)) == counted(
        images, ensemble, settings
    )


def test_labels_alone_cost_a_byte_a_pixel(ensemble: Ensemble) -> None:
    table = ImageTable.collect([planned("a", (100, 200))])
    assert cost(table, ensemble, resolve(ResultSettings(save=[]), ensemble)).bytes_out == 100 * 200


def test_pixels_are_those_of_all_planes() -> None:
    table = ImageTable.collect(
        [planned("a", (2, 3, 50, 70), "tzyx"), planned("b"), planned("c", (2, 3, 50, 70), "tzyx")]
    )
    assert table.pixels.tolist() == [2 * 3 * 50 * 70, 50 * 70, 2 * 3 * 50 * 70]
    examples, kind = table.kinds
    assert [example.name for example in examples] == ["a", "b"]
    assert kind.tolist() == [0, 1, 0]


def test_containers_are_the_roots_of_plates_and_collections() -> None:
    field = replace(planned("p/A/1/0"), root="/p", path="A/1/0", kind="plate")
    series = replace(planned("c/1"), root="/c", path="1", kind="collection")
    table = ImageTable.collect([planned("a"), field, replace(field, name="p/A/1/1", path="A/1/1"), series])
    assert table.containers(np.arange(4)) == {"/p": 1, "/c": 3}
    assert table.containers(np.array([0, 2])) == {"/p": 2}
    assert table.containers(np.array([], np.int64)) == {}


def test_a_million_regions_are_planned_and_listed(ensemble: Ensemble, tmp_path: Path) -> None:
    started = time.perf_counter()
    region, settings = 2048, resolve(ResultSettings(), ensemble)
    table = ImageTable.collect(synthetic_images(100_000, 10, region))
    table.write(str(tmp_path / "images.parquet"))
    table = ImageTable.read(str(tmp_path / "images.parquet"))
    expected = cost(table, ensemble, settings)
    finished = Ledger(str(tmp_path)).scan(table)
    todo = finished.todo(table)
    print(f"\n{len(todo)} regions of {len(table)} images in {time.perf_counter() - started:.1f} s")
    assert (len(table), table.regions, expected.regions) == (100_000, 1_000_000, 1_000_000)
    assert np.array_equal(todo, np.arange(1_000_000))
    assert (finished.remaining(table) == 10).all()
    height = 10 * region - 100
    assert int(table.pixels.sum()) == sum(height * (region - index % 100) for index in range(100_000))
    assert table.find(999_999) == (99_999, 9)
    # A hundred kinds, each counted by hand: a thousand images of a kind cost a thousand times one of it.
    kinds = [cost(ImageTable.collect([table.image(index)]), ensemble, settings) for index in range(100)]
    for name in ("tiles", "unique_tiles", "forward_passes", "bytes_in", "bytes_out"):
        assert getattr(expected, name) == 1000 * sum(getattr(kind, name) for kind in kinds)
    assert expected.most_tiles == max(kind.most_tiles for kind in kinds)


@pytest.mark.parametrize(("tile", "again", "saved"), [(512, 0.20, 0.11), (256, None, None)])
def test_larger_regions_are_advised_where_they_save_passes(
    tile: int, again: float | None, saved: float | None, ensemble: Ensemble
) -> None:
    def of_regions(region: int, edge: int = 8192) -> tuple[Cost, PlannedRun]:
        images, settings = [planned("slide", (edge, edge), region=region)], ResultSettings(region=region, tile=tile)
        request = PredictRequest(sources=["slide"], ensemble=ensemble.url, out="out")
        job = PlannedRun(request, ensemble, resolve(settings, ensemble), ImageTable.collect(images), [])
        return counted(images, ensemble, settings), job

    def advice(job: PlannedRun, actors: int = 1) -> list[str]:
        return larger_regions(job, cost(job.table, ensemble, job.settings), actors)

    (small, job), (large, _), (_, larger) = of_regions(2048), of_regions(4096), of_regions(4096, edge=16384)
    if again is None or saved is None:
        assert small.tiles < 1.15 * small.unique_tiles
        assert advice(job) == []
    else:
        assert small.tiles / small.unique_tiles - 1 == pytest.approx(again, abs=0.005)
        assert 1 - large.tiles / small.tiles == pytest.approx(saved, abs=0.005)
        (said,) = advice(job)
        assert said.startswith(f"{again:.0%} of the tiles are seen twice")
        assert f"--region 4096 has {saved:.0%} fewer passes" in said
    # Where they are large enough, where an image is one region, or too few were left, nothing is said.
    assert advice(larger) == []
    fields = [planned(f"{index}", (1024, 1024), region=2048) for index in range(100)]
    assert advice(replace(job, table=ImageTable.collect(fields))) == []
    assert advice(job, actors=2) == []


@pytest.mark.parametrize("name", ["flows", "flow_variance"])
def test_maps_of_flows_are_refused_where_members_give_none(name: str, ensemble: Ensemble) -> None:
    with pytest.raises(RefusedError, match=f"its members give no flows; leave `{name}` out of --save"):
        resolve(ResultSettings(save=[name]), ensemble)


def test_an_unknown_pixel_size_is_noted_and_an_absurd_one_fails_its_image_alone(
    tmp_path: Path, ensemble: Ensemble
) -> None:
    wanted = ensemble.spec.input.model_copy(update={"pixel_size_um": 0.65})
    sized = replace(ensemble, spec=ensemble.spec.model_copy(update={"input": wanted}))
    for name, unit, size in [("a", None, 0.65), ("b", "micrometer", 352.7778), ("c", "microns", 0.65)]:
        metadata = multiscales("yx")
        metadata["datasets"][0]["coordinateTransformations"][0]["scale"] = [size, size]
        for axis in metadata["axes"]:
            axis.pop("unit")
            axis |= {"unit": unit} if unit else {}
        write_image(tmp_path / f"{name}.zarr", "0.4", "yx", (16, 16), metadata=metadata)
    found = list(plan_images([str(tmp_path)], sized, ResultSettings()))
    failed = [image for image in found if isinstance(image, FailedImage)]
    table = ImageTable.collect(image for image in found if isinstance(image, PlannedImage))
    assert [image.name for image in failed] == ["b.ome.zarr"]
    assert "its pixel size is 352.778 micrometers, the ensemble wants 0.65" in failed[0].message
    note = "the pixel size is unknown: taken as it is, where the ensemble wants 0.65 micrometers"
    assert table.notes == [("a.ome.zarr", note)]
    assert [image.note for image in plan_images([str(tmp_path / "a.zarr")], ensemble, ResultSettings())] == [""]
