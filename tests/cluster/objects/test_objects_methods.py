"""Objects without flows: watershed and connected components, the same bytes however the plane was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray
from skimage.measure import label, regionprops
from skimage.segmentation import relabel_sequential

from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.tasks import stages
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.object_runs import CHANNELS, drawn, run, write_ensemble, write_results, write_source

PLANES = {"a": drawn(1, 150, 170, 35), "empty": np.zeros((50, 60), np.int32), "full": np.ones((70, 100), np.int32)}
PLANES["snake"] = (np.indices((140, 140)).sum(axis=0) % 40 < 5).astype(np.int32)
MAPS = ["uncertainty", "epistemic"]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return write_ensemble(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), PLANES)


def labels(out: Path, image: str, name: str = "kind 1") -> NDArray[Any]:
    return np.asarray(zarr.open_array(out / "images" / f"{image}.ome.zarr" / "labels" / name / "s0", mode="r")[:])


def content(out: Path) -> dict[str, bytes]:
    found = {image: labels(out, image).tobytes() for image in PLANES}
    return found | {"table": (out / "objects.parquet").read_bytes()}


@pytest.mark.parametrize("method", ["watershed", "components"])
def test_regions_change_no_byte(method: str, source: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    found = []
    for region in (64, 96, 512):
        out = write_results(tmp_path / f"out-{region}", source, ensemble, PLANES, region=region, save=MAPS)
        assert run(out, method=method).state == "complete"
        assert not (out / "work").exists()
        found.append(content(out))
    assert found[0] == found[1] == found[2]


def test_components_are_those_of_scikit_image(source: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES, region=64, save=MAPS)
    run(out, method="components", minimum_size=20)
    table = pd.read_parquet(out / "objects.parquet")
    for image, plane in PLANES.items():
        expected = label(plane > 0, connectivity=2)
        expected[np.bincount(expected.ravel())[expected] < 20] = 0
        found = labels(out, image)
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, relabel_sequential(expected)[0])
        pixels = np.asarray(zarr.open_array(source / f"{image}.ome.zarr" / "s0", mode="r")[:])
        rows = table[table["image"] == f"{image}.ome.zarr"].to_dict("records")
        for row, one in zip(rows, regionprops(found, np.moveaxis(pixels, 0, -1)), strict=True):
            assert (row["label"], row["area"]) == (one.label, one.area)
            assert (row["y0"], row["x0"], row["y1"], row["x1"]) == one.bbox
            np.testing.assert_allclose((row["y"], row["x"], row["perimeter"]), (*one.centroid, one.perimeter))
            np.testing.assert_allclose([row[f"mean:{name}"] for name in CHANNELS], one.intensity_mean)
            assert np.isnan(row["flow_error"])


@pytest.mark.parametrize("method", ["watershed", "components"])
def test_a_run_that_was_cut_short_goes_on(
    method: str, source: Path, ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_results(tmp_path / "whole", source, ensemble, PLANES, region=64, save=MAPS)
    assert run(whole, method=method).state == "complete"
    out = write_results(tmp_path / "out", source, ensemble, PLANES, region=64, save=MAPS)
    steps = {"find_in_region": 7, "label_pixels": 3}
    from chorus.cluster.objects import stream

    for name, last in steps.items():
        with monkeypatch.context() as patch:
            calls: list[int] = []
            function = getattr(stages, name)

            def stopping(job: Any, region: int, *, f: Any = function, c: list[int] = calls, n: int = last) -> None:
                c.append(region)
                if len(c) > n:
                    raise KeyboardInterrupt
                f(job, region)

            patch.setattr(stream, name, stopping)
            patch.setattr(stages, name, stopping)
            assert run(out, method=method).state == "interrupted"
    assert run(out, method=method).state == "complete"
    assert content(out) == content(whole)


def test_another_method_makes_the_objects_anew(source: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES, region=64)
    counts = []
    for method in ("auto", "flows", "components"):
        counts.append(run(out, method=method).summary.objects["kind 1"])
    assert counts[0] == counts[1] != counts[2]
    assert counts[2] == labels(out, "a").max() + 1 + labels(out, "snake").max()
    assert run(out, flow_error=0.3).summary.objects["kind 1"] < counts[0]
    assert pd.read_parquet(out / "objects.parquet")["flow_error"].max() <= 0.3


def test_auto_is_flows_where_they_are_and_watershed_elsewhere(source: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    for save, method in ((["flows"], "flows"), ([], "watershed")):
        out = write_results(tmp_path / method, source, ensemble, PLANES, save=save)
        assert Results(ObjectsRequest(out=str(out))).method == method


def test_maps_need_not_be_kept(source: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES, region=64, save=[])
    for method in ("watershed", "components"):
        assert run(out, method=method).state == "complete"
    assert "uncertainty" not in pd.read_parquet(out / "objects.parquet").columns


def test_flows_that_were_not_kept_are_named_with_both_ways_out(
    source: Path, ensemble: Ensemble, tmp_path: Path
) -> None:
    out = write_results(tmp_path / "out", source, ensemble, PLANES, save=["uncertainty"])
    with pytest.raises(RefusedError, match=r"holds no flows; run chorus predict with --objects flows .* --method"):
        run(out, method="flows")


@pytest.mark.parametrize("method", ["watershed", "components"])
def test_classes_and_planes_are_told_apart(method: str, tmp_path: Path) -> None:
    planes = {"a": np.stack([drawn(k, 80, 90, 14) for k in range(4)]).reshape(2, 2, 80, 90)}
    ensemble, source = write_ensemble(tmp_path / "e", classes=3), write_source(tmp_path / "in", planes)
    found = []
    for region in (64, 128):
        out = write_results(tmp_path / f"out-{region}", source, ensemble, planes, region=region, save=MAPS)
        assert run(out, method=method).state == "complete"
        table = pd.read_parquet(out / "objects.parquet")
        places = table.groupby(["class", "t", "z"])["label"].agg(["min", "max", "count"])
        assert len(places) == 8
        assert (places["min"] == 1).all()
        assert (places["max"] == places["count"]).all()
        found.append([(out / "objects.parquet").read_bytes(), *(labels(out, "a", f"kind {k}") for k in (1, 2))])
    assert found[0][0] == found[1][0]
    for k in (1, 2):
        np.testing.assert_array_equal(found[0][k], found[1][k])
        semantic = 1 + planes["a"] % 2 == k
        assert not found[0][k][~(semantic & (planes["a"] > 0))].any()
