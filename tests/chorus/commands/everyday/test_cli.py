"""The command line: what it prints, what it leaves alone, its exit codes, and every kind of storage end to end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from moto.server import ThreadedMotoServer

from chorus.cluster.state.scores import read_scores
from chorus.pipeline.io import storage
from chorus.pipeline.reference.words import NO_REFERENCE
from tests.support.making import pixels, write_ensemble, write_image, write_light_ensemble
from tests.support.running import Chorus, Result


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_light_ensemble(tmp_path_factory.mktemp("e"), members=2, width=4, tile=32, augmentations=["identity"])


@pytest.fixture
def predict(chorus: Chorus, ensemble: Path) -> Chorus:
    def call(source: object, out: object, *more: object) -> Result:
        fixed = ["--executor", "serial", "--region", "64", "--chunk", "32", "--no-report"]
        return chorus("predict", source, "-e", ensemble, "-o", out, *fixed, *more)

    return call


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three images, one of which fails."""
    folder = tmp_path / "images"
    for seed, name in enumerate("ab"):
        write_image(folder / f"{name}.ome.zarr", pixels((60, 50), seed=seed))
    write_image(folder / "c.ome.zarr", pixels((60, 50)).astype("int64"))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def made_scores(out: Path) -> Path:
    """An output with nothing but known scores."""
    out.mkdir()
    rows = [("a", "done", 0.1, 0.9), ("b", "done", 0.2, 0.8), ("c", "empty", None, 1.0), ("d", "failed", None, None)]
    frame = pd.DataFrame(rows, columns=["name", "status", "uncertainty", "pairwise_dice"])
    frame.assign(epistemic=frame["uncertainty"] / 2, message="").to_parquet(out / "scores.parquet")
    return out


def test_rank_lists_the_worst_first_and_the_rest_apart(chorus: Chorus, tmp_path: Path) -> None:
    result = chorus("rank", made_scores(tmp_path / "out"), "--above", 0.15)
    assert result.code == 0
    assert result.out.index(" b ") < result.out.index(" a ") < result.out.index("without a score")
    assert "1 images flagged" in result.out
    assert "1 failed" in result.out


def test_rank_by_dice_takes_the_lowest_first_and_speaks_json(chorus: Chorus, tmp_path: Path) -> None:
    result = chorus("rank", made_scores(tmp_path / "out"), "--by", "pairwise_dice", "--above", 0.85, "--json")
    content = json.loads(result.out)
    assert [(row["name"], row["flagged"]) for row in content["ranked"]] == [("b", True), ("a", False)]
    assert [row["name"] for row in content["empty"]] == ["c"]
    assert [row["name"] for row in content["failed"]] == ["d"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_rank_exports(suffix: str, chorus: Chorus, tmp_path: Path) -> None:
    path = tmp_path / f"ranking.{suffix}"
    assert chorus("rank", made_scores(tmp_path / "out"), "--export", path).code == 0
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[suffix]
    assert read(path)["name"].tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--export", "x.xlsx"], "ends with .csv, .parquet or .json"),
        (["--export", "no/such/folder/x.csv"], "no/such/folder"),
        (["--by", "doubt"], "no score 'doubt'"),
    ],
)
def test_rank_refuses_in_one_sentence(arguments: list[str], said: str, chorus: Chorus, tmp_path: Path) -> None:
    result = chorus("rank", made_scores(tmp_path / "out"), *arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_rank_without_results_is_refused(chorus: Chorus, tmp_path: Path) -> None:
    result = chorus("rank", tmp_path / "nowhere")
    assert result.code == 2
    assert "no scores yet" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_rank_works_where_no_image_has_a_score(chorus: Chorus, predict: Chorus, tmp_path: Path) -> None:
    source = write_image(tmp_path / "c.ome.zarr", pixels((40, 40)).astype("int64"))
    assert predict(source, tmp_path / "out").code == 1
    result = chorus("rank", tmp_path / "out")
    assert result.code == 0, result.err
    assert "1 failed" in result.out


def test_plan_and_dry_run_change_nothing(chorus: Chorus, predict: Chorus, ensemble: Path, dataset: Path) -> None:
    before = tree(dataset.parent)
    out = dataset.parent / "out"
    table = predict(dataset, out, "--dry-run")
    assert table.code == 0
    assert "forward passes" in table.out
    assert "cannot be done: c.ome.zarr" in table.out
    plan = chorus("plan", dataset, "-e", ensemble, "-o", out, "--executor", "serial", "--json")
    content = json.loads(plan.out)
    assert content["cost"]["images"] == 2
    assert content["placement"]["groups"] == [[0, 2]]
    assert not out.exists()
    assert tree(dataset.parent) == before


def test_predict_and_ensemble_check_speak_json(chorus: Chorus, predict: Chorus, ensemble: Path, dataset: Path) -> None:
    result = predict(dataset, dataset.parent / "out", "--json")
    assert result.code == 1
    content = json.loads(result.out)
    assert content["state"] == "failures"
    assert content["summary"]["images"] == 3
    assert json.loads((dataset.parent / "out/run.json").read_text())["outcome"] == "failures"
    checked = json.loads(chorus("ensemble", "check", ensemble, "--json").out)
    assert len(checked["hash"]) == 64


def test_other_settings_are_refused_by_name_and_overwrite_removes_only_ours(
    predict: Chorus, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = dataset / "a.ome.zarr"
    assert predict(source, out).code == 0
    (out / "notes.txt").write_text("mine")
    before = tree(out)
    refused = predict(source, out, "--overlap", 0.25, "--dtype", "float32")
    assert refused.code == 2
    assert "overlap was 0.5, now 0.25" in refused.err
    assert "dtype was float16, now float32" in refused.err
    assert "--overwrite" in refused.err
    assert tree(out) == before
    assert predict(source, out, "--overlap", 0.25, "--overwrite").code == 0
    assert json.loads((out / "run.json").read_text())["settings"]["overlap"] == 0.25
    assert (out / "notes.txt").read_text() == "mine"


def test_overwrite_keeps_the_old_results_where_the_ensemble_is_refused(
    predict: Chorus, chorus: Chorus, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert predict(dataset / "a.ome.zarr", out).code == 0
    before = tree(out)
    broken = write_ensemble(tmp_path / "broken", members=1, tile=32)
    (broken.parent / "member-0.safetensors").unlink()
    result = chorus("predict", dataset / "a.ome.zarr", "-e", broken, "-o", out, "--overwrite", "--executor", "serial")
    assert result.code == 2
    assert tree(out) == before


def test_a_folder_of_others_is_refused(predict: Chorus, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("mine")
    result = predict(dataset, tmp_path / "thesis")
    assert result.code == 2
    assert "is not empty and holds no run of Chorus; choose another --out" in result.err
    assert (tmp_path / "thesis/chapter.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--region", "100"], "is not a multiple of chunk"),
        (["--save", "probability,doubt"], "'doubt' is not a map"),
        (["--augment", "rot45"], "'rot45' is not an augmentation"),
        (["--tile", "8"], "--tile"),
        (["--placement", "staged", "--stages", "5"], "5 stages for 2 members"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    arguments: list[str], said: str, predict: Chorus, dataset: Path, tmp_path: Path
) -> None:
    result = predict(dataset, tmp_path / "out", *arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_in_place_adds_labels_and_touches_nothing_else(
    ngff: str, predict: Chorus, dataset: Path, tmp_path: Path
) -> None:
    source = write_image(tmp_path / "s.ome.zarr", pixels((60, 50)), ngff=ngff)
    form = 2 if ngff == "0.4" else 3
    listed: dict[str, Any] = {"labels": ["by-hand"]}
    attributes = listed if ngff == "0.4" else {"ome": {"version": "0.5", **listed}}
    labels = zarr.create_group(source / "labels", zarr_format=form, attributes=attributes)
    labels.create_group("by-hand").create_array("0", data=np.ones((60, 50), "uint8"))
    before = tree(source)
    assert predict(source, tmp_path / "out", "--in-place").code == 0
    after = tree(source)
    changed = {name for name, data in before.items() if after[name] != data}
    assert changed <= {"labels/.zattrs", "labels/zarr.json"}
    assert {name for name in after.keys() - before.keys() if not name.startswith("labels/semantic/")} == set()
    found = zarr.open_group(source, mode="r")["labels"].attrs.asdict()
    assert (found if ngff == "0.4" else found["ome"])["labels"] == ["by-hand", "semantic"]
    assert zarr.open_array(source / "labels/semantic/s0", mode="r").shape == (60, 50)

    refused = predict(source, tmp_path / "second", "--in-place")
    assert refused.code == 2
    assert "has labels/semantic already; use --overwrite" in refused.err
    assert tree(source) == after
    assert predict(source, tmp_path / "second", "--in-place", "--overwrite").code == 0
    assert tree(source) == after


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An s3:// bucket on this machine."""
    import boto3
    import s3fs

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    for key, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        patch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="cli")
    yield "s3://cli"
    s3fs.S3FileSystem.clear_instance_cache()
    patch.undo()
    server.stop()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """`tmp_path` over HTTP."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def upload(folder: Path, url: str) -> str:
    for name, data in tree(folder).items():
        storage.write_bytes(storage.join(url, name), data)
    return url


@pytest.mark.parametrize("kind", ["memory", "s3", "http"])
def test_any_storage_gives_the_labels_of_the_local_run(
    kind: str, predict: Chorus, dataset: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    local = dataset / "a.ome.zarr"
    assert predict(local, tmp_path / "local").code == 0
    source, out = f"memory://cli/{tmp_path.name}/a.ome.zarr", f"memory://cli/{tmp_path.name}/out"
    if kind == "s3":
        bucket = request.getfixturevalue("bucket")
        source, out = f"{bucket}/in/a.ome.zarr", f"{bucket}/out"
    if kind == "http":
        source, out = f"{request.getfixturevalue('web')}/images/a.ome.zarr", str(tmp_path / "from-web")
    else:
        upload(local, source)
    result = predict(source, out)
    assert result.code == 0, result.err
    for path in ("s0", "labels/semantic/s0"):
        store = storage.store(f"{out}/images/a.ome.zarr/{path}", read_only=True)
        expected = zarr.open_array(tmp_path / "local/images/a.ome.zarr" / path, mode="r")
        assert np.array_equal(np.asarray(zarr.open_array(store, mode="r")), np.asarray(expected))
    assert read_scores(out)["uncertainty"].tolist() == read_scores(str(tmp_path / "local"))["uncertainty"].tolist()
    again = predict(source, out)
    assert again.code == 0
    assert "recorded already" in again.err


def test_a_bucket_that_does_not_exist_is_told(predict: Chorus, dataset: Path, bucket: str) -> None:
    result = predict(dataset / "a.ome.zarr", "s3://no-such-bucket-here/out")
    assert result.code == 3
    assert "no such bucket; check its name" in result.err
    assert "Traceback" not in result.err
    source = predict("s3://no-such-bucket-here/a.zarr", dataset.parent / "out")
    assert source.code == 2
    assert "no-such-bucket-here" in source.err


def test_an_output_on_the_web_is_refused(predict: Chorus, dataset: Path, web: str) -> None:
    result = predict(dataset / "a.ome.zarr", f"{web}/out")
    assert result.code == 2
    assert "http" in result.err
    assert "cannot be written" in result.err


def test_rank_above_exports_only_what_it_flags(chorus: Chorus, tmp_path: Path) -> None:
    out, path = made_scores(tmp_path / "out"), tmp_path / "ranking.csv"
    assert chorus("rank", out, "--above", 0.15, "--export", path).code == 0
    assert pd.read_csv(path)["name"].tolist() == ["b"]
    assert chorus("rank", out, "--by", "pairwise_dice", "--above", 0.95, "--export", path).code == 0
    assert pd.read_csv(path)["name"].tolist() == ["b", "a"]


def judged_scores(out: Path) -> Path:
    """As `made_scores`, judged: the image of lower uncertainty has the higher risk."""
    made_scores(out)
    flags = pd.DataFrame(
        {
            "rank": pd.array([1, 2, 3, None], dtype="Int64"),
            "name": ["a", "c", "b", "d"],
            "status": ["done", "empty", "done", "failed"],
            "expected_dice": [0.61, None, 0.93, None],
            "dice_bound": [0.0, None, 0.85, None],
            "risk": [0.7, 0.5, 0.1, None],
            "p_value": [0.02, 0.5, 0.6, None],
            "flags": [["poor", "ood"], [], [], ["failed"]],
            "reasons": [["features 12 sigma from the reference set"], [], [], ["no such file"]],
        }
    )
    flags.to_parquet(out / "flags.parquet")
    return out


def test_rank_of_judged_images_is_by_risk_and_says_expected_dice_flags_and_reasons(
    chorus: Chorus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    result = chorus("rank", out := judged_scores(tmp_path / "out"))
    assert result.code == 0, result.err
    assert result.out.index(" a ") < result.out.index(" c ") < result.out.index(" b ") < result.out.index("1 failed")
    for said in ("3 images by risk", "0.61", "poor, out of distribution", "features 12 sigma from the reference set"):
        assert said in result.out
    content = json.loads(chorus("rank", out, "--json").out)
    assert [row["name"] for row in content["ranked"]] == ["a", "c", "b"]
    assert content["ranked"][0]["flags"] == ["poor", "ood"]
    assert content["ranked"][0]["expected_dice"] == 0.61
    assert [row["reasons"] for row in content["failed"]] == [["no such file"]]


def test_rank_of_judged_images_by_another_score_keeps_their_flags_and_above_means_uncertainty(
    chorus: Chorus, tmp_path: Path
) -> None:
    out = judged_scores(tmp_path / "out")
    content = json.loads(chorus("rank", out, "--above", 0.15, "--json").out)
    assert [(row["name"], row["flagged"], row["risk"]) for row in content["ranked"]] == [
        ("b", True, 0.1),
        ("a", False, 0.7),
    ]
    assert chorus("rank", made_scores(tmp_path / "unjudged"), "--by", "risk").code == 2
    assert chorus("rank", out, "--by", "risk", "--above", 0.5).code == 2


def test_rank_says_why_images_are_not_judged(chorus: Chorus, tmp_path: Path) -> None:
    out = made_scores(tmp_path / "out")
    assert "images are not judged yet" in chorus("rank", out).out
    (out / "run.json").write_text(json.dumps({"unjudged": NO_REFERENCE}))
    assert NO_REFERENCE in chorus("rank", out).out
