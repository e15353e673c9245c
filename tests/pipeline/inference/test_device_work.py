"""What a posterior asks of a device with streams: a device of the tests computes on the cores and counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chorus.pipeline.backends.member import ConvertedMember, on_backend
from chorus.pipeline.core.augmentation import FLIPS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.device_transfer import host_array, landing, to_device, to_host
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.inference.tile_stream import PlaneWindow
from chorus.pipeline.members.contract import ModuleMember
from tests.support.counting_device import CountedDevice, counted_device
from tests.support.engines import CPU, assert_same_bytes, noise, plane_window, settings_of
from tests.support.making import network, write_light_ensemble

GRID = Grid.make((75, 90), 32, 0.5)
WINDOW = Window.of(0, 75, 0, 90)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CountedDevice:
    return counted_device(monkeypatch)


def how(**changes: Any) -> InferenceSettings:
    return settings_of("softmax", False, 2, 32, FLIPS, **{"batch": 4} | changes)


def plane() -> PlaneWindow:
    return plane_window(noise((75, 90), 0), GRID, WINDOW)


def engine() -> Engine:
    return Engine([ModuleMember(network(seed), CPU) for seed in range(2)], how(), CPU)


def posterior() -> tuple[Posterior, list[int]]:
    features = TileFeatures(GRID, WINDOW)
    return engine().posterior(plane(), WINDOW, features), features.sums().tolist()


def test_a_device_with_streams_gives_the_bytes_of_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, wanted_features = posterior()
    device = counted_device(monkeypatch)
    found, features = posterior()
    assert_same_bytes(found, wanted)
    assert features == wanted_features
    assert device.asked["float64 on the host"] > 0


def test_pixels_go_through_pinned_memory_and_rows_come_back_beside_the_work(device: CountedDevice) -> None:
    engine().posterior(plane(), WINDOW)
    # The window of the plane, and on each axis which of its pixels are mirrored; all else is made on the device.
    assert device.asked["pinned"] == device.asked["on in"] == device.asked["kept for computing"] == 3
    assert device.asked["on out"] == device.asked["kept for out"] > 0
    assert device.asked["waited for out"] == 1  # once a posterior, not once a batch
    assert device.asked["synchronised"] == 0
    assert engine().ahead == 1


def test_copies_wait_for_the_work_and_the_work_for_copies(device: CountedDevice) -> None:
    there = to_device(np.arange(12, dtype=np.float32).reshape(1, 3, 4), CPU)
    assert device.side["computing"].waited_for == ["in"]
    target = host_array((1, 3, 4), torch.float32, CPU)
    to_host(target, there)
    assert device.side["out"].waited_for == ["computing"]
    landing(CPU)()
    assert device.asked["waited for out"] == 1
    assert np.array_equal(target.numpy(), np.arange(12, dtype=np.float32).reshape(1, 3, 4))


def test_a_device_without_float64_is_never_asked_for_it(device: CountedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_is = CountedDevice.in_float64

    class Watching(TorchDispatchMode):
        """Fails where float64 is made of something else than what was brought to the host before."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = [one for one in args if isinstance(one, torch.Tensor)]
            made = func(*args, **kwargs or {})
            if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
                allowed = bringing or any(one.dtype == torch.float64 for one in given)
                assert allowed, f"{func} makes float64 on the device"
            return made

    bringing: list[bool] = []

    def in_float64(self: CountedDevice, tensor: torch.Tensor) -> torch.Tensor:
        bringing.append(True)
        try:
            return as_it_is(self, tensor)
        finally:
            bringing.pop()

    monkeypatch.setattr(CountedDevice, "in_float64", in_float64)
    made = engine()
    with Watching():
        made.posterior(plane(), WINDOW, TileFeatures(GRID, WINDOW))
        with pytest.raises(AssertionError, match="makes float64 on the device"):
            torch.zeros(2).to(torch.float64)
    assert device.asked["float64 on the host"] > 0


def test_memory_that_torch_keeps_is_given_back_before_a_call_is_made_again(device: CountedDevice) -> None:
    calls: list[int] = []

    class Small(ModuleMember):
        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            calls.append(len(tiles))
            if len(tiles) > 2 * len(FLIPS):
                raise torch.OutOfMemoryError("out of memory on the counting GPU")
            return super().__call__(tiles)

    made = Engine([Small(network(0), CPU)], how(), CPU)
    made.posterior(plane(), WINDOW)
    assert calls[:3] == [4 * len(FLIPS), 2 * len(FLIPS), 2 * len(FLIPS)]
    assert device.asked["memory released"] == 1
    assert made.tiles_per_call == 2


def test_a_device_is_repeatable_before_a_member_is_loaded(tmp_path: Path, device: CountedDevice) -> None:
    ensemble = read_ensemble(str(write_light_ensemble(tmp_path / "ensemble")))
    assert device.order == []
    ensemble.load_member(0, CPU)
    assert device.order == ["repeatable"]


def test_comparisons_of_another_fp32_policy_are_not_taken(
    tmp_path: Path, device: CountedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path))
    tiles = torch.zeros((2, 1, 64, 64))

    def compared() -> int:
        made = on_backend(ModuleMember(network(0), CPU), "cudagraphs", "fp32", CPU)
        assert isinstance(made, ConvertedMember)
        with torch.inference_mode():
            made(tiles)
        return len(list(tmp_path.glob("compared/*.txt")))

    assert [compared(), compared()] == [1, 1]
    monkeypatch.setattr(CountedDevice, "fp32_policy", lambda self: "counted=tf32")
    assert compared() == 2
