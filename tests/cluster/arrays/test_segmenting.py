"""What an array gets in this process is what `chorus predict` writes of the same image, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pandas as pd
import pytest
import torch
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from chorus.cluster.arrays.loaded import LoadedEnsemble
from chorus.cluster.arrays.segmentation import Segmentation
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.ensembles.editing import set_effort
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import ImageError
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.instances.methods import ObjectsMethod
from tests.support.efforts import half_of_the_tiles
from tests.support.making import pixels, write_ensemble, write_image, write_light_ensemble

SMALL = ResultSettings(region=64, chunk=32)
PERCENTILES = {"kind": "percentile", "low": 1, "high": 99}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> LoadedEnsemble:
    """Two small networks without flows, loaded, regions of 64 pixels."""
    return LoadedEnsemble.load(str(write_light_ensemble(tmp_path_factory.mktemp("light"), members=2, width=4)), SMALL)


@pytest.fixture(scope="module")
def with_flows(tmp_path_factory: pytest.TempPathFactory) -> LoadedEnsemble:
    """Flows, two foreground classes, percentiles of the whole image, and pixels of 0.5 um."""
    entry = {"channels": ["dna"], "normalisation": PERCENTILES, "pixel_size_um": 0.5}
    path = write_ensemble(
        tmp_path_factory.mktemp("flows"), members=2, classes=3, flows=True, input=entry, augmentations=["hflip"]
    )
    return LoadedEnsemble.load(str(path), SMALL)


def assert_as_predicted(
    result: Segmentation, loaded: LoadedEnsemble, image: Path, out: Path, objects: ObjectsMethod, **changes: Any
) -> None:
    """Run the ensemble over `image`, and compare every array, every score and every object with `result`."""
    wanted = ResultSettings.model_validate(loaded.base.model_dump() | changes)
    run = RunSettings(executor="serial", thumbnails=False)
    request = PredictRequest(
        sources=[str(image)], ensemble=loaded.ensemble.url, out=str(out), settings=wanted, run=run, objects=objects
    )
    outcome = predict(request, Silent())
    assert outcome.state == "complete", outcome
    (folder,) = (out / "images").iterdir()
    assert_same_bytes(result.labels, folder / "labels/semantic/s0")
    attributes = zarr.open_group(folder, mode="r").attrs["ome"]
    names = [channel["label"] for channel in attributes["omero"]["channels"]]
    stored = np.asarray(zarr.open_array(folder / "s0", mode="r"))
    kinds = list(dict.fromkeys({"flow": "flows"}.get(name.split(":")[0], name.split(":")[0]) for name in names))
    axis = stored.ndim - 3 - (1 if "z" in result.axes else 0)
    kept = [result.maps(kind) for kind in kinds]
    together = np.concatenate([m if m.ndim == stored.ndim else np.expand_dims(m, axis) for m in kept], axis)
    assert (together.dtype, together.shape) == (stored.dtype, stored.shape)
    assert together.tobytes() == stored.tobytes()
    row = read_scores(str(out)).iloc[0].drop(["image", "source", "name", "seconds"])
    found = result.scores.drop(["image", "source", "name", "seconds"])
    pd.testing.assert_series_equal(found, row, check_exact=True, check_names=False)
    if result.objects is None:
        assert not (out / "objects.parquet").exists()
        return
    for name, labels in result.objects.items():
        assert_same_bytes(labels, folder / "labels" / name / "s0")
    table = pd.read_parquet(out / "objects.parquet").drop(columns="image")
    assert_frame_equal(result.objects.table.drop(columns="image"), table, check_exact=True)


def assert_same_bytes(array: np.ndarray, path: Path) -> None:
    stored = np.asarray(zarr.open_array(path, mode="r"))
    assert (array.dtype, array.shape) == (stored.dtype, stored.shape)
    assert array.tobytes() == stored.tobytes()


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    plane=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    before=st.sampled_from(["", "c", "z", "t", "cz", "tc", "tcz"]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    seed=st.integers(0, 100),
)
def test_an_array_of_any_shape_has_the_bytes_of_a_run(
    light: LoadedEnsemble, tmp_path: Path, plane: tuple[int, int], before: str, dtype: str, seed: int
) -> None:
    axes = f"{before}yx"
    data = pixels((2,) * len(before) + plane, dtype, seed)
    given = {"channel": ["1"]} if "c" in axes else {}
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    image = write_image(tmp_path / "run" / "a.zarr", data, axes)
    result = light.segment(data, axes=axes, objects="watershed", progress=False, **given)
    assert_as_predicted(result, light, image, tmp_path / "run" / "out", "watershed", **given)


@pytest.mark.parametrize("method", ["auto", "components"])
def test_flows_statistics_and_another_pixel_size_are_those_of_a_run(
    method: ObjectsMethod, with_flows: LoadedEnsemble, tmp_path: Path
) -> None:
    """Objects of two classes over nine regions, by flows and as components that span regions."""
    data = pixels((150, 130), seed=5)
    image = write_image(tmp_path / "a.zarr", data, pixel_size=0.4)
    result = with_flows.segment(data, pixel_size=0.4, objects=method, progress=False)
    assert_as_predicted(result, with_flows, image, tmp_path / "out", method)
    assert result.objects is not None
    assert list(result.objects) == ["class-1", "class-2"]
    assert len(result.objects.table) > 10


def test_stacks_go_plane_by_plane_and_tables_say_which(with_flows: LoadedEnsemble, tmp_path: Path) -> None:
    data = pixels((2, 2, 3, 70, 80), seed=1)
    image = write_image(tmp_path / "a.zarr", data, "tczyx", channels=["dna", "dna"])
    result = with_flows.segment(
        data, axes="tczyx", channel=[1], channel_names=["dna", "other"], diameter=None, progress=False
    )
    assert result.labels.shape == (2, 3, 70, 80)
    assert result.probability.shape == (2, 3, 3, 70, 80)
    assert result.uncertainty.shape == (2, 3, 70, 80)
    shutil.rmtree(image)
    write_image(image, data, "tczyx", channels=["dna", "other"])
    assert_as_predicted(result, with_flows, image, tmp_path / "out", "auto", channel=["1"])


def test_several_classes_at_a_pixel_are_those_of_a_run(tmp_path: Path) -> None:
    path = write_ensemble(tmp_path / "e", members=2, classes=3, activation="sigmoid", flows=True)
    loaded, data = LoadedEnsemble.load(str(path), SMALL), pixels((90, 100), seed=2)
    image = write_image(tmp_path / "a.zarr", data)
    result = loaded.segment(data, progress=False, save=["uncertainty"], dtype="float32")
    assert_as_predicted(result, loaded, image, tmp_path / "out", "auto", save=["uncertainty"], dtype="float32")


def test_adaptive_effort_is_that_of_a_run(tmp_path: Path) -> None:
    augmentations, data = ["identity", "hflip", "vflip"], pixels((90, 80))
    path = write_light_ensemble(tmp_path / "e", members=3, tile=32, augmentations=augmentations)
    source, read = write_image(tmp_path / "a.zarr", data), read_ensemble(str(path))
    bound = EffortBound(
        factors=half_of_the_tiles(path, source, 0.01), ensemble=read.hash, tile=32, overlap=0.5,
        augmentations=augmentations, images=1, tiles=20, stopped=[],
    )  # fmt: skip
    set_effort(str(path), bound)
    loaded = LoadedEnsemble.load(str(path), SMALL.model_copy(update={"effort": "adaptive"}))
    result = loaded.segment(data, progress=False)
    assert_as_predicted(result, loaded, source, tmp_path / "out", "auto")
    assert result.maps("samples").min() < result.maps("samples").max()


def test_numpy_xarray_dask_and_zarr_arrays_give_the_same(light: LoadedEnsemble, tmp_path: Path) -> None:
    data = pixels((2, 3, 100, 90), seed=4)
    stored = zarr.create_array(tmp_path / "z", data=data, chunks=(1, 1, 50, 50), dimension_names=list("czyx"))
    lazy = dask.array.from_array(data, chunks=(1, 2, 64, 64))
    named = xarray.DataArray(data, dims=["channel", "z", "y", "x"], coords={"channel": ["membrane", "dna"]})
    turned = xarray.DataArray(lazy, dims=["c", "z", "y", "x"]).transpose("x", "z", "y", "c")
    known: dict[str, Any] = {"progress": False, "objects": "components"}
    first = light.segment(data, axes="czyx", channel=[1], **known)
    others = [
        light.segment(data.astype(">u2"), axes="czyx", channel=[1], **known),
        light.segment(lazy, axes="CZYX", channel=["1"], **known),
        light.segment(stored, channel=[1], **known),
        light.segment(named, channel=["dna"], **known),
    ]
    for other in others:
        assert other.axes == "zyx"
        assert other.labels.tobytes() == first.labels.tobytes()
        assert other.probability.tobytes() == first.probability.tobytes()
        assert other.scores.drop("seconds").equals(first.scores.drop("seconds"))
    last = light.segment(turned, channel=[1], **known)
    assert last.axes == "zyx"
    assert last.labels.tobytes() == first.labels.tobytes()
    assert others[-1].objects is not None
    assert {"mean:membrane", "mean:dna"} <= set(others[-1].objects.table)


def test_a_pixel_that_is_no_number_is_named(light: LoadedEnsemble) -> None:
    data = pixels((70, 70), "float32")
    data[3, 5] = np.nan
    with pytest.raises(ImageError, match=r"^cells: t 0, z 0: 1 pixels are NaN or infinite, the first at .* y 3, x 5"):
        light.segment(data, name="cells", progress=False)


def test_threads_of_torch_are_left_as_they_were(light: LoadedEnsemble) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        light.segment(pixels((20, 20)), progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_bar_counts_the_tiles_unless_it_is_told_to_be_silent(
    light: LoadedEnsemble, capsys: pytest.CaptureFixture[str]
) -> None:
    light.segment(pixels((100, 100)), progress=False)
    assert capsys.readouterr() == ("", "")
    light.segment(pixels((100, 100)), name="cells")
    shown = capsys.readouterr().err
    assert "cells" in shown
    assert "tile" in shown
