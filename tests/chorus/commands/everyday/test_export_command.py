"""``chorus export`` as it is typed: files for ImageJ, QuPath and tables, and images to correct."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from roifile import ImagejRoi, roiread

from chorus.cluster.exports.objects import file_name
from chorus.cluster.state.scores import write_scores
from tests.support.object_runs import drawn, run, write_ensemble, write_results, write_source
from tests.support.rows import image_row
from tests.support.running import Chorus

PLANES = {
    "plate/a": drawn(1, 90, 100, 12),
    "b": np.stack([[drawn(2, 60, 70, 6), drawn(3, 60, 70, 6)]]),
    "empty": np.zeros((50, 60), np.int32),
    "open": drawn(4, 50, 50, 5),
}
SHORT = ["--encoder", "tu-mobilenetv4_conv_small_050", "--option", "decoder_channels=[32,24,16,16,8]", "--no-imagenet"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run with objects: of a stack, of an image without any, and one image that is not finished."""
    folder = tmp_path_factory.mktemp("made")
    planes = {name.replace("/", "-"): values for name, values in PLANES.items()}
    ensemble = write_ensemble(folder / "e")
    source = write_source(folder / "in", planes)
    out = write_results(folder / "out", source, ensemble, planes, region=64, unfinished=("open",))
    assert run(out).state == "failures"
    rows = []
    for index, name in enumerate(sorted(planes)):
        status = {"empty": "empty", "open": "failed"}.get(name, "done")
        score = 0.1 + index / 100 if status == "done" else None
        scores = {"uncertainty": score, "pairwise_dice": score}
        rows.append(image_row(f"{name}.ome.zarr", source=str(source / f"{name}.ome.zarr"), status=status, **scores))
    write_scores(str(out), rows)
    return out


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def table(results: Path) -> pd.DataFrame:
    return pd.read_parquet(results / "objects.parquet")


def exported(folder: Path) -> dict[str, bytes]:
    """All files of an export but its record, which says when it was made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "export.json"}


def area(ring: Any) -> float:
    x, y = np.asarray(ring, np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def test_rois_of_every_image_are_listed_and_those_of_all_are_in_the_order_of_uncertainty(
    chorus: Chorus, results: Path, tmp_path: Path
) -> None:
    code, _, err = chorus("export", "rois", results, "--out", tmp_path / "rois", "--executor", "serial")
    assert code == 1
    assert "4 images: 2 done, 1 without objects, 1 failed" in err
    assert "failed: open.ome.zarr: is not finished" in err
    listed = pd.read_csv(tmp_path / "rois" / "images.csv").set_index("image")
    assert listed["status"].to_dict() == {
        "b.ome.zarr": "done",
        "empty.ome.zarr": "empty",
        "open.ome.zarr": "failed",
        "plate-a.ome.zarr": "done",
    }
    assert sorted(path.name for path in (tmp_path / "rois").iterdir()) == [
        "b.zip", "by_uncertainty.csv", "export.json", "images.csv", "plate-a.zip",
    ]  # fmt: skip
    objects, found = table(results), pd.read_csv(tmp_path / "rois" / "by_uncertainty.csv")
    assert found["uncertainty"].is_monotonic_decreasing
    assert found["rank"].tolist() == list(range(1, len(objects) + 1))
    keys = ["image", "t", "z", "label", "area"]
    assert sorted(map(tuple, found[keys].to_numpy())) == sorted(map(tuple, objects[keys].to_numpy()))
    for name, rows in found.groupby("image"):
        rois = roiread(tmp_path / "rois" / listed.loc[str(name), "file"])
        assert [one.name for one in rois] == rows["name"].tolist()
        assert [sum(map(area, one.coordinates(multi=True))) for one in rois] == rows["area"].tolist()
        if name == "b.ome.zarr":  # two channels and two slices: a hyperstack
            assert [one.z_position for one in rois] == (rows["z"] + 1).tolist()


def test_geojson_covers_what_the_table_lists(chorus: Chorus, results: Path, tmp_path: Path) -> None:
    given = ["--out", tmp_path / "q", "--as", "annotation", "--executor", "serial", "--json"]
    code, out, _ = chorus("export", "geojson", results, *given)
    assert (code, json.loads(out)["summary"]["empty"]) == (1, 1)
    assert json.loads((tmp_path / "q" / "empty.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    for name, rows in table(results).groupby("image"):
        features = json.loads((tmp_path / "q" / str(name).replace(".ome.zarr", ".geojson")).read_text())["features"]
        areas = {}
        for feature in features:
            assert feature["properties"]["objectType"] == "annotation"
            geometry = feature["geometry"]
            parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            place = geometry.get("plane", {"z": 0})["z"], feature["properties"]["measurements"]["label"]
            areas[place] = sum(area(ring[:-1]) for part in parts for ring in part)
        assert areas == {(row["z"], row["label"]): row["area"] for row in rows.to_dict("records")}


def test_coordinates_are_those_of_the_full_resolution(chorus: Chorus, tmp_path: Path) -> None:
    labels = drawn(5, 40, 44, 5)
    source = write_source(tmp_path / "in", {"a": labels.repeat(2, axis=0).repeat(2, axis=1)})
    group = zarr.open_group(source / "a.ome.zarr")
    group.create_array("s1", data=np.asarray(group["s0"][:, ::2, ::2]), chunks=(1, 32, 32))  # type: ignore[index]
    attributes = group.attrs.asdict()
    scale = {"type": "scale", "scale": [1.0, 2.0, 2.0]}
    attributes["ome"]["multiscales"][0]["datasets"].append({"path": "s1", "coordinateTransformations": [scale]})
    group.attrs.put(attributes)
    out = write_results(tmp_path / "out", source, write_ensemble(tmp_path / "e"), {"a": labels}, level=1)
    assert run(out).state == "complete"
    assert chorus("export", "rois", out, "--out", tmp_path / "r", "--executor", "serial").code == 0
    rows = table(out).set_index("label")
    for one in roiread(tmp_path / "r" / "a.zip"):
        row = rows.loc[int(one.name.rsplit("label")[1])]
        points = np.concatenate(one.coordinates(multi=True))
        assert (points.min(axis=0) == [2 * row["x0"], 2 * row["y0"]]).all()
        assert (points.max(axis=0) == [2 * row["x1"], 2 * row["y1"]]).all()
        assert sum(map(area, one.coordinates(multi=True))) == 4 * row["area"]


def test_files_of_plates_are_in_folders_that_training_enters() -> None:
    assert file_name("plate.ome.zarr/B/02/0", ".tif") == "plate/B/02/0.tif"
    assert file_name("a.b.ome.zarr", ".zip") == "a.b.zip"


def test_the_same_command_gives_the_same_bytes_and_a_damaged_image_is_named(
    chorus: Chorus, results: Path, tmp_path: Path
) -> None:
    command = ["export", "rois", results, "--out", tmp_path / "r", "--executor", "serial", "--color"]
    assert chorus(*command, "uncertainty").code == 1
    before = exported(tmp_path / "r")
    assert chorus(*command, "uncertainty").code == 1
    assert exported(tmp_path / "r") == before
    assert chorus(*command, "class").code == 1
    one = roiread(tmp_path / "r" / "b.zip")[0]
    assert isinstance(one, ImagejRoi)
    colors = json.loads((results / "run.json").read_text())["ensemble"]["classes"]
    assert one.hexcolor(one.stroke_color) == colors[1]["color"]
    shutil.rmtree(results / "images" / "b.ome.zarr" / "labels" / "kind 1")
    code, _, err = chorus(*command, "uncertainty")
    assert code == 1
    assert "b.ome.zarr/labels/kind 1/s0: not found" in err
    assert (tmp_path / "r" / "plate-a.zip").read_bytes() == before["plate-a.zip"]
    assert not (tmp_path / "r" / "b.zip").exists()


def test_what_is_read_at_once_changes_no_byte(
    chorus: Chorus, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at_once in (10**6, 7):
        monkeypatch.setattr("chorus.pipeline.exports.tables._AT_ONCE", at_once)
        monkeypatch.setattr("chorus.cluster.exports.outline_files._HELD", at_once)
        assert chorus("export", "rois", results, "-o", tmp_path / f"{at_once}", "--executor", "serial").code == 1
    assert exported(tmp_path / "7") == exported(tmp_path / "1000000")


@pytest.mark.ray
@pytest.mark.long
def test_workers_change_no_byte(chorus: Chorus, results: Path, tmp_path: Path) -> None:
    for executor in ("ray", "serial"):
        assert chorus("export", "geojson", results, "--out", tmp_path / executor, "--executor", executor).code == 1
    assert exported(tmp_path / "ray") == exported(tmp_path / "serial")
    assert len(exported(tmp_path / "ray")) > 4


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_tables_join_scores_flags_and_evaluation(chorus: Chorus, results: Path, tmp_path: Path, kind: str) -> None:
    scores = pd.read_parquet(results / "scores.parquet")
    reasons = [["a, b", 'c "d"'] if index == 2 else [] for index in range(len(scores))]
    flags = pd.DataFrame({"rank": [2, 1, None, 3], "name": scores["name"], "status": scores["status"], "risk": 0.5})
    flags.assign(reasons=reasons)[::-1].to_parquet(results / "flags.parquet")
    truth = pd.DataFrame({"name": scores["name"], "status": "no truth", "dice": [0.5, None, None, 0.25]})
    truth.to_parquet(results / "evaluation.parquet")
    code, out, _ = chorus("export", "tables", results, "--out", tmp_path / "t", "--format", kind)
    assert code == 0
    assert f"objects.{kind}  {len(table(results))} rows" in out
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[kind]
    images = read(tmp_path / "t" / f"images.{kind}")
    assert images["name"].tolist() == scores["name"].tolist()
    assert images["reasons"].fillna("").tolist()[2] == 'a, b; c "d"'
    assert images["dice"].tolist()[0] == 0.5
    assert images["status"].tolist() == scores["status"].tolist()
    assert set(images["evaluation_status"]) == {"no truth"}
    pd.testing.assert_frame_equal(
        read(tmp_path / "t" / f"objects.{kind}"), table(results), check_dtype=False, rtol=1e-12
    )


def test_the_worst_images_are_packed_with_their_draft_and_training_takes_them(
    chorus: Chorus, results: Path, tmp_path: Path
) -> None:
    to = tmp_path / "package"
    code, out, _ = chorus("export", "annotation", results, "--out", to, "--images", 5, "--size", 64)
    assert code == 0
    assert "2 images by uncertainty" in out
    package = pd.read_csv(to / "package.csv")
    assert package["file"].tolist() == ["plate-a.tif", "b.tif"]
    for row in package.to_dict("records"):
        stored = zarr.open_array(f"{row['source']}/s0", mode="r")
        labels = zarr.open_array(results / "images" / row["name"] / "labels" / "kind 1" / "s0", mode="r")
        window = slice(row["y"], row["y"] + row["height"]), slice(row["x"], row["x"] + row["width"])
        plane = (row["t"], 0, row["z"]) if stored.ndim == 5 else (0,)  # the ensemble saw the first channel
        assert np.array_equal(tifffile.imread(to / "images" / row["file"]), np.asarray(stored[(*plane, *window)]))
        plane = (row["t"], row["z"]) if stored.ndim == 5 else ()
        assert np.array_equal(tifffile.imread(to / "labels" / row["file"]), np.asarray(labels[(*plane, *window)]))
    advice = (to / "README.txt").read_text()
    assert "--label-kind instances --flows --class background --class 'kind 1' --channel dna" in advice
    given = ["--channel", "dna", "--class", "background", "--class", "kind 1", "--flows"]
    quick = [*SHORT, "--folds", 2, "--steps", 4, "--patch", 32, "--batch", 2, "--tile", 32, "--executor", "serial"]
    trained = chorus("train", to / "images", "--labels", to / "labels", "-o", tmp_path / "new", *given, *quick)
    assert trained.code == 0, trained.err
    assert (tmp_path / "new" / "ensemble.yaml").exists()


def test_a_package_is_not_written_over_unless_asked(chorus: Chorus, results: Path, tmp_path: Path) -> None:
    to = tmp_path / "package"
    command = ["export", "annotation", results, "--out", to, "--by", "pairwise_dice", "--images"]
    assert chorus(*command, 2).code == 0
    before = (to / "labels" / "b.tif").read_bytes()
    (to / "labels" / "b.tif").write_bytes(b"corrected")
    code, _, err = chorus(*command, 1)
    assert code == 2
    assert "may hold corrections" in err
    assert (to / "labels" / "b.tif").read_bytes() == b"corrected"
    assert chorus(*command, 1, "--overwrite").code == 0
    assert [path.name for path in (to / "labels").iterdir()] == ["b.tif"]  # the lowest Dice is the worst
    assert (to / "labels" / "b.tif").read_bytes() == before


def test_after_flags_the_riskiest_are_packed_with_the_reasons(chorus: Chorus, results: Path, tmp_path: Path) -> None:
    scores = pd.read_parquet(results / "scores.parquet").set_index("name", drop=False)
    flags = scores.loc[["empty.ome.zarr", "b.ome.zarr", "plate-a.ome.zarr", "open.ome.zarr"], ["name", "status"]]
    reasons = [["nothing found"], ["members disagree", "far"], [], ["not finished"]]
    flags = flags.assign(rank=[1, 2, 3, None], risk=[0.9, 0.5, 0.1, None], reasons=reasons, flags=reasons)
    flags.reset_index(drop=True)[::-1].to_parquet(results / "flags.parquet")
    assert chorus("export", "annotation", results, "--out", tmp_path / "p", "--images", 2).code == 0
    package = pd.read_csv(tmp_path / "p" / "package.csv")
    assert package["file"].tolist() == ["empty.tif", "b.tif"]
    assert package["reasons"].tolist() == ["nothing found", "members disagree; far"]
    assert not tifffile.imread(tmp_path / "p" / "labels" / "empty.tif").any()


def test_without_objects_the_draft_is_the_semantic_label(chorus: Chorus, results: Path, tmp_path: Path) -> None:
    (results / "objects.json").unlink()
    assert chorus("export", "annotation", results, "--out", tmp_path / "p", "--images", 1).code == 0
    assert set(np.unique(tifffile.imread(tmp_path / "p" / "labels" / "plate-a.tif"))) == {0, 1}
    assert "--label-kind classes" in (tmp_path / "p" / "README.txt").read_text()


@pytest.mark.parametrize(
    ("command", "given", "sentence"),
    [
        ("annotation", ["--by", "beauty"], "no score 'beauty'; choose out of uncertainty, pairwise_dice"),
        ("annotation", ["--by", "risk"], "has no flags; run `chorus flag"),
        ("annotation", ["--images", 0], "--images: Input should be"),
        ("annotation", ["--size", 8], "--size: Input should be"),
        ("rois", ["--out", "http://example.org/x"], "cannot be written over HTTP"),
    ],
)
def test_what_makes_no_sense_is_refused(
    chorus: Chorus, results: Path, tmp_path: Path, command: str, given: list[object], sentence: str
) -> None:
    code, _, err = chorus("export", command, results, "--out", tmp_path / "x", *given)
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["rois", "geojson", "tables", "annotation"])
def test_exports_never_lie_among_the_results(chorus: Chorus, results: Path, command: str) -> None:
    code, _, err = chorus("export", command, results, "--out", results)
    assert code == 2
    assert "is the folder of the results" in err


def test_results_without_objects_are_refused(chorus: Chorus, results: Path, tmp_path: Path) -> None:
    command = ["export", "geojson", results, "--out", tmp_path / "x"]
    record = json.loads((results / "objects.json").read_text())
    (results / "objects.json").write_text(json.dumps(record | {"outcome": "running"}))
    assert "its objects are not complete; run `chorus objects" in chorus(*command).err
    (results / "objects.json").unlink()
    code, _, err = chorus(*command)
    assert code == 2
    assert "has no objects; run `chorus objects" in err
    code, _, err = chorus("export", "tables", tmp_path, "--out", tmp_path / "x")
    assert code == 2
    assert "no scores yet" in err


@pytest.mark.parametrize(("name", "again"), [("flags", "flag"), ("evaluation", "evaluate")])
def test_a_damaged_table_beside_the_scores_is_one_sentence(
    chorus: Chorus, results: Path, tmp_path: Path, name: str, again: str
) -> None:
    (results / f"{name}.parquet").write_bytes((results / "scores.parquet").read_bytes()[:-9])
    code, _, err = chorus("export", "tables", results, "--out", tmp_path / "x")
    assert code == 2
    assert f"{name}.parquet: is damaged (" in err
    assert f"run `chorus {again}` again, or remove it" in err
