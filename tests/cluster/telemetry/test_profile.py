"""Where the time of a run went: stages of a region follow each other, and states add up to the time that there was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.output import clear_output
from chorus.cluster.telemetry.profile import REGION_STAGES, STATES, device_states, profile, read_timeline, window
from chorus.cluster.telemetry.profile_page import binned_states, trace, write_page
from chorus.cluster.telemetry.timeline import StageSpan, TimelineWriter, noted, packed, span, unpacked
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image, write_light_ensemble

STAGES = st.lists(
    st.tuples(st.sampled_from(REGION_STAGES), st.integers(0, 40), st.integers(0, 15), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


def frame_of(stages: list[tuple[str, int, int, int]]) -> pd.DataFrame:
    rows = [("host:1", thread, stage, at, at + long, 0, 0, "s") for stage, at, long, thread in stages]
    return pd.DataFrame(rows, columns=["actor", "thread", "stage", "begin", "end", "region", "image", "session"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PredictRequest:
    folder = tmp_path_factory.mktemp("profile")
    for index in range(2):
        write_image(folder / "in" / f"image{index}.zarr", pixels((130, 90)))
    return PredictRequest(
        sources=[str(folder / "in")],
        ensemble=str(write_light_ensemble(folder / "ensemble", members=2)),
        out=str(folder / "out"),
        settings=ResultSettings(region=64, chunk=32),
        run=RunSettings(executor="serial", profile=True),
    )


def go_on(request: PredictRequest, **changes: object) -> PredictOutcome:
    return predict(request.model_copy(update={"run": request.run.model_copy(update=changes)}), Silent())


@pytest.fixture(scope="module")
def timeline(run: PredictRequest) -> pd.DataFrame:
    """Of a run that is done, a region and an image of which are then done anew: two sessions."""
    done = go_on(run)
    assert done.state == "complete"
    ledger = Path(run.out) / "ledger" / done.rows[0].name
    (ledger / "region-00000002.json").unlink()
    (ledger / "image.json").unlink()
    assert go_on(run).state == "complete"
    return read_timeline(run.out)


def test_every_region_has_every_stage_once_and_a_session_that_goes_on_adds_its_own(timeline: pd.DataFrame) -> None:
    regions = timeline[timeline.region >= 0]
    first, second = (part for _, part in regions.groupby("session", sort=False))
    assert set(first.region) == set(range(12))
    assert set(second.region) == {2}
    once = ["read", "prepare", "wait", "infer", "score", "prepare output", "write"]
    for _, part in regions.groupby(["session", "region"]):
        counts = part.stage.value_counts()
        assert set(counts.index) == set(REGION_STAGES)
        assert (counts[once] == 1).all()


def test_stages_of_a_thread_do_not_overlap_and_neither_do_regions_on_a_device(timeline: pd.DataFrame) -> None:
    workers = timeline[(timeline.region >= 0) | (timeline.image >= 0)]
    for part in [one for _, one in workers.groupby(["actor", "thread"])] + [timeline[timeline.stage == "infer"]]:
        ordered = part.sort_values("begin")
        assert (ordered.end.to_numpy()[:-1] <= ordered.begin.to_numpy()[1:]).all()


def test_stages_are_nearly_all_of_the_time_of_a_stream_in_one_thread(timeline: pd.DataFrame) -> None:
    for _, part in timeline.groupby("session"):
        begin, end = window(part)
        work = part[(part.region >= 0) | (part.image >= 0)]
        assert 0.7 * (end - begin) < (work.end - work.begin).sum() <= end - begin


def test_states_of_a_device_add_up_to_the_time_of_the_streams(timeline: pd.DataFrame) -> None:
    found = profile(timeline)
    assert found.sessions == 2
    assert sum(found.states.values()) == pytest.approx(1)
    for device in found.devices:
        assert sum(device.states.values()) == pytest.approx(device.seconds, rel=1e-9)
    infer = timeline[timeline.stage == "infer"]
    busy = sum(device.states["busy"] for device in found.devices)
    assert busy == pytest.approx((infer.end - infer.begin).sum() / 1e9)


def test_rows_of_stages_are_the_sums_of_what_was_noted(timeline: pd.DataFrame) -> None:
    for row in profile(timeline).stages:
        part = timeline[timeline.stage == row.stage]
        assert row.seconds == pytest.approx(sum(part.end - part.begin) / 1e9)
        assert 0 <= row.median <= row.p95 <= row.seconds
    assert {row.stage for row in profile(timeline).stages if row.unit == "run"} >= {"plan", "stream", "scores"}


def test_the_unit_of_a_stage_is_called_of_in_json(timeline: pd.DataFrame) -> None:
    profiled = profile(timeline)
    stages = profiled.model_dump(by_alias=True)["stages"]
    assert [row["of"] for row in stages] == [row.unit for row in profiled.stages]


def test_the_page_stands_by_itself_and_the_trace_has_every_stage(run: PredictRequest, timeline: pd.DataFrame) -> None:
    page = Path(write_page(run.out, timeline, profile(timeline))).read_text()
    assert page.count("<svg") == 4
    assert "{{" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    events = json.loads((Path(run.out) / "profile" / "trace.json").read_text())["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == len(timeline)
    assert sum(event["dur"] for event in complete) * 1e3 == pytest.approx((timeline.end - timeline.begin).sum())
    assert trace(timeline)["traceEvents"] == events


def test_a_run_that_is_not_profiled_keeps_no_stages(run: PredictRequest, tmp_path: Path) -> None:
    request = run.model_copy(update={"out": str(tmp_path / "out")})
    assert go_on(request, profile=False).state == "complete"
    assert not (tmp_path / "out" / "profile").exists()
    with pytest.raises(RefusedError, match="no profile of a run; run `chorus predict` with --profile"):
        read_timeline(request.out)
    table = {name: pd.read_parquet(f"{out}/scores.parquet") for name, out in (("a", run.out), ("b", request.out))}
    same = [name for name in table["a"] if name != "seconds"]
    pd.testing.assert_frame_equal(table["a"][same], table["b"][same])


def test_overwriting_a_run_removes_its_profile(tmp_path: Path) -> None:
    writer = TimelineWriter(str(tmp_path), "session")
    writer.add([StageSpan("host:1", 1, "read", 0, 1)], region=0)
    writer.write()
    clear_output(str(tmp_path))
    assert not (tmp_path / "profile").exists()


def test_groups_of_members_note_what_each_of_them_did(run: PredictRequest, tmp_path: Path) -> None:
    request = run.model_copy(update={"out": str(tmp_path / "out")})
    go_on(request, placement="staged", stages=2)
    timeline = read_timeline(request.out)
    counts = timeline[timeline.region >= 0].groupby("region").stage.value_counts().unstack()
    assert (counts[["infer", "read", "wait"]] == 2).all(axis=None)
    assert (counts[["score", "write"]] == 1).all(axis=None)


@given(STAGES, st.integers(0, 20), st.integers(21, 70))
def test_states_are_those_of_every_single_moment(stages: list[tuple[str, int, int, int]], begin: int, end: int) -> None:
    own = frame_of(stages)
    expected = dict.fromkeys(STATES, 0)
    cut = [(stage, max(at, begin), min(at + long, end)) for stage, at, long, _ in stages]
    inside = [[stage for stage, a, b in cut if a <= moment < b] for moment in range(begin, end)]
    at_once = max(1, *map(len, inside))
    first = min(min(max(at, begin), end) for _, at, _, _ in stages)
    last = max(max(min(at + long, end), begin) for _, at, long, _ in stages)
    for moment, now in zip(range(begin, end), inside, strict=True):
        if "infer" in now:
            state = "busy"
        elif "wait" in now:
            state = "hand"
        elif {"look up", "read", "prepare"} & set(now):
            state = "read"
        elif len(now) == at_once:
            state = "write"
        elif moment < first:
            state = "start"
        else:
            state = "end" if moment >= last else "queue"
        expected[state] += 1
    assert dict(zip(STATES, device_states(own, begin, end).tolist(), strict=True)) == expected


@given(STAGES, st.integers(1, 7))
def test_bins_of_time_lose_nothing(stages: list[tuple[str, int, int, int]], bins: int) -> None:
    own = frame_of([*stages, ("read", 0, 50, 0)])
    edges, devices = binned_states(own, bins)
    assert np.allclose(devices.sum(axis=0), 1)
    spent = (devices * np.diff(edges)).sum(axis=1) * 1e9
    assert np.allclose(spent, device_states(own, *window(own)))


def test_noting_is_cheap_and_costs_next_to_nothing_where_it_is_off() -> None:
    """Less than 1 % of the shortest region that there is, of about 10 ms, with its some 12 stages."""
    import timeit

    def stage() -> None:
        with span("read"):
            pass

    off = min(timeit.repeat(stage, number=1_000, repeat=20)) / 1_000
    with noted():
        on = min(timeit.repeat(stage, number=1_000, repeat=20)) / 1_000
    assert 12 * off < 1e-4 / 4
    assert 12 * on < 1e-4


def test_stages_survive_the_way_through_a_row() -> None:
    spans = [StageSpan("host:1", 140_000_000_000_000, "read", 1_800_000_000_000_000_001, 1_800_000_000_000_000_002)]
    assert unpacked(packed(spans)) == spans
    assert packed([]) == ""
    assert unpacked("") == []
    assert RegionStatus(0, 0, 0, "done").spans == ""
    assert RunContext.model_fields["profile"].default is False


def test_long_runs_write_their_stages_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus.cluster.telemetry.timeline._MOST_SPANS", 10)
    writer = TimelineWriter(str(tmp_path), "session")
    for region in range(7):
        spans = [StageSpan("host:1", 1, stage, region, region + 1) for stage in ("read", "infer", "write")]
        writer.add(spans, region=region)
    writer.write()
    assert len(list((tmp_path / "profile").glob("session-*.parquet"))) == 2
    found = read_timeline(str(tmp_path))
    assert found.region.value_counts().to_dict() == dict.fromkeys(range(7), 3)
