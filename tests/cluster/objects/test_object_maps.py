"""Objects of stored distances, boundaries and affinities: the same bytes however regions cut the plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray
from skimage.measure import regionprops

from chorus.cluster.objects.after_predict import with_objects
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.instances.maps import rules
from chorus.pipeline.metrics.objects import average_precision
from tests.support.object_maps import PLANE_OFFSETS
from tests.support.object_runs import drawn, run, write_ensemble, write_results, write_source

PLANES = {"a": drawn(1, 150, 170, 35), "empty": np.zeros((50, 60), np.int32), "wide": drawn(2, 90, 230, 40)}
OUTPUTS: dict[str, list[dict[str, Any]]] = {
    "distances": [{"role": "classes"}, {"role": "distance", "names": ["centre", "inverted_boundary"]}],
    "boundaries": [{"role": "classes"}, {"role": "boundary"}],
    "agglomeration": [{"role": "boundary"}],
    "affinities": [{"role": "classes"}, {"role": "affinities", "offsets": [list(one[1:]) for one in PLANE_OFFSETS]}],
}
METHODS = tuple(OUTPUTS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_PLANE_EDGE", 64)


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ensemble]:
    folder = tmp_path_factory.mktemp("ensembles")
    return {name: write_ensemble(folder / name, outputs=outputs) for name, outputs in OUTPUTS.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), PLANES)


def labels(out: Path, image: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(out / "images" / f"{image}.ome.zarr" / "labels" / "kind 1" / "s0", mode="r")[:])


@pytest.mark.parametrize("method", METHODS)
def test_regions_change_no_byte_and_objects_are_those_that_were_drawn(
    method: str, source: Path, ensembles: dict[str, Ensemble], tmp_path: Path
) -> None:
    found = []
    for region in (64, 96, 512):
        out = write_results(tmp_path / f"out-{region}", source, ensembles[method], PLANES, region=region)
        outcome = run(out, minimum_size=30)
        assert (outcome.state, outcome.summary.method) == ("complete", method)
        assert not (out / "work").exists()
        found.append([labels(out, name).tobytes() for name in PLANES] + [(out / "objects.parquet").read_bytes()])
    assert found[0] == found[1] == found[2]
    if method != "agglomeration":  # which divides the background, too
        assert average_precision(PLANES["a"], labels(out, "a"))[0] > 0.85
        assert not labels(out, "empty").any()


@pytest.mark.parametrize("method", METHODS)
def test_rows_measure_the_label_image(
    method: str, source: Path, ensembles: dict[str, Ensemble], tmp_path: Path
) -> None:
    out = write_results(tmp_path / "out", source, ensembles[method], PLANES, region=64)
    run(out)
    table = pd.read_parquet(out / "objects.parquet")
    for image in PLANES:
        found = labels(out, image)
        assert found.dtype == np.uint32
        pixels = np.asarray(zarr.open_array(source / f"{image}.ome.zarr" / "s0", mode="r")[:])
        rows = table[table["image"] == f"{image}.ome.zarr"].to_dict("records")
        for row, one in zip(rows, regionprops(found, np.moveaxis(pixels, 0, -1)), strict=True):
            assert (row["label"], row["area"]) == (one.label, one.area)
            assert (row["y0"], row["x0"], row["y1"], row["x1"]) == one.bbox
            expected = [*one.centroid, one.perimeter, one.eccentricity, *one.intensity_mean]
            measured = [row[name] for name in ("y", "x", "perimeter", "eccentricity", "mean:dna", "mean:actin")]
            np.testing.assert_allclose(measured, expected, rtol=1e-9)


def test_plain_distances_to_the_boundary_are_inverted_by_their_range(source: Path, tmp_path: Path) -> None:
    output = {"role": "distance", "names": ["boundary"], "range": [0, 8]}
    ensemble = write_ensemble(tmp_path / "ensemble", outputs=[{"role": "classes"}, output])
    out = write_results(tmp_path / "out", source, ensemble, PLANES)
    assert run(out, minimum_size=30).summary.method == "distances"
    assert average_precision(PLANES["a"], labels(out, "a"))[0] > 0.75


def test_options_change_objects_and_are_recorded(source: Path, ensembles: dict[str, Ensemble], tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", source, ensembles["distances"], PLANES)
    usual = run(out)
    options = {"center_distance_threshold": 0.05, "distance_smoothing": 0.0, "foreground_threshold": 0.6}
    other = run(out, **options)
    assert other.summary.objects != usual.summary.objects
    record = (out / "objects.json").read_text()
    assert "center_distance_threshold" in record
    assert (
        run(out, center_distance_threshold=0.05, distance_smoothing=0.0, foreground_threshold=0.6).state == "complete"
    )


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("distances", {"beta": 0.4}, "--beta: objects by distances do not take it"),
        ("distances", {"flow_error": 0.4}, "--flow-error: objects by distances have no flows"),
        ("agglomeration", {"foreground_threshold": 0.4}, "--foreground-threshold: members do not say where"),
        ("distances", {"foreground_threshold": 0.4, "cellprob_threshold": 0.0}, "are two forms of the same number"),
        ("distances", {"method": "affinities"}, "its members give no affinities"),
        ("agglomeration", {"method": "boundaries"}, "its members give no classes"),
        ("affinities", {"method": "distances"}, "its members give no distances called centre"),
        ("boundaries", {"method": "watershed", "seed_threshold": 0.4}, "--seed-threshold: objects by watershed"),
    ],
)
def test_what_does_not_fit_is_refused(
    method: str, options: dict[str, Any], said: str, source: Path, ensembles: dict[str, Ensemble], tmp_path: Path
) -> None:
    out = write_results(tmp_path / "out", source, ensembles[method], PLANES)
    with pytest.raises(RefusedError, match=said):
        run(out, **options)


def test_results_without_the_maps_say_what_to_save(
    source: Path, ensembles: dict[str, Ensemble], tmp_path: Path
) -> None:
    out = write_results(tmp_path / "out", source, ensembles["affinities"], PLANES, save=["probability"])
    assert run(out).summary.method == "watershed"
    with pytest.raises(RefusedError, match=r"holds no affinities, of which objects are made; .*--save probability,aff"):
        run(out, method="affinities")


@pytest.mark.parametrize("method", METHODS)
def test_predict_makes_objects_by_what_the_ensemble_gives_and_keeps_the_maps(
    method: str, ensembles: dict[str, Ensemble]
) -> None:
    settings = ResultSettings(save=["uncertainty"])
    request = PredictRequest(sources=[], ensemble="", out="", settings=settings, objects="auto")
    chosen = with_objects(request, ensembles[method])
    assert chosen.objects == method
    assert rules_fields(method) <= set(chosen.settings.save)
    with pytest.raises(RefusedError, match="members give no flows"):
        with_objects(request.model_copy(update={"objects": "flows"}), ensembles[method])


def rules_fields(method: str) -> set[str]:
    fields = {"distances": {"distances"}, "boundaries": {"boundary", "probability"}, "agglomeration": {"boundary"}}
    return fields.get(method, {"affinities"})
