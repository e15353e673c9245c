"""One device for many regions: shared batches, fair or first come, bounded, and let go of."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from chorus.cluster.regions.batch_queue import Answered, BusyError, LateError
from chorus.cluster.regions.batching import SharedDevice, SharedEngine
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.device_transfer import Landing
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.tile_stream import PlaneWindow
from tests.support.engines import settings_of
from tests.support.making import network

CPU = torch.device("cpu")
HOW = settings_of("softmax", False, 2, 32, ("identity", "hflip"), batch=8)


@pytest.fixture(params=[0, 1], ids=["nothing ahead", "one batch ahead"], autouse=True)
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a GPU it is one."""
    monkeypatch.setattr(Engine, "ahead", request.param)
    return int(request.param)


class Counting:
    """A member that notes how many tiles each call has, and waits for `go`."""

    features = 0
    activation = None

    def __init__(self) -> None:
        self.module, self.calls, self.go = network(0), 0, threading.Event()
        self.go.set()

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        self.go.wait(20)
        self.calls += 1
        return self.module(tiles)

    def parameters_bytes(self) -> int:
        return 0


def plane(height: int, width: int, seed: int) -> PlaneWindow:
    values = np.random.default_rng(seed).normal(size=(1, height, width)).astype(np.float32)
    return PlaneWindow(values, Window.of(0, height, 0, width), Grid.make((height, width), 32, 0.5))


def same(a: Posterior, b: Posterior) -> bool:
    maps = ("probability", "epistemic", "aleatoric", "labels", "masks", "member_masks")
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in maps)


def submit(device: SharedDevice, engine: Engine, one: PlaneWindow, seconds: float = 60) -> Future[Answered]:
    return device.submit(engine, one, one.window, None, time.monotonic() + seconds)


def test_tiles_of_different_requests_fill_one_call_and_keep_their_bits() -> None:
    member = Counting()
    engine = Engine([member], HOW, CPU)
    planes = [plane(20 + i, 17 + i, i) for i in range(6)]  # four tiles each
    alone = [engine.posterior(one, one.window) for one in planes]
    calls_alone, member.calls = member.calls, 0
    device = SharedDevice(1000)
    member.go.clear()
    answers = [submit(device, engine, one) for one in planes]
    member.go.set()
    assert all(same(answer.result(60)[0], one) for answer, one in zip(answers, alone, strict=True))
    device.close()
    tiles = sum(one.grid.count for one in planes)
    assert member.calls <= -(-tiles // HOW.batch) + 2 < calls_alone
    assert device.load.tiles == tiles
    assert device.load.calls == member.calls


def test_a_small_image_does_not_wait_for_a_large_one_before_it() -> None:
    member = Counting()
    engine = Engine([member], HOW, CPU)
    device = SharedDevice(10_000)
    member.go.clear()
    large, small = submit(device, engine, plane(400, 400, 0)), submit(device, engine, plane(20, 20, 1))
    member.go.set()
    small.result(60)
    assert not large.done()
    large.cancel()
    device.close()


def test_what_nobody_waits_for_is_let_go_of() -> None:
    member = Counting()
    engine = Engine([member], HOW, CPU)
    device = SharedDevice(10_000)
    member.go.clear()
    left, late = submit(device, engine, plane(300, 300, 0)), submit(device, engine, plane(300, 300, 1), seconds=0.05)
    time.sleep(0.1)
    left.cancel()
    member.go.set()
    with pytest.raises(LateError):
        late.result(20)
    with pytest.raises(CancelledError):
        left.result(0)
    device.close()
    assert member.calls <= 2
    assert device.load.waiting == 0


def test_more_tiles_than_may_wait_are_refused_with_a_time_to_come_back() -> None:
    member = Counting()
    engine = Engine([member], HOW, CPU)
    device = SharedDevice(50)
    member.go.clear()
    first = submit(device, engine, plane(200, 200, 0))  # more than fifty, but nothing else waits
    with pytest.raises(BusyError) as refused:
        submit(device, engine, plane(40, 40, 1))
    assert refused.value.retry_after >= 1
    first.cancel()
    member.go.set()
    device.close()


def test_an_error_of_one_batch_ends_its_images_and_no_others() -> None:
    class Broken(Counting):
        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            raise ValueError("broken")

    broken, right = Engine([Broken()], HOW, CPU), Engine([Counting()], HOW, CPU)
    device, one = SharedDevice(1000), plane(30, 30, 0)
    failed, answered = submit(device, broken, one), submit(device, right, one)
    with pytest.raises(ValueError, match="broken"):
        failed.result(60)
    assert same(answered.result(60)[0], right.posterior(one, one.window))
    device.close()


def test_an_image_that_breaks_a_member_takes_none_of_its_companions_along() -> None:
    class Delicate(Counting):
        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            if bool((tiles > 1e6).any()):
                raise ValueError("too bright")
            return super().__call__(tiles)

    engine, device = Engine([Delicate()], HOW, CPU), SharedDevice(1000)
    planes = [plane(20 + i, 17 + i, i) for i in range(4)]
    planes[1].pixels[:] = 1e7
    features = [TileFeatures(one.grid, one.window) for one in planes]
    pairs = zip(planes, features, strict=True)
    answers = [device.submit(engine, one, one.window, of, time.monotonic() + 60) for one, of in pairs]
    for index, (one, of, answer) in enumerate(zip(planes, features, answers, strict=True)):
        if index == 1:
            with pytest.raises(ValueError, match="too bright"):
                answer.result(60)
            continue
        posterior, seconds = answer.result(60)
        alone = TileFeatures(one.grid, one.window)
        assert same(posterior, engine.posterior(one, one.window, alone))
        assert (of.tiles, of.sums().tolist()) == (alone.tiles, alone.sums().tolist())
        assert seconds > 0
    device.close()


def test_first_come_first_done_and_what_is_left_of_a_batch_goes_to_the_next() -> None:
    member = Counting()
    engine = Engine([member], HOW, CPU)
    device = SharedDevice(fair=False)
    planes = [plane(96, 96, seed) for seed in range(4)]  # 25 tiles each
    assert planes[0].grid.count % HOW.batch
    member.go.clear()
    answers = [submit(device, engine, one) for one in planes]
    order: list[int] = []
    for index, answer in enumerate(answers):
        answer.add_done_callback(lambda _, index=index: order.append(index))
    member.go.set()
    assert all(same(a.result(60)[0], engine.posterior(p, p.window)) for a, p in zip(answers, planes, strict=True))
    device.close()
    assert order == [0, 1, 2, 3]
    assert device.load.calls == -(-sum(one.grid.count for one in planes) // HOW.batch)


def test_whoever_waits_for_a_busy_device_gets_its_turn() -> None:
    engine, device = Engine([Counting()], HOW, CPU), SharedDevice(1)
    first, second = plane(90, 90, 0), plane(30, 30, 1)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(SharedEngine(device, engine).answer, one, one.window) for one in (first, second)]
        for answer, one in zip(answers, (first, second), strict=True):
            assert same(answer.result(60)[0], engine.posterior(one, one.window))
    device.close()


def test_a_device_that_is_lost_ends_what_was_in_its_hands_and_the_next_is_answered(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, device = Engine([Counting()], HOW, CPU), SharedDevice(10_000, fair=False)
    landings = 0

    def landing(_: Engine) -> Landing:
        def land() -> None:
            nonlocal landings
            landings += 1
            if landings == 2:
                raise RuntimeError("the device was lost")

        return land

    monkeypatch.setattr(Engine, "landing", landing)
    large, small = plane(120, 120, 0), plane(30, 30, 1)
    lost = submit(device, engine, large)
    with pytest.raises(RuntimeError, match="the device was lost"):
        lost.result(60)
    assert same(submit(device, engine, small).result(60)[0], engine.posterior(small, small.window))
    device.close()
    assert device.load.waiting == 0
    assert device.load.calls >= 2 + ahead


def test_a_batch_is_told_before_the_last_one_has_landed_and_an_idle_device_waits_for_none(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, told = Counting(), []
    engine, device = Engine([member], HOW, CPU), SharedDevice(10_000)

    def landing(_: Engine) -> Landing:
        own = member.calls
        return lambda: told.append((own, member.calls))

    monkeypatch.setattr(Engine, "landing", landing)
    one = plane(96, 96, 0)  # 25 tiles, four batches
    assert same(submit(device, engine, one).result(60)[0], Engine([Counting()], HOW, CPU).posterior(one, one.window))
    device.close()
    assert told[:4] == [(own, min(own + ahead, 4)) for own in (1, 2, 3, 4)]
