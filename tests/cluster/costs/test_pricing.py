"""Prices: the cluster file is checked, and what is predicted is what arithmetic says where there is no chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from chorus.cluster.costs.accounting import Account, calibration_device, earlier_calibration
from chorus.cluster.costs.forecast import CostForecast, DurationForecast, forecast_costs
from chorus.cluster.planning.cost import Cost, cost
from chorus.cluster.planning.devices.cluster_file import ClusterFile, NodeType, read_cluster
from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.planning.devices.placement import Memory, Placement, tasks_at_once
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.requests import Forecast, PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.runs.run import PlannedRun
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.telemetry.metrics import REGISTRY, driver_recorder
from chorus.pipeline.core.run_document import Price, SessionAccount
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.making import write_light_ensemble
from tests.support.paths import ROOT
from tests.support.plans import planned

EXAMPLE = ROOT / "infra" / "cost" / "cluster.yaml"
MEASURED = DeviceProbe(10**8, 10**8, 10**8, 10**10, seconds_per_tile=0.5, device="a GPU")
NODE: dict[str, Any] = {
    "name": "a", "count": 4, "gpus": 2, "gpu_memory_gb": 24, "cpus": 8, "memory_gb": 64, "price_per_hour": 3.0,
    "start_seconds": 100, "relative_speed": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return read_ensemble(str(write_light_ensemble(tmp_path_factory.mktemp("e"), members=3, width=1)))


@pytest.fixture(scope="module")
def job(ensemble: Ensemble) -> PlannedRun:
    """80 images of 16 regions."""
    images = (planned(f"{index}", shape=(1024, 1024), region=256) for index in range(80))
    request = PredictRequest(sources=["x"], ensemble=ensemble.url, out="out")
    settings = resolve(ResultSettings(region=256, chunk=128, device="cuda"), ensemble)
    return PlannedRun(request, ensemble, settings, ImageTable.collect(images), [])


def predicted(job: PlannedRun, *nodes: dict[str, Any], **cluster: Any) -> CostForecast:
    content = {"currency": "USD", "node_types": [NODE | one for one in nodes]} | cluster
    expected = cost(job.table, job.ensemble, job.settings)
    return forecast_costs(job, expected, MEASURED, ClusterFile.model_validate(content))


def only(found: CostForecast) -> DurationForecast:
    (one,) = found.alone
    assert found.together is None
    return one


def test_time_and_cost_are_work_by_devices_and_node_hours_by_price(job: PlannedRun) -> None:
    work = cost(job.table, job.ensemble, job.settings)
    found = only(predicted(job, {}, storage={"seconds_per_request": 0.0}))
    ideal = work.tiles * MEASURED.seconds_per_tile / 8
    assert ideal <= found.stream_seconds <= 1.05 * ideal
    assert found.start_seconds == 130  # of the node, and of Ray and its actors
    (nodes,) = found.nodes
    assert nodes.device_hours * 3600 == pytest.approx(work.tiles * MEASURED.seconds_per_tile, rel=0.01)
    assert nodes.node_hours == pytest.approx(4 * found.seconds / 3600)
    assert found.cost == pytest.approx(nodes.node_hours * 3.0)
    assert found.per_gigapixel == pytest.approx(found.cost / (80 * 1024**2 / 1e9))


def test_the_whole_costs_the_sum_of_its_parts(job: PlannedRun) -> None:
    prices = {"price_per_million_reads": 1e3, "price_per_million_writes": 2e3, "price_per_gb_read": 5.0}
    found = predicted(job, {}, {"name": "b", "relative_speed": 3.0}, price_per_hour=7.0, storage=prices)
    together = found.together
    assert together is not None
    parts = sum(one.cost for one in together.nodes) + together.beside + together.requests + together.reading
    assert together.cost == pytest.approx(parts)
    assert together.beside == pytest.approx(7.0 * together.seconds / 3600)
    slow, fast = together.nodes
    assert slow.regions + fast.regions == pytest.approx(80 * 16)
    assert fast.regions / slow.regions == pytest.approx(3, rel=0.15)
    assert together.stream_seconds < min(one.stream_seconds for one in found.alone)


def test_speed_may_be_given_as_measured(job: PlannedRun) -> None:
    relative = only(predicted(job, {"relative_speed": 4.0}))
    measured = only(predicted(job, {"relative_speed": None, "seconds_per_tile": MEASURED.seconds_per_tile / 4}))
    assert relative == measured


def test_spot_nodes_that_vanish_take_longer_and_repeat_work(job: PlannedRun) -> None:
    sure = only(predicted(job, {}))
    spot = only(predicted(job, {"spot": True, "preemptions_per_hour": 30.0}))
    assert spot.seconds > sure.seconds
    assert spot.repeated > 0 == sure.repeated


def test_nodes_without_room_are_named_with_the_reason_and_the_rest_goes_on(job: PlannedRun) -> None:
    found = predicted(job, {}, {"name": "small", "gpu_memory_gb": 0.1})
    assert [bool(one.problem) for one in found.alone] == [False, True]
    assert "GB" in found.alone[1].problem
    assert found.together is None


def test_a_type_that_grows_is_shown_at_its_least_and_its_most(job: PlannedRun) -> None:
    found = predicted(job, {"count": None, "min": 1, "max": 8})
    assert [one.title for one in found.alone] == ["1 x a", "8 x a"]
    assert found.alone[0].seconds > found.alone[1].seconds


def test_the_example_is_right_and_says_that_its_prices_are_examples() -> None:
    cluster = read_cluster(str(EXAMPLE))
    assert {one.gpus > 0 for one in cluster.node_types} == {True, False}
    for line in EXAMPLE.read_text().splitlines():
        assert "price_per" not in line or "# example" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min": 1}, "either `count`"),
        ({"count": None}, "either `count`"),
        ({"gpu_memory_gb": None}, "gpu_memory_gb"),
        ({"preemptions_per_hour": 1.0}, "spot: true"),
        ({"seconds_per_tile": 1.0}, "one of `relative_speed`"),
        ({"price_per_hour": -1.0}, "greater than or equal to 0"),
        ({"price_per_hour": "3 dollars"}, "valid number"),
        ({"gpu": 1}, "Extra inputs"),
    ],
)
def test_what_is_wrong_in_a_cluster_file_is_said_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"currency": "EUR", "node_types": [NODE | change]}))
    with pytest.raises(RefusedError) as refused:
        read_cluster(str(path))
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_node_types_have_names_of_their_own() -> None:
    with pytest.raises(ValidationError, match="two node types are called 'a'"):
        ClusterFile.model_validate({"currency": "USD", "node_types": [NODE, NODE]})


def test_a_device_costs_its_share_of_all_nodes() -> None:
    other = NodeType.model_validate(NODE | {"name": "b", "gpus": 0, "gpu_memory_gb": None, "price_per_hour": 1.0})
    cluster = ClusterFile(currency="USD", node_types=[NodeType.model_validate(NODE), other], price_per_hour=4.0)
    assert cluster.price_of_a_device("cuda") == pytest.approx((4 * 3 + 4 * 1 + 4) / 8)
    assert cluster.price_of_a_device("cpu") == pytest.approx((4 * 3 + 4 * 1 + 4) / 64)


def test_tasks_follow_the_cores_in_bounds() -> None:
    assert [tasks_at_once(cores) for cores in (1, 8, 64, 8_000)] == [2, 2, 16, 1_024]


def account_of(job: PlannedRun, started: float) -> Account:
    made = Forecast(
        Cost(1, 10, 100, 100, 100, 1.0, 1, 1, 10), MEASURED, Memory(1, 1, 1, 1),
        Placement((range(1),), 2, 2, 0, 1, 1, 3, 2), seconds=20.0, failures=[],
    )  # fmt: skip
    cluster = ClusterFile(currency="CHF", node_types=[NodeType.model_validate(NODE)])
    return Account(Silent(), made, "cuda", cluster, driver_recorder("account", "test"), started)


def test_the_account_compares_what_was_expected_of_what_was_open(
    job: PlannedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("chorus.cluster.costs.accounting.time.monotonic", lambda: now)
    account = account_of(job, started=now - 60)
    account.begin(5, 1, 2)  # half of the regions are open: 10 s
    for region in range(5):
        now += 3.0
        account.region(RegionStatus(region, 0, region, "done", tiles=10, device_seconds=5.0))
    account.end()
    summary = account.summary()
    assert summary.predicted_seconds == 10.0
    assert summary.measured_seconds == 15.0
    assert summary.measured_over_predicted == 1.5
    assert summary.device_busy == pytest.approx(25 / 30, abs=1e-3)
    assert summary.seconds_per_tile == 0.5
    paid = 75 / 3600 * 2 * 1.5  # start-up counted in, two GPUs of 3.0 an hour for a node of two
    assert summary.cost == Price(amount=round(paid, 4), currency="CHF")
    labels = {"run": "account", "ensemble": "test", "currency": "CHF"}
    assert REGISTRY.get_sample_value("chorus_cost_total", labels) == pytest.approx(paid)


def test_a_session_with_nothing_to_do_has_no_account(job: PlannedRun) -> None:
    account = account_of(job, started=0.0)
    account.begin(0, 0, 2)
    account.end()
    assert account.summary() == SessionAccount()
    assert account.summary().model_dump() == {}


def written_run(folder: Path, job: PlannedRun, **summary: Any) -> Path:
    content = {
        "started": "2026-01-02T03:04:05+00:00",
        "outcome": "complete",
        "inputs": {"images": 1, "regions": 4},
        "ensemble": {"name": "test", "url": job.ensemble.url, "hash": job.ensemble.hash, "members": 2},
        "settings": job.settings.model_dump(mode="json"),
        "calibration": {"weights": 1, "activations": 2, "process": 3, "device_memory": 4, "seconds_per_tile": 0.5}
        | {"device": "a GPU", "kind": "cuda"},
        "summary": summary,
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(content))
    return folder


def test_an_earlier_run_is_a_calibration_for_the_same_work_alone(job: PlannedRun, tmp_path: Path) -> None:
    begun, ended = str(written_run(tmp_path / "a", job)), str(written_run(tmp_path / "b", job, seconds_per_tile=0.7))
    assert calibration_device(begun) == "cuda"
    assert earlier_calibration(begun, job.ensemble.hash, job.settings) == DeviceProbe(1, 2, 3, 4, 0.5, "a GPU")
    measured = earlier_calibration(ended, job.ensemble.hash, job.settings)
    assert measured == replace(DeviceProbe(1, 2, 3, 4, 0.5, "a GPU"), seconds_per_tile=0.7)
    with pytest.raises(RefusedError, match="ensemble test, which is another"):
        earlier_calibration(begun, "other", job.settings)
    with pytest.raises(RefusedError, match="measured with precision fp32, now bf16"):
        earlier_calibration(begun, job.ensemble.hash, job.settings.model_copy(update={"precision": "bf16"}))
