"""The executor on Ray: regions stream through member actors by Ray Data, tasks run beside them.

A row of the stream is the number of a region; pixels never travel. An actor takes several blocks at once, each on
a thread of its own, and one lock guards its device: reading ahead and writing behind need no further machinery.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from cluster.calibration import Calibration, calibrate
from cluster.executor import TaskResult, attempt
from cluster.placement import Placement
from cluster.plan import ResolvedSettings, RunContext
from cluster.worker import RegionStatus, RegionWorker
from pipeline.ensemble import Ensemble
from pipeline.errors import RefusedError
from pipeline.inference import StageState

# Blocks that an actor works on at once: one reads, one infers, one writes.
_BLOCKS_PER_ACTOR = 3
_MOST_BLOCKS = 20_000
_CALIBRATION_SECONDS = 600
_STATUS_FIELDS = [field.name for field in fields(RegionStatus)]

Batch = dict[str, np.ndarray]


class RegionActor:
    """All members on one device: region numbers in, statuses out."""

    def __init__(self, context: str) -> None:
        self._worker = _worker(context, None)

    def __call__(self, batch: Batch) -> Batch:
        return _rows([self._worker.process(int(region)) for region in batch["region"]])


class StageActor:
    """One group of members: region numbers and running sums in, the same with these members' samples out.

    Parameters
    ----------
    first, last : members of this stage, half-open
    position : ``first``, ``middle`` or ``last`` of the chain
    """

    def __init__(self, context: str, first: int, last: int, position: str) -> None:
        self._worker = _worker(context, range(first, last))
        self._position = position

    def __call__(self, batch: Batch) -> Batch:
        # Pickle 5 of our own arrays: the stream carries them as bytes, unread by anyone else.
        states = batch.get("state", [None] * len(batch["region"]))
        ended = [self._advance(int(r), s) for r, s in zip(batch["region"], states, strict=True)]
        if self._position == "last":
            return _rows(ended)
        return {"region": batch["region"], "state": np.array([pickle.dumps(one, 5) for one in ended], dtype=object)}

    def _advance(self, region: int, packed: bytes | None) -> RegionStatus | StageState:
        if packed is None:
            return self._worker.start(region)
        state = pickle.loads(packed)
        if isinstance(state, RegionStatus):
            return state
        if self._position == "last":
            return self._worker.conclude(region, state)
        return self._worker.proceed(region, state)


class RayExecutor:
    """See `cluster.executor.Executor`. Ray must have been started (`cluster.session`)."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._tasks: dict[Any, int] = {}
        self._waiting: list[tuple[int, Callable[..., Any], tuple[Any, ...]]] = []
        self._attempt = ray.remote(attempt)

    @property
    def actors(self) -> int:
        return self._placement.actors

    def regions(self, context: RunContext, todo: np.ndarray) -> Iterator[RegionStatus]:
        if not len(todo):
            return
        settings = ray.data.DataContext.get_current()
        settings.enable_progress_bars = False
        settings.execution_options.preserve_order = False
        # A single region may take minutes on a CPU.
        settings.execution_no_progress_timeout_s = -1
        settings.max_consecutive_actor_init_deaths = 3
        settings.max_errored_blocks = 0
        stream = self._stages(ray.data.from_arrow(self._blocks(todo)), context.model_dump_json())
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield RegionStatus(**row)

    def _blocks(self, todo: np.ndarray) -> list[pa.Table]:
        size = max(self._placement.regions_per_block, -(-len(todo) // _MOST_BLOCKS))
        return [pa.table({"region": todo[start : start + size]}) for start in range(0, len(todo), size)]

    def _stages(self, stream: ray.data.Dataset, context: str) -> ray.data.Dataset:
        groups = self._placement.groups
        for index, group in enumerate(groups):
            actor: type = RegionActor
            arguments: dict[str, Any] = {"context": context}
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
                compute=ray.data.ActorPoolStrategy(
                    min_size=self._placement.least_actors_per_stage,
                    max_size=self._placement.actors_per_stage,
                    max_tasks_in_flight_per_actor=_BLOCKS_PER_ACTOR,
                    max_concurrent_calls_per_actor=_BLOCKS_PER_ACTOR,
                    enable_true_multi_threading=True,
                ),
            )
        return stream

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append((key, function, arguments))
        self._begin()

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        while self._tasks:
            ended, _ = ray.wait(list(self._tasks), num_returns=1, timeout=None if wait else 0)
            if not ended:
                return
            del self._tasks[ended[0]]
            self._begin()
            yield ray.get(ended[0])

    def _begin(self) -> None:
        # Beside the member actors, which hold all cores: tasks ask for none and are bounded in number instead.
        while self._waiting and len(self._tasks) < self._placement.tasks:
            key, function, arguments = self._waiting.pop(0)
            task = self._attempt.options(num_cpus=0, max_retries=3).remote(key, function, *arguments)
            self._tasks[task] = key


def calibrate_on_ray(ensemble: Ensemble, settings: ResolvedSettings) -> Calibration:
    """`calibrate` in a process of its own, on a device like the actors'; raises RefusedError as it does."""
    gpus = 1 if settings.device == "cuda" else 0
    trial = ray.remote(max_calls=1)(attempt).options(num_gpus=gpus, num_cpus=1 - gpus)
    task = trial.remote(0, calibrate, ensemble, settings, 1)
    ready, _ = ray.wait([task], timeout=_CALIBRATION_SECONDS)
    if not ready:
        ray.cancel(task, force=True)
        raise RefusedError(f"no {settings.device} device of the cluster became free; try again, or another --address")
    result: TaskResult = ray.get(task)
    if result.error is not None:
        raise RefusedError(result.error)
    measured: Calibration = result.value
    return measured


def _worker(context: str, members: range | None) -> RegionWorker:
    parsed = RunContext.model_validate_json(context)
    device = torch.device("cuda", 0) if parsed.settings.device == "cuda" else torch.device("cpu")
    return RegionWorker(parsed, device, members)


def _rows(statuses: list[Any]) -> Batch:
    rows = [asdict(status) for status in statuses]
    return {name: np.array([row[name] for row in rows]) for name in _STATUS_FIELDS}
