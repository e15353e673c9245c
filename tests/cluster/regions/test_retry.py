"""A region is set aside when it ends its processes, and not for machines that go."""

from __future__ import annotations

import pytest

from chorus.cluster.regions.retry import suspicion
from chorus.pipeline.core.retries import RETRIES

STAYS, GONE = "node-a", "node-b"


@pytest.mark.parametrize("times", range(RETRIES.region_attempts))
def test_a_region_is_tried_again_a_few_times_without_asking_for_nodes(times: int) -> None:
    def nodes() -> set[str]:
        raise AssertionError("asked for nodes")

    assert suspicion([STAYS] * times, nodes) is None


def test_a_region_whose_processes_end_on_nodes_that_stay_is_set_aside() -> None:
    begun = [STAYS] * RETRIES.region_attempts
    assert suspicion(begun, lambda: {STAYS}) == f"ended its worker {RETRIES.region_attempts} times"
    assert suspicion([GONE, *begun], lambda: {STAYS}) == f"ended its worker {RETRIES.region_attempts} times"


def test_nodes_that_went_took_a_region_along_until_there_are_too_many() -> None:
    begun = [GONE] * (RETRIES.region_nodes - 1)
    assert suspicion(begun, lambda: {STAYS}) is None
    assert (
        suspicion([*begun, GONE], lambda: {STAYS})
        == f"was in hand on {RETRIES.region_nodes} processes or nodes that ended"
    )
