"""A run whose results are cut, emptied or removed: the same command makes the same bytes again, or says why not."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from chorus.cli import app
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.run import find_objects
from chorus.cluster.planning.requests import PlanReporter, PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.errors import ChorusError, OvertakenError
from chorus.pipeline.report.page import write_report
from tests.support.disks import watched
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.ngff import write_plate
from tests.support.runs import PER_CUT

# Of ten regions and two levels, and of one region.
IMAGES = {"a.ome.zarr": (70, 270), "b.ome.zarr": (40, 64)}
DAMAGE = st.one_of(st.none(), st.just(0.0), st.floats(0, 1, exclude_max=True))


def command(folder: Path, out: Path, *, verify: bool = False, reporter: PlanReporter | None = None) -> PredictOutcome:
    """What `chorus predict` does."""
    said = reporter or Silent()
    outcome = predict(
        PredictRequest(
            sources=[str(folder / "in")],
            ensemble=str(folder / "e"),
            out=str(out),
            settings=ResultSettings(region=64, chunk=32),
            run=RunSettings(executor="serial", verify=verify),
            objects="watershed",
        ),
        said,
        said,
    )
    write_report(str(out))
    return outcome


def results(out: Path) -> dict[str, bytes]:
    """All files of the results; the page says when it was made."""
    files = (path for name in ("images", "report") for path in (out / name).rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != "index.html"}


def assert_same(out: Path, done: Path) -> None:
    expected, found = results(done), results(out)
    assert found.keys() == expected.keys()
    assert [path for path, data in expected.items() if found[path] != data] == []
    for read in (lambda of: read_scores(of).drop(columns=[*PER_CUT, "source"]), read_features):
        assert read(str(out)).equals(read(str(done)))
    assert (out / "objects.parquet").read_bytes() == (done / "objects.parquet").read_bytes()
    assert (out / "report" / "index.html").stat().st_size > 10_000


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    for name, shape in IMAGES.items():
        write_image(folder / "in" / name, pixels(shape), "yx")
    measured = {"channels": ["dna"], "normalisation": {"kind": "percentile", "low": 1, "high": 99.8}}
    write_light_ensemble(folder / "e", members=2, width=2, tile=32, augmentations=["identity"], input=measured)
    assert command(folder, folder / "out").state == "complete"
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the finished run, each in a folder of its own."""
    return lambda: Path(shutil.copytree(done / "out", tmp_path / f"{len(list(tmp_path.iterdir()))}"))


def damage(path: Path, share: float | None) -> None:
    """Cut a file after a share of its bytes; None removes it."""
    if share is None:
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])


@settings(
    max_examples=int(os.environ.get("CHORUS_DAMAGED_FILES", "15")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(share=DAMAGE, data=st.data())
def test_any_file_that_is_cut_or_removed_is_made_anew_or_told_of(
    share: float | None, data: st.DataObject, done: Path, again: Callable[[], Path]
) -> None:
    out = again()
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file() and path.name != "run.lock")
    chosen = out / data.draw(st.sampled_from(files))
    damage(chosen, share)
    if chosen.name == "run.json":
        with pytest.raises(ChorusError, match=r"run\.json: is damaged|holds no run of Chorus"):
            command(done, out)
        return
    outcome = command(done, out)
    assert outcome.state == "complete", outcome.rows
    assert_same(out, done / "out")
    shutil.rmtree(out)


def shard(out: Path, array: str) -> Path:
    """The last shard of an array of image a."""
    files = (out / "images" / "a.ome.zarr" / array / "c").rglob("*")
    return max(path for path in files if path.is_file())


def change(path: Path) -> None:
    """Change a byte in the middle of a file, and leave its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_is_found_by_verify_alone(done: Path, again: Callable[[], Path]) -> None:
    out = again()
    shards = [path for path in (out / "images").rglob("*") if path.is_file() and path.name.isdecimal()]
    assert {path.relative_to(out / "images").parts[1] for path in shards} >= {"s0", "s1", "labels"}
    for path in shards:
        change(path)
    changed = results(out)
    assert command(done, out).state == "complete"
    assert results(out) == changed
    assert command(done, out, verify=True).state == "complete"
    assert_same(out, done / "out")


def test_verify_of_whole_results_writes_no_result(done: Path, again: Callable[[], Path]) -> None:
    out = again()
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*") if path.is_file()}
    assert command(done, out, verify=True).state == "complete"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_damage_is_said_by_image_and_file(
    done: Path, again: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    out = again()
    damage(shard(out, "s0"), 0.5)
    with caplog.at_level(logging.WARNING, logger="chorus"):
        command(done, out)
    assert "image a.ome.zarr is finished anew: s0/c/" in caplog.text
    assert "missing, cut or changed" in caplog.text
    assert "image a.ome.zarr: 1 of its regions are done anew" in caplog.text


def test_damaged_shards_of_an_image_that_is_not_finished_are_done_anew(done: Path, again: Callable[[], Path]) -> None:
    out = again()
    (out / "ledger" / "a.ome.zarr" / "image.json").unlink()
    (out / "ledger" / "a.ome.zarr" / "region-00000000.json").unlink()
    damage(shard(out, "labels/semantic/s0"), None)
    assert command(done, out).state == "complete"
    assert_same(out, done / "out")


def test_records_of_an_earlier_version_are_taken_without_a_check(done: Path, again: Callable[[], Path]) -> None:
    out = again()
    for record in (out / "ledger").rglob("*.json"):
        content = json.loads(record.read_text())
        if record.name == "objects.json":
            record.unlink()
        else:
            record.write_text(json.dumps({name: content[name] for name in content.keys() - {"files", "thumbnail"}}))
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*") if path.is_file()}
    for verify in (False, True):
        assert command(done, out, verify=verify).state == "complete"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same(out, done / "out")


def test_a_shard_where_only_background_was_written_is_removed_again(tmp_path: Path, done: Path) -> None:
    write_image(tmp_path / "in" / "a.ome.zarr", np.zeros((70, 90), np.uint16), "yx")
    shutil.copytree(done / "e", tmp_path / "e")
    ensemble = tmp_path / "e" / "ensemble.yaml"
    assert ensemble.exists()
    assert command(tmp_path, tmp_path / "out").state in ("complete", "failures")
    records = sorted((tmp_path / "out" / "ledger" / "a.ome.zarr").glob("region-*.json"))
    absent = [
        path
        for record in records
        for path, known in json.loads(record.read_text())["files"].items()
        if known is None and path.startswith("labels/")
    ]
    assert absent
    before = results(tmp_path / "out")
    stray = tmp_path / "out" / "images" / "a.ome.zarr" / absent[0]
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"stray")
    command(tmp_path, tmp_path / "out")
    assert results(tmp_path / "out") == before


def test_objects_of_other_settings_that_are_damaged_are_told_of(done: Path, again: Callable[[], Path]) -> None:
    out = again()
    other = ObjectsRequest(out=str(out), method="watershed", minimum_size=2, executor="serial")
    assert find_objects(other, Silent()).state == "complete"
    damage(shard(out, "labels/nucleus/s0"), 0.5)
    outcome = command(done, out)
    assert outcome.state == "failures"
    assert "run the `chorus objects` that made them again" in outcome.message
    assert find_objects(other, Silent()).state == "complete"
    assert command(done, out).state == "complete"


def test_every_record_is_renamed_after_its_files_are_on_the_disk(
    tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done / "in", tmp_path / "in")
    shutil.copytree(done / "e", tmp_path / "e")
    disk, out = watched(monkeypatch), tmp_path / "out"
    assert command(tmp_path, out).state == "complete"
    records = list((out / "ledger").rglob("*.json"))
    assert {path.name for path in records} >= {"region-00000000.json", "image.json", "objects.json"}
    for record in records:
        image = out / "images" / record.parent.name
        files = {image / path for path, known in json.loads(record.read_text())["files"].items() if known}
        assert files
        assert files <= disk.synced_before(record)
        assert disk.content_synced(record)
        assert record.parent in disk.synced_after(record)
    tables = {out / name for name in ("scores.parquet", "features.parquet", "objects.parquet")}
    assert all(disk.content_synced(path) for path in (*tables, out / "run.json", out / "objects.json"))
    assert tables <= disk.synced_before(out / "run.json")


class Remover(Silent):
    """Removes the output at some point of the run."""

    def __init__(self, out: Path, at: str | int) -> None:
        self._out, self._at, self._regions = out, at, 0

    def phase(self, text: str) -> None:
        if text == self._at:
            shutil.rmtree(self._out)

    def region(self, status: RegionStatus) -> None:
        self._regions += 1
        if self._regions == self._at:
            shutil.rmtree(self._out)


@pytest.mark.parametrize("at", [1, 4, 11, "measuring the images", "making objects (watershed)"])
def test_a_run_whose_output_is_removed_says_so_and_makes_no_part_of_it_again(
    at: str | int, tmp_path: Path, done: Path
) -> None:
    for name in ("in", "e"):
        shutil.copytree(done / name, tmp_path / name)
    out = tmp_path / "out"
    with pytest.raises(OvertakenError, match=r"run\.lock: is gone, as the output was removed or another") as caught:
        command(tmp_path, out, reporter=Remover(out, at))
    assert "\n" not in str(caught.value)
    assert not list(out.rglob("*"))
    assert command(tmp_path, out).state == "complete"
    assert_same(out, done / "out")


@pytest.mark.parametrize("name", ["scores.parquet", "features.parquet", "objects.parquet", "run.json"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_commands_on_tables_that_are_cut_end_with_one_sentence(
    name: str, share: float, again: Callable[[], Path]
) -> None:
    out = again()
    damage(out / name, share)
    for words in (["rank"], ["report"], ["objects"], ["export", "tables"]):
        more = ["--out", str(out.parent / "export")] if words[0] == "export" else []
        ended = CliRunner().invoke(app, [*words, str(out), *more])
        if ended.exception is None or isinstance(ended.exception, SystemExit):
            assert ended.exit_code in (0, 1), (words, ended.output)
        else:
            assert isinstance(ended.exception, ChorusError), (words, ended.exception)
            assert "\n" not in str(ended.exception)


@pytest.mark.parametrize("share", [0.0, 0.5, None])
def test_groups_of_a_plate_that_are_damaged_are_written_again(share: float | None, tmp_path: Path) -> None:
    write_plate(tmp_path / "in" / "p.ome.zarr", "0.5")
    write_light_ensemble(tmp_path / "e", members=1, width=1, tile=32, augmentations=["identity"])
    out = tmp_path / "out"
    assert command(tmp_path, out).state == "complete"
    before = results(out)
    plate = out / "images" / "p.ome.zarr"
    for group in (plate, plate / "A", plate / "A" / "1"):
        damage(group / "zarr.json", share)
    assert command(tmp_path, out).state == "complete"
    assert results(out) == before
