"""An ensemble that serving hosts: its device is ready before anything is made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chorus.pipeline.reference.words import NO_REFERENCE
from chorus.serving.contract.settings import ServeSettings
from chorus.serving.prediction.hosting import Hosted
from tests.support.counting_device import CountedDevice, counted_device
from tests.support.making import write_ensemble


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CountedDevice:
    return counted_device(monkeypatch)


def test_serving_makes_its_device_repeatable_before_it_records_a_graph(
    tmp_path: Path, device: CountedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    url = str(write_ensemble(tmp_path / "ensemble", members=1))
    Hosted.load("light", url, ServeSettings(ensembles={"light": url}, backend="cudagraphs"))
    assert "recorded" in device.order
    assert device.order.index("repeatable") < device.order.index("recorded")


def test_an_ensemble_without_a_reference_set_says_so_before_the_first_image(tmp_path: Path) -> None:
    url = str(write_ensemble(tmp_path / "ensemble", members=1))
    hosted = Hosted.load("light", url, ServeSettings(ensembles={"light": url}))
    assert hosted.info.calibrated is False
    assert hosted.info.unjudged == NO_REFERENCE
    assert NO_REFERENCE in repr(hosted.loaded)
