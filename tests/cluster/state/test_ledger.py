"""The ledger: what is recorded is finished, what is open is done, and a region is not tried for ever."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.regions.exclusive_gate import Gate
from chorus.cluster.regions.worker import RegionWorker
from chorus.cluster.state.ledger import (
    Attempts,
    Finished,
    ImageRecord,
    Ledger,
    RegionRecord,
    clear_attempts,
    unended_regions,
)
from chorus.cluster.state.output import ENTRIES
from chorus.cluster.state.scores import read_features, write_features
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import ImageError, OutputError
from chorus.pipeline.inference.feature_records import FeatureSums, ImageFeatures
from chorus.pipeline.scores.image_quality import appearance
from chorus.pipeline.scores.image_scores import RegionSums
from tests.support.making import write_light_ensemble
from tests.support.plans import planned
from tests.support.rows import image_row

# A folder with characters that fsspec takes for patterns, and a bucket in memory.
PLACES = ["folder [1] *", "memory://ledger"]


@pytest.fixture(params=PLACES)
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param.startswith("memory"):
        fsspec.filesystem("memory").store.clear()
        return str(request.param)
    return str(tmp_path / request.param)


def record(region: int) -> RegionRecord:
    sums = RegionSums(
        pixels=4096,
        foreground=region,
        class_pixels=[region],
        uncertainty=1,
        epistemic=1,
        aleatoric=0,
        entropy=2,
        patch=(3, 256),
        overlaps=[[[1]]],
    )
    features = FeatureSums.of(4, np.array([region, -(2**50)]))
    looks = appearance(np.full((1, 8, 8), region, np.uint16), np.eye(8, dtype=np.uint8), 2, multilabel=False, patch=4)
    return RegionRecord(region=region, sums=sums, appearance=looks, features=features, tiles=9, seconds=0.5)


def test_what_is_recorded_is_read_back(out: str) -> None:
    ledger = Ledger(out)
    assert not ledger.has_region("plate/A/1/0", 2)
    for region in (2, 0, 1):
        ledger.record_region("plate/A/1/0", record(region))
    features = ImageFeatures.of(7, np.array([0.1, 2.0]))
    ledger.record_image("plate/A/1/0", ImageRecord(row=image_row("plate/A/1/0", uncertainty=0.1), features=features))
    assert ledger.has_region("plate/A/1/0", 2)
    assert list(ledger.region_records("plate/A/1/0", 3)) == [record(region) for region in range(3)]
    (found,) = ledger.image_records(["plate/A/1/0"])
    assert (found.row, found.features.tiles, found.features.mean.tolist()) == (
        image_row("plate/A/1/0", uncertainty=0.1),
        7,
        [0.1, 2.0],
    )


def test_features_are_written_from_the_records_in_the_order_of_the_scores(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chorus.cluster.state.scores._FEATURE_ROWS", 2)
    ledger, rows = Ledger(out), []
    for index, status in enumerate(("done", "failed", "empty", "done", "done")):
        rows.append(image_row(f"{5 - index}", status=status))
        if status != "failed":
            features = ImageFeatures.of(index + 1, np.array([index / 3, -index]))
            ledger.record_image(f"{5 - index}", ImageRecord(row=rows[-1], features=features))
    write_features(out, rows)
    found = read_features(out)
    assert found["name"].tolist() == ["5", "4", "3", "2", "1"]
    assert found["tiles"].tolist() == [1, 0, 3, 4, 5]
    assert [list(one) for one in found["features"]] == [[0, 0], [], [2 / 3, -2], [1, -3], [4 / 3, -4]]


def test_many_records_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus.cluster.state.ledger._AT_ONCE", 3)
    ledger = Ledger(str(tmp_path))
    for region in range(8):
        ledger.record_region("a", record(region))
    assert [found.region for found in ledger.region_records("a", 8)] == list(range(8))


def test_records_of_an_earlier_chorus_are_refused_with_the_way_out(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.record_region("plate/A/1/0", record(0))
    path = tmp_path / "ledger/plate/A/1/0/region-00000000.json"
    content = json.loads(path.read_text())
    del content["sums"]["entropy"]
    path.write_text(json.dumps(content))
    with pytest.raises(ImageError) as caught:
        list(ledger.region_records("plate/A/1/0", 1))
    message = str(caught.value)
    assert "field sums.entropy: Field required" in message
    assert "run the same command again, which does this region anew" in message
    assert not path.exists()
    assert "\n" not in message
    # What it finished is finished: its row counts, its features were never taken.
    (path.parent / "image.json").write_text(
        '{"row": {"image": "A/1/0", "source": "", "name": "plate/A/1/0", "status": "done"}}'
    )
    (found,) = ledger.image_records(["plate/A/1/0"])
    assert (found.features.tiles, found.features.mean.size) == (0, 0)


def test_scan_finds_what_is_recorded_and_nothing_else(out: str) -> None:
    # Names of which one begins as the other does, and one that is nested.
    table = ImageTable.collect([planned(name, (130, 70)) for name in ("a", "a/b", "ab.ome.zarr", "never")])
    ledger = Ledger(out)
    assert Ledger(out).scan(table).todo(table).tolist() == list(range(table.regions))
    ledger.record_region("a", record(0))
    ledger.record_region("a/b", record(5))
    ledger.record_region("ab.ome.zarr", record(1))
    ledger.record_image("ab.ome.zarr", ImageRecord(row=image_row("ab.ome.zarr")))
    ledger.record_region("of another run", record(0))
    ledger.record_region("a", record(int(table.region_counts[0])))  # a region that the image does not have
    ledger.record_region("never", record(60_000))
    finished = ledger.scan(table)
    assert np.flatnonzero(finished.regions).tolist() == [0, table.first_region(1) + 5, table.first_region(2) + 1]
    assert finished.images.tolist() == [False, False, True, False]


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=6), st.data())
def test_open_and_recorded_regions_are_all_regions_of_unfinished_images(
    shapes: list[tuple[int, int]], data: st.DataObject
) -> None:
    table = ImageTable.collect([planned(str(index), shape) for index, shape in enumerate(shapes)])
    regions = np.array(data.draw(st.lists(st.booleans(), min_size=table.regions, max_size=table.regions)), bool)
    images = np.array(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))), bool)
    finished = Finished(regions, images)
    todo = set(finished.todo(table).tolist())
    assert todo == {r for r in range(table.regions) if not regions[r] and not images[table.find(r)[0]]}
    expected = [
        sum(not regions[table.first_region(i) + k] for k in range(n)) for i, n in enumerate(table.region_counts)
    ]
    assert finished.remaining(table).tolist() == expected


def test_attempts_are_counted_until_they_end(out: str) -> None:
    attempts, elsewhere = Attempts(out, "session", "here"), Attempts(out, "session", "there")
    assert attempts.unended(7) == []
    attempts.begin(7, attempts.unended(7))
    elsewhere.begin(7, elsewhere.unended(7))
    attempts.begin(71, [])
    assert (attempts.unended(7), attempts.unended(71)) == (["here", "there"], ["here"])
    assert Attempts(out, "another").unended(7) == []
    assert unended_regions(out) == {7, 71}
    attempts.end(7)
    assert (attempts.unended(7), attempts.unended(71)) == ([], ["here"])
    clear_attempts(out)
    assert (attempts.unended(71), unended_regions(out)) == ([], set())
    clear_attempts(out)


def test_records_that_cannot_be_written_are_the_outputs_fault(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match=r"ledger"):
        Ledger(str(tmp_path)).record_region("a", record(0))


def test_ledger_is_removed_before_what_it_names() -> None:
    assert ENTRIES.index("ledger") < ENTRIES.index("images")
    assert ENTRIES[-1] == "run.json"


@pytest.fixture(scope="module")
def worker_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An ensemble, and an image table whose image is not there."""
    folder = tmp_path_factory.mktemp("worker")
    ensemble = str(write_light_ensemble(folder / "ensemble", members=1, width=2))
    table = folder / "images.parquet"
    ImageTable.collect([planned("gone.ome.zarr", (130, 70))]).write(str(table))
    return ensemble, str(table)


@pytest.fixture
def worker(worker_parts: tuple[str, str], tmp_path: Path) -> RegionWorker:
    import torch

    ensemble = read_ensemble(worker_parts[0])
    settings = resolve(ResultSettings(region=64, chunk=64), ensemble)
    context = RunContext(
        out=str(tmp_path),
        ensemble=ensemble.url,
        ensemble_hash=ensemble.hash,
        ensemble_name=ensemble.spec.name,
        settings=settings,
        session="s",
    )
    ImageTable.read(worker_parts[1]).write(context.table_url)
    return RegionWorker(context, torch.device("cpu"))


def test_region_that_was_begun_three_times_is_set_aside(worker: RegionWorker, tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), "s")
    for _ in range(2):
        attempts.begin(1, attempts.unended(1))
    assert worker.process(1).state == "failed"  # it is tried: the image is not there
    assert attempts.unended(1) == []
    for _ in range(3):
        attempts.begin(1, attempts.unended(1))
    status = worker.process(1)
    assert (status.state, status.region_in_image) == ("quarantined", 1)
    assert "region 1 ended its worker 3 times" in status.message
    assert worker.process(0).state == "failed"


def test_recorded_region_is_not_done_again(worker: RegionWorker, tmp_path: Path) -> None:
    Ledger(str(tmp_path)).record_region("gone.ome.zarr", record(2))
    assert worker.process(2).state == "done"


def test_gate_lets_many_in_or_one_alone() -> None:
    gate, inside, most, together = Gate(), 0, [0], [0]
    lock = threading.Lock()

    def visit(alone: bool) -> None:
        nonlocal inside
        for _ in range(20):
            with gate.enter(alone=alone):
                with lock:
                    inside += 1
                    most[0] = max(most[0], inside)
                    together[0] += alone and inside > 1
                time.sleep(0.001)
                with lock:
                    together[0] += alone and inside > 1
                    inside -= 1

    threads = [threading.Thread(target=visit, args=(index % 3 == 0,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert most[0] > 1
    assert together[0] == 0
