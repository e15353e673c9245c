"""The ensemble is tried with as few calls as tell how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chorus.cluster.planning.devices import device_probe as calibration
from chorus.cluster.planning.devices.device_probe import probe_device
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.members import MemberGroup


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles of each batch that the members are called with."""
    seen: list[int] = []
    add: Callable[..., Any] = MemberGroup.add_samples

    def counted(group: MemberGroup, tiles: Any, *more: Any) -> Any:
        seen.append(len(tiles))
        return add(group, tiles, *more)

    monkeypatch.setattr(MemberGroup, "add_samples", counted)
    return seen


@pytest.mark.parametrize(("backend", "long", "times"), [("eager", 1e9, 2), ("eager", 0.0, 1), ("openvino", 0.0, 2)])
def test_a_long_batch_is_repeated_only_where_the_first_one_converted_networks(
    backend: Backend, long: float, times: int, ensemble_url: str, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_LONG_SECONDS", long)
    ensemble = read_ensemble(ensemble_url)
    settings = resolve(ResultSettings(backend=backend, batch=2), ensemble)
    measured = probe_device(ensemble, settings)
    assert batches == [2] * times
    assert measured.seconds_per_tile > 0
    assert measured.weights > 0
