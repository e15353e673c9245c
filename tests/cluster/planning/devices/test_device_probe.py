"""The trial of an ensemble: what it measures of the device, and when."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chorus.cluster.planning.devices.device_probe import probe_device
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.members.contract import ModuleMember
from tests.support.counting_device import GIGABYTE, CountedDevice, counted_device
from tests.support.making import write_ensemble


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CountedDevice:
    return counted_device(monkeypatch)


def test_memory_is_measured_before_members_are_loaded_and_the_peak_from_the_trial_on(
    tmp_path: Path, device: CountedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = read_ensemble(str(write_ensemble(tmp_path / "ensemble", members=1)))
    settings = resolve(ResultSettings(batch=2), ensemble)
    as_it_is = ModuleMember.__call__
    device.peak = 30 * GIGABYTE  # of whatever was there before

    def taking(self: ModuleMember, tiles: torch.Tensor) -> torch.Tensor:
        device.free, device.peak = GIGABYTE, device.peak + 7
        return as_it_is(self, tiles)

    monkeypatch.setattr(ModuleMember, "__call__", taking)
    measured = probe_device(ensemble, settings)
    assert device.order.index("free memory") < device.order.index("repeatable") < device.order.index("peak reset")
    assert measured.device_memory == int(0.8 * 40 * GIGABYTE)
    assert 0 < measured.activations < 1000
    assert measured.device == "counting GPU 40 GB"
    assert device.asked["synchronised"] > 0
