"""The executor on Ray: regions stream through member actors by Ray Data, tasks run beside them.

A row of the stream is the number of a region; pixels never travel. An actor takes several blocks at once, each on
a thread of its own, and one lock guards its device: reading ahead and writing behind need no further machinery.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from chorus.cluster.planning.devices.device_probe import DeviceProbe, probe_device
from chorus.cluster.planning.devices.placement import Placement
from chorus.cluster.planning.devices.schedule import Schedule, block_regions
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.regions.guard import NodeInfo
from chorus.cluster.regions.worker import RegionWorker
from chorus.cluster.runtime.cancellation import cancel_running
from chorus.cluster.runtime.ray_tasks import RayTasks
from chorus.cluster.runtime.status import Passed, RegionStatus
from chorus.cluster.runtime.tasks import TaskResult, attempt_in_ray, begin_in_ray
from chorus.cluster.telemetry.metrics import RESTARTS, driver_recorder
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import CutShortError, RefusedError, first_line
from chorus.pipeline.io.fences import Pass, passes
from chorus.pipeline.io.storage import raise_fences

# Scale up above this utilisation; and make blocks for this multiple of the present actors, where more may join.
_BUSY, _GROWTH = 0.9, 16
log = logging.getLogger("chorus")
_STATUS_FIELDS = [field.name for field in fields(RegionStatus)]

Batch = dict[str, np.ndarray]


class _Fenced(NamedTuple):
    """What an actor needs: the context of the run as JSON, and the passes by which it may write."""

    content: str
    passes: tuple[Pass, ...]


class RegionActor:
    """All members on one device: region numbers in, statuses out."""

    def __init__(self, context: _Fenced) -> None:
        self._worker = _worker(context, None)

    def __call__(self, batch: Batch) -> Batch:
        """Process the regions of a batch; return one row of status per region."""
        return _rows([self._worker.process(int(region)) for region in batch["region"]])


class StageActor:
    """One group of members: takes region numbers and running sums, and adds these members' samples.

    Parameters
    ----------
    first, last : members of this stage, half-open
    position : ``first``, ``middle`` or ``last`` of the chain
    """

    def __init__(self, context: _Fenced, first: int, last: int, position: str) -> None:
        self._worker = _worker(context, range(first, last))
        self._position = position

    def __call__(self, batch: Batch) -> Batch:
        """Advance a batch of regions by one stage; return their state, or rows of status from the last stage."""
        # Pickle 5 of our own arrays: the stream carries them as bytes, unread by anyone else.
        states = batch.get("state", [None] * len(batch["region"]))
        ended = [self._advance(int(r), s) for r, s in zip(batch["region"], states, strict=True)]
        if self._position == "last":
            return _rows(ended)
        return {"region": batch["region"], "state": np.array([pickle.dumps(one, 5) for one in ended], dtype=object)}

    def _advance(self, region: int, packed: bytes | None) -> RegionStatus | Passed:
        if packed is None:
            return self._worker.start(region)
        state = pickle.loads(packed)
        if isinstance(state, RegionStatus):
            return state
        if self._position == "last":
            return self._worker.conclude(region, state)
        return self._worker.proceed(region, state)


class RayExecutor(RayTasks):
    """See `chorus.cluster.regions.executor.Executor`. Ray must have been started (`chorus.cluster.runtime.session`).

    Parameters
    ----------
    placement : how members and regions are spread
    longest : seconds that a region is expected to take at most
    logs : folder of Ray's logs, named when Ray fails
    """

    def __init__(self, placement: Placement, longest: float, logs: str) -> None:
        # Beside the member actors, which hold all cores: tasks ask for none and are bounded in number instead.
        super().__init__(placement.tasks, cpus=0)
        self._placement = placement
        self._longest = longest
        self._logs = logs

    @property
    def actors(self) -> int:
        """Return the number of actors over all stages."""
        return self._placement.actors

    def regions(self, context: RunContext, todo: np.ndarray) -> Generator[RegionStatus]:
        """See `chorus.cluster.regions.executor.Executor`.

        Ray restarts actors that die, and gives their blocks to others. Where it cannot (an actor that ends for good
        is never replaced, ray#62746; a pool may hang; a row may be lost) a new stream processes the rest.

        Parameters
        ----------
        todo : (n,) int64, ascending numbers of regions in the run

        Raises
        ------
        CutShortError
            If streams fail one after the other and no region ends any more.
        """
        unended = np.ones(len(todo), bool)
        fruitless = 0
        while before := np.count_nonzero(unended):
            try:
                for status in self._stream(context, todo[unended]):
                    unended[np.searchsorted(todo, status.region)] = False
                    if status.attempts > 1:
                        log.warning("a process died and its region was begun anew; the logs are in %s", self._logs)
                    yield status
                reason = "regions came back with no result"
            except ExecutionTimeoutError:
                reason = "no region ended any more"
            except Exception as error:
                log.debug("the stream of regions broke", exc_info=True)
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            after = np.count_nonzero(unended)
            fruitless = fruitless + 1 if after == before else 0
            if fruitless == RETRIES.streams:
                raise CutShortError(
                    f"Ray failed again and again ({reason}); look into {self._logs}, then run the same command again "
                    f"to go on"
                )
            if after:
                driver_recorder(context.out, context.ensemble_name).add(RESTARTS)
                log.warning("Ray broke off (%s); going on with the %d regions that are left", reason, after)

    def _stream(self, context: RunContext, todo: np.ndarray) -> Iterator[RegionStatus]:
        settings = ray.data.DataContext.get_current()
        settings.enable_progress_bars = False
        settings.print_on_execution_start = False
        settings.execution_options.preserve_order = False
        settings.max_consecutive_actor_init_deaths = RETRIES.actor_starts
        settings.max_errored_blocks = 0
        settings.autoscaling_config.actor_pool_util_upscaling_threshold = _BUSY
        blocks = self._blocks(todo)
        settings.execution_no_progress_timeout_s = self._patience(len(blocks[0]))
        fenced = _Fenced(context.model_dump_json(), passes())
        stream = self._stages(ray.data.from_blocks(blocks), len(blocks), fenced)
        tables: Iterable[Any] = stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for table in tables:
            for row in table.to_pylist():
                yield RegionStatus(**row)

    def _patience(self, regions: int) -> float:
        """Return the seconds without a finished block of `regions` after which the stream counts as hanging."""
        expected = self._longest * regions * self._placement.blocks_per_actor
        return RETRIES.stream_start_seconds + RETRIES.stream_patience * expected

    def _blocks(self, todo: np.ndarray) -> list[pa.Table]:
        actors = self._placement.least_actors_per_stage * (_GROWTH if self._placement.most_actors_per_stage else 1)
        size = block_regions(len(todo), actors, Schedule(regions_per_block=self._placement.regions_per_block))
        return [pa.table({"region": todo[start : start + size]}) for start in range(0, len(todo), size)]

    def _stages(self, stream: ray.data.Dataset, blocks: int, context: _Fenced) -> ray.data.Dataset:
        groups, least = self._placement.groups, self._placement.least_actors_per_stage
        # An actor that queues work ahead would take it from an idle one.
        at_once = min(self._placement.blocks_per_actor, -(-blocks // self._placement.actors_per_stage))
        for index, group in enumerate(groups):
            actor: type = RegionActor
            arguments: dict[str, object] = {"context": context}
            if len(groups) > 1:
                position = "first" if index == 0 else "last" if index == len(groups) - 1 else "middle"
                actor = StageActor
                arguments |= {"first": group.start, "last": group.stop, "position": position}
            stream = stream.map_batches(
                actor,
                fn_constructor_kwargs=arguments,
                batch_size=None,
                batch_format="numpy",
                num_cpus=self._placement.cpus_per_actor,
                num_gpus=self._placement.gpus_per_actor,
                memory=self._placement.memory_per_actor or None,
                compute=ray.data.ActorPoolStrategy(
                    # Start no actor that would have no region left.
                    min_size=min(blocks, least),
                    max_size=min(blocks, self._placement.most_actors_per_stage or least),
                    max_tasks_in_flight_per_actor=at_once,
                    max_concurrent_calls_per_actor=at_once,
                    enable_true_multi_threading=True,
                ),
            )
        return stream


def calibrate_on_ray(
    ensemble: Ensemble, settings: ResolvedSettings, patience: float = RETRIES.device_seconds
) -> DeviceProbe:
    """Run `probe_device` in a process of its own, on a device like the actors'; raise RefusedError as it does.

    `patience` is how long to wait, in seconds, for a busy device or for a new machine. A pending task is
    also the signal by which an autoscaling cluster adds nodes.
    """
    reserved: dict[str, Any] = device_of(settings.device).ray_options(settings.threads)
    trial = ray.remote(max_calls=1)(attempt_in_ray).options(**reserved)
    task = trial.remote(passes(), 0, probe_device, ensemble, settings)
    ready, _ = ray.wait([task], timeout=patience)
    if not ready:
        cancel_running([task])
        raise RefusedError(f"no {settings.device} device of the cluster became free; try again, or another --address")
    try:
        result: TaskResult = ray.get(task)
    except RayError as error:
        reason = first_line(error)
        raise RefusedError(
            f"{ensemble.url}: the process that tried its members died ({reason}), as of too little memory; use a "
            f"smaller --batch or --tile, or a larger machine"
        ) from error
    if result.error is not None:
        raise RefusedError(result.error)
    measured: DeviceProbe = result.value
    return measured


def _worker(context: _Fenced, members: range | None) -> RegionWorker:
    begin_in_ray()
    raise_fences(context.passes)
    parsed = RunContext.model_validate_json(context.content)
    device = device_of(parsed.settings.device).torch_device
    return RegionWorker(parsed, device, members, NodeInfo(ray.get_runtime_context().get_node_id(), _nodes))


def _nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _rows(statuses: list[Any]) -> Batch:
    rows = [asdict(status) for status in statuses]
    return {name: np.array([row[name] for row in rows]) for name in _STATUS_FIELDS}
