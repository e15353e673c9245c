"""When a region is not tried again: the policy on what killed those that worked on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from chorus.pipeline.core.retries import RETRIES


def suspicion(begun: Sequence[str], nodes: Callable[[], Collection[str]]) -> str | None:
    """Why a region is set aside; None where it is tried again.

    A node that went, as spot machines do, took what was in hand along. A process that ended on a node that is still
    there did so by itself, or by the region.

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
