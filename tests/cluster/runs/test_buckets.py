"""Runs from bucket to bucket: what a local run gives, byte for byte, through servers that fail; few requests."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from tests.support.buckets import KINDS, SECRET, Bucket, without_waiting
from tests.support.faults import first, no_fault, share
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.runs import start

REGIONS = 4


@pytest.fixture(scope="module", params=sorted(KINDS))
def running(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as monkeypatch, KINDS[request.param](monkeypatch) as bucket:
        without_waiting(monkeypatch)
        bucket.proxy.delay = 0.05
        yield bucket


@pytest.fixture
def bucket(running: Bucket) -> Iterator[Bucket]:
    running.proxy.requests.clear()
    yield running
    running.proxy.choose = no_fault


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source of one image of four regions, an ensemble, and a local run of them."""
    folder = tmp_path_factory.mktemp("local")
    write_light_ensemble(folder / "ensemble", members=2, width=4)
    write_image(folder / "source/a.ome.zarr", pixels((128, 128)), channels=["dna"])
    assert start(folder / "source", folder / "ensemble/ensemble.yaml", folder / "out").state == "complete"
    return folder


@pytest.fixture(scope="module")
def uploaded(running: Bucket, local: Path) -> tuple[str, str]:
    """URLs of the source and of the ensemble."""
    return running.put(local / "source", "source"), running.put(local / "ensemble", "ensemble") + "/ensemble.yaml"


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def assert_equal(bucket: Bucket, name: str, local: Path) -> None:
    """Every object of a run in a bucket is that of the local run, but for times and places."""
    here, there = files(local / "out"), bucket.objects(name)
    assert sorted(here) == sorted(there)
    for path in here:
        if path.startswith(("images/", "report/")):
            assert here[path] == there[path], path
        elif path.startswith("ledger/"):
            assert timeless(here[path]) == timeless(there[path]), path
    untold = ["seconds", "source"]
    ours, theirs = read_scores(str(local / "out")), read_scores(storage.join(bucket.url, name))
    pd.testing.assert_frame_equal(ours.drop(columns=untold), theirs.drop(columns=untold))


def timeless(record: bytes) -> object:
    content = json.loads(record)
    content.pop("seconds", None)
    if "row" in content:
        content["row"] = {key: value for key, value in content["row"].items() if key not in ("seconds", "source")}
    return content


def test_a_run_from_bucket_to_bucket_is_the_local_one_with_few_requests(
    bucket: Bucket, uploaded: tuple[str, str], local: Path
) -> None:
    assert start(*uploaded, storage.join(bucket.url, "plain")).state == "complete"
    counts = bucket.proxy.counts
    assert counts("plain/images/a.ome.zarr/s0/c/")["PUT"] == REGIONS  # one object of each array
    assert counts("plain/images/a.ome.zarr/labels/semantic/s0/c/")["PUT"] == REGIONS
    assert counts("plain/ledger/a.ome.zarr/region-") == {"HEAD": REGIONS, "PUT": REGIONS, "GET": REGIONS}
    assert counts("plain/attempts/") - Counter(LIST=9) == {"GET": REGIONS, "PUT": REGIONS, "DELETE": REGIONS}
    assert counts("source/a.ome.zarr/s0/zarr.json") == {"GET": 4}  # for the plan, the picture, all regions together
    assert counts()["LIST"] <= 12
    assert counts()["HEAD"] <= REGIONS + 12
    assert_equal(bucket, "plain", local)


def test_a_run_through_failing_servers_is_the_local_one(bucket: Bucket, uploaded: tuple[str, str], local: Path) -> None:
    bucket.proxy.choose = share(0.05, ("busy", "throttled", "slow", "truncated", "cut"), seed=1)
    assert start(*uploaded, storage.join(bucket.url, "spoilt")).state == "complete"
    assert sum(bucket.proxy.faults().values()) > 3
    bucket.proxy.choose = no_fault
    assert_equal(bucket, "spoilt", local)


def test_an_upload_that_is_cut_is_made_again(bucket: Bucket, uploaded: tuple[str, str], local: Path) -> None:
    spoils = [first(1, "cut", "PUT", f"cut/{name}") for name in ("images/a.ome.zarr/s0/c", "ledger/", "scores", "run")]
    bucket.proxy.choose = lambda kind, key: next((fault for spoil in spoils if (fault := spoil(kind, key))), None)
    assert start(*uploaded, storage.join(bucket.url, "cut")).state == "complete"
    assert bucket.proxy.faults() == {"cut": 4}
    assert_equal(bucket, "cut", local)


def test_requests_that_are_carried_out_without_an_answer_do_no_harm(
    bucket: Bucket, uploaded: tuple[str, str], local: Path
) -> None:
    asked = [("PUT", "lost/run.lock"), ("PUT", "lost/ledger/"), ("DELETE", "lost/attempts/"), ("PUT", "lost/images/")]
    spoils = [first(1, "lost", kind, key) for kind, key in asked]
    bucket.proxy.choose = lambda kind, key: next((fault for spoil in spoils if (fault := spoil(kind, key))), None)
    assert start(*uploaded, storage.join(bucket.url, "lost")).state == "complete"
    assert bucket.proxy.faults() == {"lost": 4}
    assert_equal(bucket, "lost", local)


def test_a_region_whose_shard_cannot_be_put_is_not_recorded_and_a_rerun_does_it(
    bucket: Bucket, uploaded: tuple[str, str], local: Path
) -> None:
    out = storage.join(bucket.url, "torn")
    bucket.proxy.choose = first(10_000, "cut", "PUT", "torn/images/a.ome.zarr/s0/c/0/1/0")
    outcome = start(*uploaded, out)
    assert outcome.state == "interrupted"
    assert re.fullmatch(r".*torn/images/a.ome.zarr: the server cannot be reached .* to resume", outcome.message)
    there = bucket.objects("torn")
    assert sorted(path for path in there if path.startswith("ledger")) == [
        f"ledger/a.ome.zarr/region-0000000{region}.json" for region in (0, 1)
    ]
    assert "images/a.ome.zarr/s0/c/0/1/0" not in there
    assert "scores.parquet" not in there
    bucket.proxy.choose = no_fault
    assert start(*uploaded, out).state == "complete"
    assert_equal(bucket, "torn", local)


@pytest.mark.parametrize("running", ["s3"], indirect=True)
def test_a_secret_is_in_nothing_that_a_run_leaves_or_says(
    bucket: Bucket, uploaded: tuple[str, str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="chorus")
    bucket.proxy.choose = first(8, "busy", "PUT")
    assert start(*uploaded, storage.join(bucket.url, "secret")).state == "complete"
    bucket.proxy.choose = first(10_000, "busy", "GET")
    with pytest.raises(RefusedError) as caught:
        start(*uploaded, storage.join(bucket.url, "secret-2"))
    bucket.proxy.choose = no_fault
    captured = capfd.readouterr()
    said = f"{caught.value} {caught.value.__cause__} {caplog.text} {captured.out} {captured.err}"
    assert SECRET not in said
    for path, data in bucket.objects("secret").items():
        assert SECRET.encode() not in data, path
    run = json.loads(bucket.objects("secret")["run.json"])
    assert "lab-key" not in json.dumps(run)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("running", ["gs"], indirect=True)
def test_a_run_on_ray_through_failing_servers_is_the_local_one(
    bucket: Bucket, uploaded: tuple[str, str], local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    bucket.proxy.choose = share(0.05, ("busy", "truncated", "cut"), seed=5)
    request = PredictRequest(
        sources=uploaded[:1],
        ensemble=uploaded[1],
        out=storage.join(bucket.url, "ray"),
        settings=ResultSettings(region=64, chunk=32),
        run=RunSettings(executor="ray"),
    )
    assert predict(request, Silent()).state == "complete"
    assert sum(bucket.proxy.faults().values()) > 3
    bucket.proxy.choose = no_fault
    assert_equal(bucket, "ray", local)
