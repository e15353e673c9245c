"""The simulated schedule: nothing is lost, more machines are never worse, and simple cases are what arithmetic says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.cluster.costs.simulation import simulate
from chorus.cluster.planning.devices.placement import Placement
from chorus.cluster.planning.devices.schedule import Devices, Schedule, Work, block_regions

# A driver, tasks and storage that take no time: what is left is arithmetic.
AT_ONCE = Schedule(block_seconds_before=0, block_seconds=0, status_seconds=0, task_seconds=0, check_seconds=0)
# More devices may end later by the last region of each block in hand, no more.
COUNTS = st.integers(1, 40)


@given(
    devices=COUNTS,
    regions=st.integers(1, 20_000),
    spread=st.sampled_from([0.0, 0.3, 1.0]),
    rate=st.sampled_from([0.0, 1.0, 20.0]),
)
def test_every_region_is_done_once(devices: int, regions: int, spread: float, rate: float) -> None:
    kinds = [Devices(devices, 2.0, 2, 60, rate), Devices(3, 5.0, preemptions_per_hour=rate)]
    ended = simulate(kinds, Work(regions, 10, spread, 0.5, 0.5, 1.0), Schedule())
    assert math.fsum(ended.regions) == regions
    assert ended.repeated_seconds >= 0
    assert (ended.preemptions == 0) <= (ended.repeated_seconds == 0)
    assert 0 < ended.busy <= 1 + 1e-9


@given(regions=st.integers(1, 5_000), seconds=st.floats(0.1, 100), start=st.floats(0, 1000))
def test_one_device_is_always_busy_and_takes_the_sum_of_its_regions(regions: int, seconds: float, start: float) -> None:
    ended = simulate([Devices(1, seconds, start_seconds=start)], Work(regions), AT_ONCE)
    assert ended.seconds == pytest.approx(start + regions * seconds, rel=1e-6)
    assert ended.device_seconds == pytest.approx(regions * seconds, rel=1e-6)
    assert ended.busy == pytest.approx(1)


@given(held=st.integers(1, 4), read=st.floats(0, 10), write=st.floats(0, 10), seconds=st.floats(0.1, 10))
def test_a_device_waits_where_its_threads_cannot_follow(held: int, read: float, write: float, seconds: float) -> None:
    schedule = replace(AT_ONCE, blocks_per_actor=held)
    regions = 120  # shared evenly by 1, 2, 3 and 4
    ended = simulate([Devices(1, seconds)], Work(regions, read_seconds=read, write_seconds=write), schedule)
    expected = regions * max(seconds, (read + seconds + write) / held)
    assert ended.stream_seconds == pytest.approx(expected, rel=1e-6)


@given(devices=COUNTS, each=st.integers(1, 50))
def test_regions_that_divide_evenly_leave_no_device_idle(devices: int, each: int) -> None:
    schedule = replace(AT_ONCE, blocks_per_actor=1)
    ended = simulate([Devices(devices, 3.0)], Work(devices * each), schedule)
    assert ended.stream_seconds == pytest.approx(each * 3.0, rel=1e-6)
    assert ended.tail_seconds == pytest.approx(0, abs=1e-3)


@given(devices=COUNTS, regions=st.integers(1, 3_000))
def test_time_is_between_the_ideal_and_what_any_list_schedule_keeps(devices: int, regions: int) -> None:
    """Graham's bound: the ideal and one job more; jobs here are what an actor holds at once."""
    schedule = replace(AT_ONCE, blocks_per_actor=3)
    ended = simulate([Devices(devices, 1.0)], Work(regions), schedule)
    size = block_regions(regions, devices, schedule)
    assert regions / devices * (1 - 1e-6) <= ended.stream_seconds <= regions / devices + 3 * size + 1e-6


@given(devices=st.integers(1, 12), factor=st.integers(2, 8))
def test_more_devices_never_take_longer(devices: int, factor: int) -> None:
    work = Work(devices * factor * 24)
    few, many = (simulate([Devices(count, 2.0)], work, AT_ONCE) for count in (devices, devices * factor))
    assert many.stream_seconds <= few.stream_seconds + 1e-6


def test_more_preemptions_repeat_more_and_take_longer() -> None:
    work = Work(8_000, spread=0.2, read_seconds=0.3, write_seconds=0.5)

    def mean(rate: float) -> tuple[float, float]:
        runs = [simulate([Devices(32, 2.0, 4, 120, rate)], work, Schedule(), seed) for seed in range(6)]
        return float(np.mean([run.repeated_seconds for run in runs])), float(np.mean([run.seconds for run in runs]))

    found = [mean(rate) for rate in (0, 5, 40)]
    assert found == sorted(found)
    assert found[0][0] == 0


def test_what_a_preemption_repeats_is_what_was_in_hand() -> None:
    """Half a region on the device and those that are being written: at a rate of 1/2 a second for 4 s, two."""
    work = Work(100_000, write_seconds=4.0)
    ended = simulate([Devices(1, 2.0, preemptions_per_hour=2.0)], work, AT_ONCE)
    assert ended.preemptions > 50
    assert ended.repeated_seconds / ended.preemptions == pytest.approx(2.5 * 2.0, rel=0.02)


def test_a_slow_driver_is_the_limit_however_many_devices_there_are() -> None:
    schedule = replace(AT_ONCE, block_seconds=0.1)
    ended = simulate([Devices(200, 1.0)], Work(4_000), schedule)
    assert ended.blocks == 4_000
    assert ended.stream_seconds == pytest.approx(400, rel=0.02)
    assert ended.driver_busy == pytest.approx(1, abs=0.02)


def test_storage_that_takes_so_many_regions_a_second_is_the_limit() -> None:
    ended = simulate([Devices(100, 1.0)], Work(10_000), replace(AT_ONCE, regions_per_second=20.0))
    assert ended.stream_seconds == pytest.approx(500, rel=0.02)


def test_images_are_finished_as_fast_as_tasks_allow() -> None:
    work = Work(1_000, 1_000, finish_seconds=10.0)
    slow = simulate([Devices(10, 1.0)], work, replace(AT_ONCE, tasks=2))
    assert slow.seconds == pytest.approx(1_000 * 10 / 2, rel=0.01)
    fast = simulate([Devices(10, 1.0)], work, replace(AT_ONCE, tasks=200))
    assert fast.finish_seconds == pytest.approx(10, abs=1e-6)


def test_faster_devices_do_more_of_the_work() -> None:
    kinds = [Devices(4, 1.0), Devices(4, 4.0)]
    ended = simulate(kinds, Work(4_000), AT_ONCE)
    assert ended.regions[0] / ended.regions[1] == pytest.approx(4, rel=0.05)


def test_the_same_arguments_give_the_same_answer() -> None:
    arguments = ([Devices(8, 2.0, 4, 60, 10.0)], Work(5_000, 100, 0.3, 0.2, 0.2, 1.0), Schedule())
    assert simulate(*arguments, seed=3) == simulate(*arguments, seed=3)
    assert simulate(*arguments, seed=3) != simulate(*arguments, seed=4)


@pytest.mark.parametrize(
    ("regions", "actors", "wanted"),
    [(1, 1, 1), (17, 2, 4), (1_000, 3, 7), (10**6, 8, 1), (10**5, 100, 1), (999, 1, 1000)],
)
def test_blocks_are_those_of_the_stream(regions: int, actors: int, wanted: int) -> None:
    from chorus.cluster.regions.ray_executor import RayExecutor

    placement = Placement((range(1),), actors, actors, 0, 1, wanted, 3, 2)
    blocks = RayExecutor(placement, 1.0, "")._blocks(np.arange(regions))
    schedule = Schedule(regions_per_block=wanted)
    size = block_regions(regions, actors, schedule)
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert simulate([Devices(actors, 1.0)], Work(regions), schedule).blocks == len(blocks)


@pytest.mark.parametrize(("actors", "most"), [(1, 5_000), (78, 5_000), (1_000, 64_000), (10_000, 100_000)])
def test_many_actors_get_64_blocks_each_and_no_driver_more_than_it_can_make(actors: int, most: int) -> None:
    size = block_regions(10**7, actors, Schedule())
    assert -(-(10**7) // size) <= most < -(-(10**7) // (size - 1))
