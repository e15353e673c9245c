"""Statistics over all images of a run are those of all their pixels together, whatever the order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import zarr

from chorus.cluster.planning.dataset_statistics import survey_dataset
from chorus.cluster.planning.image_statistics import image_statistics
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext, plan_images
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.runtime.started_tasks import SerialTasks
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.preprocessing.preparation import ALL_CHANNELS, Measure
from tests.support.making import pixels, write_image, write_light_ensemble

MEASURES = frozenset(
    {
        Measure("mean", 0, per="dataset"),
        Measure("std", ALL_CHANNELS, per="dataset"),
        Measure("percentile", 0, 99.8, per="dataset"),
    }
)


@dataclass(frozen=True)
class MeasuringEnsemble(Ensemble):
    """As one whose members normalise by the data set."""

    def inputs(self, *_: object) -> Any:
        return SimpleNamespace(measures=MEASURES)


@pytest.fixture
def run(tmp_path: Path) -> tuple[MeasuringEnsemble, RunContext]:
    read = read_ensemble(str(write_light_ensemble(tmp_path / "e", members=1)))
    ensemble = MeasuringEnsemble(read.url, read.spec, read.hash)
    context = RunContext(
        out=str(tmp_path / "out"),
        ensemble=read.url,
        ensemble_hash=read.hash,
        ensemble_name=read.spec.name,
        settings=resolve(ResultSettings(), read),
        session="test",
    )
    return ensemble, context


def table(ensemble: Ensemble, folder: Path) -> ImageTable:
    planned = list(plan_images([str(folder)], ensemble, ResultSettings()))
    assert all(isinstance(image, PlannedImage) for image in planned)
    return ImageTable.collect(cast("list[PlannedImage]", planned))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_statistics_of_the_data_set_are_those_of_all_pixels(
    run: tuple[MeasuringEnsemble, RunContext], dtype: str, tmp_path: Path
) -> None:
    ensemble, context = run
    images = [pixels((40 + 30 * k, 50), dtype, seed=k) * (k + 1) for k in range(3)]
    for index, image in enumerate(images):
        write_image(tmp_path / "images" / f"{index}.zarr", image.astype(dtype))
    images_table = table(ensemble, tmp_path / "images")
    assert survey_dataset(SerialTasks(), context, images_table, ensemble) == []
    found = image_statistics(context, images_table.image(1), ensemble)
    every = np.concatenate([image.astype(dtype).ravel() for image in images]).astype(np.float64)
    expected = dict(zip(sorted(MEASURES), (every.mean(), np.percentile(every, 99.8), every.std()), strict=True))
    assert found == pytest.approx(expected, rel=1e-12)


def test_an_image_that_cannot_be_read_is_left_out_and_named(
    run: tuple[MeasuringEnsemble, RunContext], tmp_path: Path
) -> None:
    ensemble, context = run
    good, bad = pixels((40, 50), "float32"), pixels((30, 50), "float32", seed=1)
    write_image(tmp_path / "images" / "good.zarr", good)
    write_image(tmp_path / "images" / "bad.zarr", bad)
    zarr.open_array(tmp_path / "images" / "bad.zarr" / "s0", mode="r+")[3, 4] = np.nan
    images_table = table(ensemble, tmp_path / "images")
    failed = survey_dataset(SerialTasks(), context, images_table, ensemble)
    assert [images_table.image(result.key).name for result in failed] == ["bad.ome.zarr"]
    found = image_statistics(context, images_table.image(1), ensemble)
    assert found[Measure("mean", 0, per="dataset")] == pytest.approx(good.astype(np.float64).mean(), rel=1e-12)


def test_images_of_different_types_are_no_data_set(run: tuple[MeasuringEnsemble, RunContext], tmp_path: Path) -> None:
    ensemble, context = run
    write_image(tmp_path / "images" / "a.zarr", pixels((40, 50), "uint16"))
    write_image(tmp_path / "images" / "b.zarr", pixels((40, 50), "uint8"))
    with pytest.raises(RefusedError, match="uint16 and uint8; run images of one type at a time"):
        survey_dataset(SerialTasks(), context, table(ensemble, tmp_path / "images"), ensemble)
