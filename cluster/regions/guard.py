"""The guard around the work on a region: records attempts, turns errors into data, and measures every stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.regions.exclusive_gate import Gate
from chorus.cluster.regions.retry import suspicion
from chorus.cluster.runtime.status import Passed, RegionStatus
from chorus.cluster.state.ledger import Attempts, Ledger
from chorus.cluster.telemetry.logs import about, log_of_regions
from chorus.cluster.telemetry.metrics import WorkMetrics, run_label
from chorus.cluster.telemetry.timeline import noted, packed, span, unpacked
from chorus.pipeline.errors import ChorusError, OutputError
from chorus.pipeline.inference.oom_splitting import is_out_of_memory

log = logging.getLogger("chorus")
Ended = TypeVar("Ended", bound="RegionStatus | Passed")


@dataclass(frozen=True)
class NodeInfo:
    """Where a worker runs.

    Attributes
    ----------
    node : its own, by a name that is not given twice
    nodes : gives those that are there now, its own included
    """

    node: str = ""
    nodes: Callable[[], Collection[str]] = lambda: ("",)


class RegionGuard:
    """Runs the work on regions one by one, in several threads at once.

    Parameters
    ----------
    metrics : gets the seconds of every stage
    node : where this process is
    """

    def __init__(self, context: RunContext, table: ImageTable, metrics: WorkMetrics, node: NodeInfo) -> None:
        self._context, self._table, self._metrics, self._node = context, table, metrics, node
        self._ledger = Ledger(context.out)
        self._gate = Gate()

    @cached_property
    def _attempts(self) -> Attempts:
        return Attempts(self._context.out, self._context.session, self._node.node)

    def run(self, region: int, work: Callable[[], Ended], before: str = "") -> Ended | RegionStatus:
        """Do `work` on a region; return its result, or the status that says why there is none.

        Every stage is measured once: the metrics count it, and the timeline of a profiled run keeps it, after the
        stages `before` of other workers, `packed`.
        """
        index, region_in_image = self._table.find(region)
        with about(run=run_label(self._context.out), image=self._table.image(index).name, region=region_in_image):
            with noted() as spans:
                ended = self._attempt(region, index, region_in_image, work)
            self._metrics.stages(spans)
            if self._context.profile:
                ended = replace(ended, spans=packed([*unpacked(before), *spans]))
            if isinstance(ended, RegionStatus):
                level = logging.INFO if ended.state == "done" else logging.WARNING
                fields = {"tiles": ended.tiles, "seconds": round(ended.seconds, 3), "attempts": ended.attempts}
                reason = f": {ended.message}" if ended.message else ""
                log_of_regions.log(level, "region %s%s", ended.state, reason, extra={"fields": fields})
            return ended

    def _attempt(
        self, region: int, index: int, region_in_image: int, work: Callable[[], Ended]
    ) -> Ended | RegionStatus:
        """Return what `work` gives, or how it failed: errors are data, so that one region never stops the others."""
        try:
            with span("look up"):
                recorded = self._ledger.has_region(self._table.image(index).name, region_in_image)
                begun = [] if recorded else self._attempts.unended(region)
            if recorded:
                # A block of the stream is retried whole when its actor dies; what was recorded is not done again.
                return RegionStatus(region, index, region_in_image, "done")
            if reason := suspicion(begun, self._node.nodes):
                message = f"region {region_in_image} {reason} and is set aside; look into the logs of Ray"
                return RegionStatus(region, index, region_in_image, "quarantined", message, attempts=len(begun))
            # A region that was in progress when a worker died is tried alone, so that it cannot kill its neighbours.
            with self._gate.enter(alone=bool(begun)):
                with span("look up"):
                    self._attempts.begin(region, begun)
                try:
                    result = work()
                    return replace(result, attempts=len(begun) + 1) if isinstance(result, RegionStatus) else result
                finally:
                    with span("record"):
                        self._attempts.end(region)
        except OutputError as error:
            return RegionStatus(region, index, region_in_image, "unwritable", str(error))
        except ChorusError as error:
            return RegionStatus(region, index, region_in_image, "failed", str(error))
        except Exception as error:
            if is_out_of_memory(error):
                message = (
                    f"region {region_in_image} needs more memory than there is ({self._context.settings.device}), also "
                    f"with one tile a call; use a smaller --region or --tile, or fewer --actors on a machine"
                )
            else:
                log.exception("region %d of image %d", region_in_image, index)
                message = f"unexpected {type(error).__name__}: {error}; please report this with the log"
            return RegionStatus(region, index, region_in_image, "failed", message)
