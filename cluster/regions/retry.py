"""The retry policy: when a region is set aside because the processes that worked on it died."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from chorus.pipeline.core.retries import RETRIES


def suspicion(begun: Sequence[str], nodes: Callable[[], Collection[str]]) -> str | None:
    """Return why a region is set aside; None where it is tried again.

    A node that vanished, as spot machines do, says nothing about the regions on it. If a process died on a node that
    still exists, the region may be the cause.

    Parameters
    ----------
    begun : nodes on which it was begun and did not end, one for each time
    nodes : those that are there now; asked only where it matters
    """
    if len(begun) >= RETRIES.region_nodes:
        return f"was in hand on {len(begun)} processes or nodes that ended"
    if len(begun) < RETRIES.region_attempts:
        return None
    there = nodes()
    ended = sum(node in there for node in begun)
    return f"ended its worker {ended} times" if ended >= RETRIES.region_attempts else None
