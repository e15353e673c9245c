"""Outlines of decided images by the page are the files of `chorus export`; and what the page says of places."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import roifile
from fastapi.testclient import TestClient

from chorus.cluster.exports.outline_files import ExportRequest
from chorus.cluster.exports.outlines import IMAGES, export_objects
from chorus.cluster.runtime.reporting import Silent
from chorus.serving.review.app import review_app
from chorus.serving.review.run import ReviewedRun
from tests.support.object_runs import drawn
from tests.support.reviews import EVIL, SLIDE, write_object_run, write_review_run

NAMES = [f"i{index:02d}" for index in range(5)]
ACCEPTED = ["i00", "i02", "i04"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_object_run(
        tmp_path_factory.mktemp("made"), {name: drawn(seed, 60, 70, 6) for seed, name in enumerate(NAMES)}
    )
    log = ReviewedRun(str(out)).log
    for name in NAMES:
        log.decide("ann", f"{name}.ome.zarr", "accept" if name in ACCEPTED else "reject")
    return out


def archive(client: TestClient, kind: str, decided: str = "accept") -> zipfile.ZipFile:
    answer = client.get("/api/outlines.zip", params={"kind": kind, "decided": decided})
    assert answer.status_code == 200, answer.text
    assert f'filename="{decided}-{kind}.zip"' in answer.headers["content-disposition"]
    return zipfile.ZipFile(io.BytesIO(answer.content))


@pytest.mark.parametrize("kind, suffix", [("geojson", ".geojson"), ("rois", ".zip")])
def test_the_archive_holds_the_files_of_the_command_for_those_images_alone(
    results: Path, tmp_path: Path, kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chorus.serving.review.outline_routes._BATCH", 2)
    request = ExportRequest(out=str(results), to=str(tmp_path), kind=kind, executor="serial")  # type: ignore[arg-type]
    assert export_objects(request, Silent()).state == "complete"
    found = archive(TestClient(review_app(str(results))), kind)
    assert found.testzip() is None
    assert sorted(found.namelist()) == [*(f"{name}{suffix}" for name in ACCEPTED), IMAGES]
    for name in ACCEPTED:
        assert found.read(f"{name}{suffix}") == (tmp_path / f"{name}{suffix}").read_bytes()
    listed = pd.read_csv(io.BytesIO(found.read(IMAGES)))
    assert listed["status"].tolist() == ["done"] * 3
    if kind == "rois":
        for row in listed.itertuples():
            rois = zipfile.ZipFile(io.BytesIO(found.read(row.file)))
            read = [roifile.ImagejRoi.frombytes(rois.read(name)) for name in rois.namelist()]
            assert len({roi.name for roi in read}) == row.objects > 0


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_there(results: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(results, tmp_path / "copy"))
    shutil.rmtree(out / "images" / "i02.ome.zarr")
    found = archive(TestClient(review_app(str(out))), "geojson")
    listed = pd.read_csv(io.BytesIO(found.read(IMAGES))).set_index("image")
    assert listed["status"].to_dict() == {
        "i00.ome.zarr": "done", "i02.ome.zarr": "failed", "i04.ome.zarr": "done"
    }  # fmt: skip
    assert str(tmp_path) not in str(listed["message"]["i02.ome.zarr"])


def test_what_is_too_much_or_nothing_or_done_already_is_refused(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(review_app(str(results)))

    def status(kind: str, decided: str) -> int:
        return client.get("/api/outlines.zip", params={"kind": kind, "decided": decided}).status_code

    assert status("geojson", "correct-later") == 404
    assert status("svg", "accept") == status("rois", "none") == 422
    with monkeypatch.context() as patch:
        patch.setattr("chorus.serving.review.outline_routes.MOST_OBJECTS", 3)
        assert status("rois", "accept") == 413
    assert status("rois", "accept") == status("rois", "reject") == 200  # one after the other
    plain = TestClient(review_app(str(write_review_run(tmp_path))))
    refused = plain.get("/api/outlines.zip", params={"kind": "rois", "decided": "accept"})
    assert (refused.status_code, refused.json()["detail"]) == (
        400,
        "OUT: has no objects; run `chorus objects OUT` first",
    )
    assert not plain.get("/api/run").json()["objects"]


def test_no_sentence_of_the_page_names_a_place_of_the_machine(tmp_path: Path) -> None:
    """Of errors, messages of images and notes; the person at the machine sees them by `chorus review`."""
    out = write_review_run(tmp_path)
    scores = pd.read_parquet(out / "scores.parquet")
    scores["message"] = f"{tmp_path}/in/{SLIDE}/s0: cannot be read; mend it"
    scores.to_parquet(out / "scores.parquet")
    (out / "flags.parquet").write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "in" / SLIDE / "s0")
    (tmp_path / "in" / SLIDE / "zarr.json").write_text("{")
    client, local = (TestClient(review_app(str(out), places=places)) for places in (False, True))
    urls = [f"thumbnails/{SLIDE}", f"image/{SLIDE}", f"tiles/{SLIDE}/channel-0/0/0/0/0/0.webp", "images", "run"]
    urls += [f"values/{SLIDE}?y=0&x=0", "outlines.zip?kind=rois&decided=accept", "distribution?score=/etc/passwd"]
    urls += ["plate?plate=p9&score=uncertainty", f"image/{EVIL}"]
    answers = [client.get(f"/api/{url}") for url in urls]
    for url, answer in zip(urls, answers, strict=True):
        assert str(tmp_path) not in answer.text, url
        assert "Traceback" not in answer.text
    assert answers[-1].status_code == 422
    assert all(SLIDE in note for note in answers[1].json()["notes"])
    assert str(tmp_path) in str(local.get(f"/api/image/{SLIDE}").json()["notes"])
    assert local.get("/api/run").json()["results"] == str(out)
    undo = client.post("/api/undo", json={"id": "x", "reviewer": "ann"})
    assert (undo.status_code, str(tmp_path) in undo.text) == (400, False)
