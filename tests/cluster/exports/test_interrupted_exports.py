"""Exports that are stopped or killed: the same command finishes them, with the bytes of one that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.cluster.exports import outline_files
from chorus.cluster.exports.annotation import export_annotation
from chorus.cluster.exports.objects import Objects
from chorus.cluster.exports.outline_files import ExportJob, ExportRequest
from chorus.cluster.exports.outlines import export_objects
from chorus.cluster.exports.package import AnnotationRequest
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.errors import RefusedError
from tests.support.interruptions import StopAfter, killed_after
from tests.support.object_runs import drawn
from tests.support.reviews import write_object_run

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with objects and scores."""
    planes = {name: drawn(seed, 60, 70, 6) for seed, name in enumerate(NAMES)}
    return write_object_run(tmp_path_factory.mktemp("made"), planes)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that this process exports."""
    names: list[str] = []
    real = outline_files.export_image

    def note(job: ExportJob) -> None:
        names.append(job.image.name)
        real(job)

    monkeypatch.setattr(outline_files, "export_image", note)
    return names


def request(results: Path, to: Path, kind: Literal["rois", "geojson"] = "rois", **more: object) -> ExportRequest:
    content = {"out": str(results), "to": str(to), "kind": kind, "executor": "serial"}
    return ExportRequest.model_validate(content | more)


def files(folder: Path) -> dict[str, bytes]:
    """All files of an export but its record, which says when it was made."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "export.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("kind", ["rois", "geojson"])
def test_a_killed_export_goes_on_where_it_was_with_the_same_bytes(
    results: Path, tmp_path: Path, exported: list[str], kind: Literal["rois", "geojson"]
) -> None:
    assert export_objects(request(results, tmp_path / "whole", kind), Silent()).state == "complete"
    exported.clear()
    killed_after(2, export_objects, request(results, tmp_path / "killed", kind))
    record = json.loads((tmp_path / "killed" / "export.json").read_text())
    assert (record["outcome"], record["settings"]["kind"]) == ("running", kind)
    assert len(list((tmp_path / "killed" / "ledger").glob("*.json"))) == 2
    (tmp_path / "killed" / ".0123456789abcdef.part").write_bytes(b"half of")
    outcome = export_objects(request(results, tmp_path / "killed", kind), Silent())
    assert (outcome.state, [row.status for row in outcome.rows]) == ("complete", ["done"] * 4)
    assert exported == ["c.ome.zarr", "d.ome.zarr"]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "export.json").read_text())["started"] == record["started"]


def test_a_stopped_export_says_what_is_open_and_other_settings_begin_anew(
    results: Path, tmp_path: Path, exported: list[str]
) -> None:
    to = tmp_path / "to"
    outcome = export_objects(request(results, to), StopAfter(1))
    assert (outcome.state, outcome.exit_code) == ("interrupted", 3)
    assert [row.status for row in outcome.rows] == ["done", "open", "open", "open"]
    assert "run the same command again" in outcome.message
    assert list(pd.read_csv(to / "images.csv")["status"]) == ["done", "open", "open", "open"]
    exported.clear()
    assert export_objects(request(results, to, color="class"), Silent()).state == "complete"
    assert len(exported) == 4


def test_images_that_failed_are_listed_in_the_record_and_tried_again(
    results: Path, tmp_path: Path, exported: list[str]
) -> None:
    out = Path(shutil.copytree(results, tmp_path / "out"))
    labels = next((out / "images" / "b.ome.zarr" / "labels").glob("*/zarr.json")).parent
    shutil.move(labels, tmp_path / "kept")
    for state in ("failures", "complete"):
        assert export_objects(request(out, tmp_path / "to"), Silent()).state == state
        record = json.loads((tmp_path / "to" / "export.json").read_text())
        assert list(record["failures"]) == ([] if state == "complete" else ["b.ome.zarr"])
        assert not (tmp_path / "to" / "ledger").exists()
        shutil.copytree(tmp_path / "kept", labels, dirs_exist_ok=True)


def test_two_exports_to_one_folder_at_once_are_refused(results: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"

    class Second(StopAfter):
        def end_here(self) -> None:
            with pytest.raises(RefusedError, match="another run is writing here"):
                export_objects(request(results, to), Silent())

    assert export_objects(request(results, to), Second(2)).state == "complete"


def package(results: Path, to: Path, **more: object) -> AnnotationRequest:
    return AnnotationRequest.model_validate({"out": str(results), "to": str(to), "by": "pairwise_dice"} | more)


def test_a_killed_package_goes_on_and_keeps_what_was_corrected(results: Path, tmp_path: Path) -> None:
    whole, to = tmp_path / "whole", tmp_path / "to"
    assert export_annotation(package(results, whole), Silent()).state == "complete"
    killed_after(2, export_annotation, package(results, to))
    (first, second) = sorted(path.stem for path in (to / "labels").iterdir())
    (to / "labels" / f"{first}.tif").write_bytes(b"corrected")
    with pytest.raises(RefusedError, match="may hold corrections"):
        export_annotation(package(results, to, size=32), Silent())
    assert export_annotation(package(results, to), Silent()).state == "complete"
    assert files(to) == files(whole) | {f"labels/{first}.tif": b"corrected"}
    with pytest.raises(RefusedError, match="may hold corrections"):
        export_annotation(package(results, to), Silent())
    assert export_annotation(package(results, to, overwrite=True), Silent()).state == "complete"
    assert files(to) == files(whole)
    assert second in {Path(name).stem for name in files(to)}


def test_overwriting_a_killed_package_removes_its_files(results: Path, tmp_path: Path) -> None:
    killed_after(3, export_annotation, package(results, tmp_path / "to"))
    assert export_annotation(package(results, tmp_path / "to", images=1, overwrite=True), Silent()).state == "complete"
    assert len(list((tmp_path / "to" / "labels").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00garbage", b"[]", b'{"command": "export"}'])
def test_a_damaged_record_of_an_export_begins_anew(
    results: Path, tmp_path: Path, exported: list[str], damage: bytes
) -> None:
    to = tmp_path / "to"
    export_objects(request(results, to), StopAfter(2))
    (to / "export.json").write_bytes(damage)
    exported.clear()
    assert export_objects(request(results, to), Silent()).state == "complete"
    assert len(exported) == 4


def test_an_image_whose_record_is_damaged_is_exported_again(results: Path, tmp_path: Path, exported: list[str]) -> None:
    to = tmp_path / "to"
    export_objects(request(results, to), StopAfter(2))
    (to / "ledger" / "a.ome.zarr.json").write_bytes(b'{"file": "a.z')
    exported.clear()
    assert export_objects(request(results, to), Silent()).state == "complete"
    assert exported == ["a.ome.zarr", "c.ome.zarr", "d.ome.zarr"]


@pytest.fixture(scope="module")
def damaged(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], str]:
    """Return a run of which one file has other content."""
    out = tmp_path_factory.mktemp("damaged") / "out"
    shutil.copytree(results, out)

    def write(name: str, data: bytes) -> str:
        for file in ("objects.json", "objects.parquet"):
            shutil.copy(results / file, out / file)
        (out / name).write_bytes(data)
        return str(out)

    return write


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(["objects.json", "objects.parquet"]), tail=st.binary(max_size=8))
def test_objects_that_were_cut_anywhere_are_refused_in_one_sentence(
    results: Path, damaged: Callable[[str, bytes], str], data: st.DataObject, name: str, tail: bytes
) -> None:
    whole = (results / name).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    out = damaged(name, whole[:place] + tail)
    if whole[:place] + tail == whole:
        return
    with pytest.raises(RefusedError) as refused:
        Objects(out)
    assert f"{name}: is damaged" in str(refused.value)
    assert "chorus objects" in str(refused.value)
    assert "\n" not in str(refused.value)
