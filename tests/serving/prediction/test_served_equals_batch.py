"""What is served is what a run gives: bytes of labels, maps, scores and objects."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.ensembles.editing import set_effort
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.adaptive_bound import EffortBound
from tests.support.efforts import half_of_the_tiles
from tests.support.making import pixels, write_ensemble, write_image, write_light_ensemble
from tests.support.servers import NPY, npy, npz, server

LEFT_OUT = {"image", "source", "name", "status", "message", "regions", "seconds"}


def run(image: Path, ensemble: Path, out: Path, **settings: object) -> pd.Series:
    """The row of scores of an image that a run has done in this process."""
    outcome = predict(
        PredictRequest(
            sources=[str(image)],
            ensemble=str(ensemble),
            out=str(out),
            settings=ResultSettings(**settings),
            run=RunSettings(executor="serial", thumbnails=False),
            objects="auto",
        ),
        Silent(),
    )
    assert outcome.state == "complete", outcome
    return pd.read_parquet(out / "scores.parquet").iloc[0]


def assert_same_scores(found: dict[str, float | None], row: pd.Series) -> None:
    expected = {name: None if pd.isna(value) else value for name, value in row.items() if name not in LEFT_OUT}
    assert found == expected


@pytest.fixture(scope="module")
def with_flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    normalised = {"kind": "percentile", "low": 1, "high": 99}
    entry = {"channels": ["channel-0"], "normalisation": normalised, "pixel_size_um": 0.5}
    return write_ensemble(tmp_path_factory.mktemp("flows"), members=2, flows=True, input=entry, augmentations=["hflip"])


def test_a_served_image_has_the_bytes_and_scores_of_a_run(with_flows: Path, tmp_path: Path) -> None:
    """Flows and objects, statistics of the whole image, and another pixel size than the ensemble's."""
    image = pixels((150, 130))
    row = run(write_image(tmp_path / "a.zarr", image, pixel_size=0.4), with_flows, tmp_path / "out")
    results = tmp_path / "out" / "images" / "a.ome.zarr"
    buffer = io.BytesIO()
    size = {"PhysicalSizeX": 0.4, "PhysicalSizeY": 0.4, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(buffer, image, ome=True, metadata={"axes": "YX"} | size)
    with server(ensemble=str(with_flows)) as (client, _):
        answer = client.post(
            "/v1/predict?outputs=objects&outputs=labels",
            content=buffer.getvalue(),
            headers={"Content-Type": "image/tiff", "Accept": "application/zip"},
        )
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    archive.extractall(tmp_path / "served")
    served = tmp_path / "served" / "prediction.ome.zarr"
    stored = sorted(path.relative_to(results) for path in results.rglob("*") if path.is_file())
    assert [str(path) for path in stored] == sorted(
        str(p.relative_to(served)) for p in served.rglob("*") if p.is_file()
    )
    chunks = [path for path in stored if "c" in path.parts]
    assert len(chunks) == 3  # labels, objects, posterior
    for path in chunks:
        assert (served / path).read_bytes() == (results / path).read_bytes(), path
    objects = np.asarray(zarr.open_array(results / "labels" / "class-1" / "s0", mode="r"))
    prediction = json.loads((tmp_path / "served" / "prediction.json").read_text())
    assert_same_scores(prediction["scores"], row)
    assert prediction["objects"] == {"class-1": int(objects.max())}
    assert objects.max() > 0


def test_the_variance_of_flows_is_served_as_a_run_keeps_it(with_flows: Path, tmp_path: Path) -> None:
    image = pixels((90, 80))
    saved = ["probability", "uncertainty", "epistemic", "aleatoric", "flow_variance", "flows"]
    run(write_image(tmp_path / "a.zarr", image), with_flows, tmp_path / "out", save=saved)
    stored = np.asarray(zarr.open_array(tmp_path / "out/images/a.ome.zarr/s0", mode="r"))
    with server(ensemble=str(with_flows)) as (client, _):
        headers = NPY | {"Accept": "application/x-npz"}
        answer = client.post("/v1/predict?outputs=flow_variance&outputs=flows", content=npy(image), headers=headers)
        assert answer.status_code == 200, answer.text
        assert "flow_variance" in client.get("/v1/ensembles").json()["ensembles"][0]["outputs"]
    found = npz(answer.content)
    assert found["flow_variance"].tobytes() == stored[5].tobytes()
    assert found["flows"].tobytes() == stored[6:8].tobytes()


def test_several_clients_at_once_get_what_each_would_get_alone(ensemble_url: str, tmp_path: Path) -> None:
    """Their tiles share batches of four on a server where each call has room for them."""
    images = [pixels((90 + 20 * i, 100), seed=i) for i in range(3)]
    rows, labels = [], []
    for i, image in enumerate(images):
        out = tmp_path / f"out{i}"
        rows.append(
            run(write_image(tmp_path / f"{i}.zarr", image), Path(ensemble_url), out, augmentations=["identity"])
        )
        labels.append(np.asarray(zarr.open_array(out / "images" / f"{i}.ome.zarr/labels/semantic/s0", mode="r")))
    answers: dict[int, bytes] = {}
    with server(ensemble=ensemble_url) as (client, _):

        def ask(index: int) -> None:
            answers[index] = client.post(
                "/v1/predict?outputs=labels&augmentations=identity",
                content=npy(images[index]),
                headers=NPY | {"Accept": "application/x-npz"},
            ).content

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index in range(3):
        found = npz(answers[index])
        assert found["labels"].tobytes() == labels[index].tobytes()
        assert_same_scores(json.loads(str(found["prediction"]))["scores"], rows[index])


def test_a_window_is_cut_out_of_what_the_whole_plane_gives(ensemble_url: str) -> None:
    image = pixels((2, 140, 120), seed=3)[:, :, :]
    with server(ensemble=ensemble_url) as (client, _):
        headers = NPY | {"Accept": "application/x-npz"}
        query = "outputs=labels&outputs=probability&outputs=uncertainty&channels=1&augmentations=identity"
        whole = npz(client.post(f"/v1/predict?{query}", content=npy(image), headers=headers).content)
        part = npz(client.post(f"/v1/predict?{query}&window=33:90,7:71", content=npy(image), headers=headers).content)
    for name in ("labels", "probability", "uncertainty"):
        assert np.array_equal(part[name], whole[name][..., 33:90, 7:71]), name


def test_adaptive_effort_is_that_of_a_run_and_ends_where_others_augmentations_are_asked_for(tmp_path: Path) -> None:
    augmentations, image = ["identity", "hflip", "vflip"], pixels((90, 80))
    ensemble = write_light_ensemble(tmp_path / "e", members=3, tile=32, augmentations=augmentations)
    source, read = write_image(tmp_path / "a.zarr", image), read_ensemble(str(ensemble))
    bound = EffortBound(
        factors=half_of_the_tiles(ensemble, source, 0.01), ensemble=read.hash, tile=32, overlap=0.5,
        augmentations=augmentations, images=1, tiles=20, stopped=[],
    )  # fmt: skip
    set_effort(str(ensemble), bound)
    row = run(tmp_path / "a.zarr", ensemble, tmp_path / "out", effort="adaptive")
    assert 3 < row["samples"] < 9
    stored = np.asarray(zarr.open_array(tmp_path / "out/images/a.ome.zarr/s0"))
    with server(ensemble=str(ensemble), effort="adaptive") as (client, _):
        assert "samples" in client.get("/v1/ensembles").json()["ensembles"][0]["outputs"]
        answer = client.post(
            "/v1/predict?outputs=samples", content=npy(image), headers=NPY | {"Accept": "application/x-npz"}
        )
        other = "/v1/predict?augmentations=identity&augmentations=hflip"
        full = client.post(other, content=npy(image), headers=NPY)
        refused = client.post(f"{other}&outputs=samples", content=npy(image), headers=NPY)
    found = npz(answer.content)
    assert_same_scores(json.loads(str(found["prediction"]))["scores"], row)
    assert found["samples"].tobytes() == stored[-1].tobytes()
    assert "samples" not in full.json()["scores"]
    assert (refused.status_code, "gives no samples" in refused.json()["detail"]) == (422, True)
