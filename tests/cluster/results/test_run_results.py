"""A run that is opened: tables as DataFrames, arrays of images that are read when they are used."""

from __future__ import annotations

import io
from pathlib import Path

import dask.array
import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.results.run_results import RunResults
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image, write_light_ensemble


def run(folder: Path, **settings: object) -> RunResults:
    """Results of two images, a stack of two channels and a plane, and of one that cannot be read."""
    ensemble = write_light_ensemble(folder / "ensemble", members=2, width=4)
    write_image(folder / "in/stack.zarr", pixels((2, 3, 70, 90)), "czyx", channels=["dna", "other"])
    write_image(folder / "in/plane.zarr", pixels((50, 60)))
    write_image(folder / "in/wrong.zarr", pixels((2, 50, 60)), "cyx", channels=["a", "b"])
    predict(
        PredictRequest(
            sources=[str(folder / "in")],
            ensemble=str(ensemble),
            out=str(folder / "out"),
            settings=ResultSettings.model_validate(settings),
            run=RunSettings(executor="serial", thumbnails=False),
            objects="none" if settings.get("in_place") else "components",
        ),
        Silent(),
    )
    return RunResults(str(folder / "out"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run(tmp_path_factory.mktemp("run"))


def test_tables_are_those_of_the_run(results: RunResults) -> None:
    out = Path(results.out)
    assert results.state == "failures"
    assert results.scores.equals(pd.read_parquet(out / "scores.parquet"))
    assert results.objects is not None
    assert results.objects.equals(pd.read_parquet(out / "objects.parquet"))
    assert results.flags is None
    assert results.names == ["plane.ome.zarr", "stack.ome.zarr", "wrong.ome.zarr"]
    assert list(results.rank("epistemic")["rank"]) == [1, 2]
    assert repr(results).startswith(f"<RunResults {out}: failures, 3 images (2 done, 1 failed, ")
    assert "plane.ome.zarr" in results._repr_html_()


def test_arrays_of_an_image_are_what_is_stored_and_are_not_read_before_they_are_used(results: RunResults) -> None:
    image = results.image("stack.ome.zarr")
    group = Path(results.out) / "images/stack.ome.zarr"
    posterior = np.asarray(zarr.open_array(group / "s0", mode="r"))
    assert image.axes == "zyx"
    for array in (image.labels, image.probability, image.uncertainty):
        assert isinstance(array, dask.array.Array)
    assert np.array_equal(image.labels, zarr.open_array(group / "labels/semantic/s0", mode="r")[:])
    assert np.array_equal(image.probability, posterior[:2])
    for index, kind in enumerate(("uncertainty", "epistemic", "aleatoric"), 2):
        assert np.array_equal(getattr(image, kind), posterior[index]), kind
    assert np.array_equal(image.uncertainty[1, 10:20, 5:8], posterior[2, 1, 10:20, 5:8])
    assert image.objects is not None
    assert np.array_equal(image.objects["nucleus"], zarr.open_array(group / "labels/nucleus/s0", mode="r")[:])
    assert set(image.objects.table["image"]) == {"stack.ome.zarr"}
    assert image.scores["uncertainty"] == results.scores.set_index("name").loc["stack.ome.zarr", "uncertainty"]
    with pytest.raises(KeyError, match="'flows' was not kept, of probability, uncertainty, epistemic, aleatoric; name"):
        image.maps("flows")


def test_an_image_has_a_picture_and_a_sentence(results: RunResults) -> None:
    image = results.image("plane.ome.zarr")
    picture = np.asarray(Image.open(io.BytesIO(image._repr_png_())).convert("RGB"))
    assert picture.shape == (240, 2 * 288 + 4, 3)
    assert repr(image).startswith("<ImageResults plane.ome.zarr, yx 50x60; uncertainty ")
    assert "data:image/webp" in image._repr_html_()


def test_names_that_are_not_there_and_images_that_failed_are_refused(results: RunResults) -> None:
    with pytest.raises(RefusedError, match=r"no image 'stack'; names are such as stack\.ome\.zarr"):
        results.image("stack")
    with pytest.raises(RefusedError, match=r"image wrong\.ome\.zarr has no results: .* say which with --channel NAME"):
        results.image("wrong.ome.zarr")
    with pytest.raises(RefusedError, match="no results of Chorus"):
        RunResults(str(Path(results.out).parent / "nothing"))


def test_labels_in_the_source_are_found_and_maps_that_were_not_kept_are_not(tmp_path: Path) -> None:
    results = run(tmp_path, in_place=True, save=[])
    image = results.image("plane.ome.zarr")
    stored = zarr.open_array(tmp_path / "in/plane.zarr/labels/semantic/s0", mode="r")
    assert np.array_equal(image.labels, stored[:])
    assert (image.objects, results.objects) == (None, None)
    with pytest.raises(KeyError, match="'probability' was not kept, of no maps"):
        _ = image.probability
    assert image.picture(64).shape == (53, 64, 3)


def test_a_source_that_is_gone_leaves_the_arrays_and_says_why_there_is_no_picture(tmp_path: Path) -> None:
    results = run(tmp_path)
    (tmp_path / "in").rename(tmp_path / "moved")
    image = results.image("plane.ome.zarr")
    assert image.labels.compute().shape == (50, 60)
    assert "plane.ome.zarr: no picture; " in image._repr_html_()
