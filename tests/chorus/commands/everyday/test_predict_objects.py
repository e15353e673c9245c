"""Objects as a part of ``chorus predict``: the same as those of ``chorus objects``, and asked for or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from chorus.cluster.objects import stream as cluster_objects
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings
from tests.support.making import pixels, write_ensemble, write_image
from tests.support.running import Chorus

SERIAL = ["--executor", "serial", "--no-report", "--region", "64", "--chunk", "32"]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ensemble(tmp_path_factory.mktemp("e"), members=1, flows=True, augmentations=["identity"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ensemble(tmp_path_factory.mktemp("plain"), members=1, augmentations=["identity"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for name, shape in (("a", (90, 100)), ("b", (70, 50))):
        write_image(folder / f"{name}.ome.zarr", pixels(shape))
    return folder


def content(out: Path) -> list[bytes]:
    found = [(out / "objects.parquet").read_bytes()]
    for image in ("a", "b"):
        array = zarr.open_array(out / "images" / f"{image}.ome.zarr" / "labels" / "class-1" / "s0", mode="r")
        found.append(np.asarray(array[:]).tobytes())
    return found


def summary(out: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((out / "run.json").read_text())["summary"]
    return loaded


def test_members_with_flows_give_objects_unasked(chorus: Chorus, ensemble: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, err = chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL)
    assert code == 0
    table = pd.read_parquet(out / "objects.parquet")
    assert f"objects  {out}/objects.parquet  ({len(table)} of class-1, by flows)" in err
    assert summary(out)["objects"] == {"method": "flows", "counts": {"class-1": len(table)}, "failed": 0}
    assert "flows" in json.loads((out / "run.json").read_text())["settings"]["save"]
    found = content(out)
    (out / "objects.json").unlink()
    assert chorus("objects", out, "--executor", "serial").code == 0
    assert content(out) == found


def test_members_without_flows_give_objects_when_asked(
    chorus: Chorus, plain: Path, source: Path, tmp_path: Path
) -> None:
    assert chorus("predict", source, "-e", plain, "-o", tmp_path / "a", *SERIAL).code == 0
    assert not (tmp_path / "a" / "objects.parquet").exists()
    code, out, _ = chorus(
        "predict", source, "-e", plain, "-o", tmp_path / "b", *SERIAL, "--objects", "components", "--json"
    )
    assert code == 0
    assert json.loads(out)["summary"]["objects"]["method"] == "components"
    assert len(pd.read_parquet(tmp_path / "b" / "objects.parquet"))


@pytest.mark.parametrize(
    "extra", [["--objects", "none"], ["--save", "none"], ["--objects", "none", "--save", "uncertainty,flows"]]
)
def test_no_objects_are_made_where_none_are_wanted(
    chorus: Chorus, ensemble: Path, source: Path, tmp_path: Path, extra: list[str]
) -> None:
    out = tmp_path / "out"
    assert chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL, *extra).code == 0
    assert not (out / "objects.json").exists()
    assert "objects" not in summary(out)
    assert ("flows" in json.loads((out / "run.json").read_text())["settings"]["save"]) == ("flows" in extra[-1])


def test_objects_that_cannot_be_made_are_refused_before_the_run(
    chorus: Chorus, ensemble: Path, plain: Path, source: Path, tmp_path: Path
) -> None:
    for model, extra, sentence in (
        (plain, ["--objects", "flows"], "its members give no flows; choose --objects watershed or components"),
        (ensemble, ["--objects", "components", "--in-place"], "objects are not written into source images"),
    ):
        code, _, err = chorus("predict", source, "-e", model, "-o", tmp_path / "out", *SERIAL, *extra)
        assert code == 2
        assert sentence in err
        assert not (tmp_path / "out" / "run.json").exists()


def test_a_run_cut_short_among_its_objects_goes_on_by_the_same_command(
    chorus: Chorus, ensemble: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert chorus("predict", source, "-e", ensemble, "-o", whole, *SERIAL).code == 0

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cluster_objects, "find_all", stopped)
        code, _, err = chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL)
    assert code == 3
    assert "cut short" in err
    scores = (out / "scores.parquet").stat().st_mtime_ns, len(pd.read_parquet(out / "scores.parquet"))
    assert scores[1] == 2
    assert chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL).code == 0
    assert content(out) == content(whole)


def test_objects_of_other_settings_stay_when_the_run_is_called_again(
    chorus: Chorus, ensemble: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL).code == 0
    assert chorus("objects", out, "--method", "components", "--executor", "serial").code == 0
    found = content(out)
    code, _, err = chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL)
    assert code == 0
    assert "by components" in err
    assert content(out) == found


def test_an_image_whose_objects_fail_is_counted_and_the_others_are_done(
    chorus: Chorus, ensemble: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chorus.pipeline.errors import ImageError

    find_all, out = cluster_objects.find_all, tmp_path / "out"

    def failing(job: object) -> object:
        if job.image.name == "b.ome.zarr":  # type: ignore[attr-defined]
            raise ImageError("b.ome.zarr: is damaged")
        return find_all(job)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(cluster_objects, "find_all", failing)
        code, _, err = chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL)
    assert code == 1
    assert f"failed: objects of 1 images; {out}/objects.json says why" in err
    assert pd.read_parquet(out / "scores.parquet")["status"].tolist().count("failed") == 0
    assert set(pd.read_parquet(out / "objects.parquet")["image"]) <= {"a.ome.zarr"}
    assert chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL).code == 0


def test_programs_get_no_objects_unless_they_ask() -> None:
    request = PredictRequest(sources=["a"], ensemble="e", out="o", settings=ResultSettings())
    assert request.objects == "none"


@pytest.mark.ray
@pytest.mark.long
def test_on_ray_objects_are_made_in_the_same_session(
    chorus: Chorus, ensemble: Path, source: Path, tmp_path: Path
) -> None:
    for name, executor in (("ray", "ray"), ("serial", "serial")):
        given = ["--no-report", "--region", "64", "--chunk", "32", "--executor", executor]
        code, _, err = chorus("predict", source, "-e", ensemble, "-o", tmp_path / name, *given)
        assert code == 0
        assert err.count("starting Ray") == (executor == "ray")
    assert content(tmp_path / "ray") == content(tmp_path / "serial")


def test_evaluation_takes_these_objects_and_says_what_made_them(
    chorus: Chorus, ensemble: Path, source: Path, tmp_path: Path
) -> None:
    from skimage.io import imsave

    (tmp_path / "truth").mkdir()
    out, truth = tmp_path / "out", tmp_path / "truth"
    assert chorus("predict", source, "-e", ensemble, "-o", out, *SERIAL).code == 0
    for image in ("a", "b"):
        labels = zarr.open_array(out / "images" / f"{image}.ome.zarr" / "labels" / "class-1" / "s0", mode="r")
        imsave(truth / f"{image}.tif", np.asarray(labels[:]).astype(np.uint16), check_contrast=False)
    for extra, made_by in (([], "flows"), (["--objects", "components"], "components of the semantic labels")):
        code, _, err = chorus("evaluate", out, "--truth", truth, "--executor", "serial", *extra)
        found = json.loads((out / "evaluation.json").read_text())
        assert code == 0
        assert found["objects"] == made_by
        assert f"objects  by {made_by}" in err
        assert (found["metrics"]["ap50"]["mean"] == 1) == (made_by == "flows")
