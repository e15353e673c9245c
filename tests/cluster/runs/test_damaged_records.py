"""A run whose own files are cut: the same command makes them anew, or says in one sentence what is wrong."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chorus.cluster.state.output import clear_output
from chorus.cluster.state.score_table import ScoreTable
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.errors import ChorusError, DamagedError
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.runs import PER_CUT, arrays, run, start

IMAGES = {"a.ome.zarr": (70, 90), "b.ome.zarr": (40, 64)}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, an ensemble, and a finished run."""
    folder = tmp_path_factory.mktemp("done")
    for name, shape in IMAGES.items():
        write_image(folder / "in" / name, pixels(shape), "yx")
    measured = {"channels": ["dna"], "normalisation": {"kind": "percentile", "low": 1, "high": 99.8}}
    write_light_ensemble(folder / "e", members=2, width=2, tile=32, augmentations=["identity"], input=measured)
    run(folder / "in", folder / "e", folder / "out")
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the finished run, each in a folder of its own."""
    return lambda: Path(shutil.copytree(done / "out", tmp_path / f"{len(list(tmp_path.iterdir()))}"))


def scores(out: Path) -> pd.DataFrame:
    return read_scores(str(out)).drop(columns=[*PER_CUT, "source"])


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def assert_whole(out: Path, done: Path) -> None:
    pd.testing.assert_frame_equal(scores(out), scores(done / "out"))
    pd.testing.assert_frame_equal(read_features(str(out)), read_features(str(done / "out")))
    assert arrays(out) == arrays(done / "out")


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), data=st.data())
def test_a_file_of_the_run_that_is_cut_is_made_anew_or_told_of(
    share: float, data: st.DataObject, done: Path, again: Callable[[], Path]
) -> None:
    out = again()
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.suffix in (".json", ".parquet"))
    own = [file for file in files if file.parts[0] not in ("images", "report")]
    assert len(own) >= 4 + sum(1 for _ in (out / "ledger").rglob("*.json"))
    chosen = out / data.draw(st.sampled_from(own))
    cut(chosen, share)
    if chosen.name == "run.json":
        with pytest.raises(DamagedError, match=r"run\.json: is damaged \(.*\); run the command that made it again"):
            start(done / "in", done / "e", out)
        start(done / "in", done / "e", out, overwrite=True)
    else:
        start(done / "in", done / "e", out)
    assert_whole(out, done)


def test_a_damaged_record_of_an_image_is_written_anew_and_said(
    done: Path, again: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    out = again()
    record = out / "ledger" / "a.ome.zarr" / "image.json"
    before = record.read_bytes()
    record.write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="chorus"):
        assert start(done / "in", done / "e", out).state == "complete"
    assert "image a.ome.zarr is finished anew: its record is damaged" in caplog.text
    assert record.read_bytes() == before
    assert_whole(out, done)


@pytest.mark.parametrize("content", [b"", b"[[", b"[1]", b"{}"])
def test_damaged_statistics_are_measured_anew(content: bytes, done: Path, again: Callable[[], Path]) -> None:
    out = again()
    (statistics,) = (out / "plan" / "statistics").rglob("a.ome.zarr.json")
    statistics.write_bytes(content)
    (out / "ledger" / "a.ome.zarr" / "image.json").unlink()
    next((out / "ledger" / "a.ome.zarr").glob("region-*.json")).unlink()
    assert start(done / "in", done / "e", out).state == "complete"
    assert_whole(out, done)


def test_regions_whose_records_are_damaged_are_done_anew(
    done: Path, again: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    out = again()
    folder = out / "ledger" / "a.ome.zarr"
    (folder / "image.json").unlink()
    first, second = sorted(folder.glob("region-*.json"))[:2]
    cut(first, 0.5)
    second.write_bytes(b"\0" * 100)
    with caplog.at_level(logging.WARNING, logger="chorus"):
        assert start(done / "in", done / "e", out).state == "complete"
    assert "image a.ome.zarr: 2 of its regions are done anew" in caplog.text
    assert_whole(out, done)


@pytest.mark.parametrize("name", ["region-00000004.json", "region-99999999.json", "region-1.json", "note.txt"])
def test_stray_records_do_no_harm(name: str, done: Path, again: Callable[[], Path]) -> None:
    out = again()
    (out / "ledger" / "b.ome.zarr" / "image.json").unlink()
    shutil.copy(next((out / "ledger" / "a.ome.zarr").glob("region-*.json")), out / "ledger" / "a.ome.zarr" / name)
    shutil.rmtree(out / "ledger" / "b.ome.zarr")
    assert start(done / "in", done / "e", out).state == "complete"
    assert_whole(out, done)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_cut_tables_are_told_of_with_the_way_out(share: float, again: Callable[[], Path]) -> None:
    out = again()
    for name in ("scores.parquet", "features.parquet"):
        cut(out / name, share)
    for read in (read_scores, read_features, ScoreTable):
        with pytest.raises(ChorusError) as caught:
            read(str(out))
        assert str(caught.value).startswith(f"{out}/")
        assert str(caught.value).endswith("; run the same `chorus predict` again to make it anew")
    clear_output(str(out))
    assert [path.name for path in out.iterdir()] in ([], ["run.lock"])
