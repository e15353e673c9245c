"""Where the time of a profiled run went: seconds of each stage, and why devices were idle.

An actor has one device. At any moment of the stream the device is in one of these states, whose times add up to the
stream's time:

======== ==============================================================================================
busy     a region uses the device
hand     a region is ready but waits: the lock is being passed on, or the machine's cores are taken
read     no region is ready, and at least one is being looked up, read or prepared
write    all regions that the actor may hold at once are being scored, written or recorded
queue    the actor could take another region and none has arrived: Ray or the driver is behind
start    before its first region: its process and its members' weights are being loaded
end      after its last region, while other actors, or the tasks that finish images, are at work
======== ==============================================================================================
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from chorus.cluster.telemetry.timeline import FOLDER
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import storage_errors

# Stages of regions, in the order of the work, and of images; all others are the driver's.
READING, WAITING, INFERRING = ("look up", "read", "prepare"), ("wait",), ("infer",)
WRITING = ("score", "prepare output", "write", "record")
REGION_STAGES = (*READING, *WAITING, *INFERRING, *WRITING)
IMAGE_STAGES = ("image scores", "pyramid", "thumbnail", "image record")
STATES = ("busy", "hand", "read", "write", "queue", "start", "end")
STREAM = "stream"
NANOSECONDS = 1e9


class Stage(BaseModel):
    """Statistics of one stage.

    Attributes
    ----------
    unit : ``region``, ``image`` or ``run``
    count : number of regions, images or sessions that had the stage
    seconds : total over all of them
    share : fraction of the total time of all workers' (or the driver's) stages
    median, p95 : seconds per region, image or session
    """

    model_config = ConfigDict(frozen=True)

    unit: str = Field(serialization_alias="of")
    stage: str
    count: int
    seconds: float
    share: float
    median: float
    p95: float


class DeviceTimes(BaseModel):
    """The device of one actor in one session: `seconds` of its stream, and the seconds in each of `STATES`."""

    model_config = ConfigDict(frozen=True)

    session: str
    actor: str
    seconds: float
    states: dict[str, float]


class Profile(BaseModel):
    """Where the time of a run went.

    Attributes
    ----------
    sessions : profiled sessions; more than one if the run was interrupted and resumed
    seconds : sum of the durations of all their streams
    """

    model_config = ConfigDict(frozen=True)

    sessions: int
    seconds: float
    stages: list[Stage]
    devices: list[DeviceTimes]

    @property
    def states(self) -> dict[str, float]:
        """Share of all devices' time in each of `STATES`."""
        total = sum(device.seconds for device in self.devices) or 1.0
        return {state: sum(device.states[state] for device in self.devices) / total for state in STATES}


def read_timeline(out: str) -> pd.DataFrame:
    """Return all stages of a run, sorted by the time they began.

    Returns
    -------
    Columns are those of `chorus.cluster.telemetry.timeline` and `session`.

    Raises
    ------
    RefusedError
        If the run was not profiled.
    """
    url = storage.join(storage.normalise(out), FOLDER)
    with storage_errors(url), ThreadPoolExecutor(16) as pool:
        files = [name for name in storage.entries(url) if name.endswith(".parquet")]
        contents = pool.map(lambda name: storage.read_bytes(storage.join(url, name)), files)
        parts = [
            _part(storage.join(url, name), data).assign(session=name.rpartition("-")[0])
            for name, data in zip(files, contents, strict=True)
        ]
    if not parts:
        raise RefusedError(f"{out}: no profile of a run; run `chorus predict` with --profile, then ask again")
    return pd.concat(parts, ignore_index=True).sort_values(["begin", "end"], kind="stable", ignore_index=True)


def _part(url: str, data: bytes) -> pd.DataFrame:
    with parquet_errors(url, "remove it, and ask again for what the other parts say"):
        return pd.read_parquet(io.BytesIO(data))


def profile(timeline: pd.DataFrame) -> Profile:
    """Summarise the stages of a run, as `read_timeline` returns them."""
    devices: list[DeviceTimes] = []
    seconds = 0.0
    for session, part in timeline.groupby("session", sort=False):
        regions = part[part.region >= 0]
        if regions.empty:
            continue
        begin, end = window(part)
        seconds += (end - begin) / NANOSECONDS
        for actor, own in regions.groupby("actor"):
            states = device_states(own, begin, end)
            state_seconds = {name: value / NANOSECONDS for name, value in zip(STATES, states.tolist(), strict=True)}
            devices.append(
                DeviceTimes(
                    session=str(session), actor=str(actor), seconds=(end - begin) / NANOSECONDS, states=state_seconds
                )
            )
    return Profile(sessions=int(timeline.session.nunique()), seconds=seconds, stages=_stages(timeline), devices=devices)


def window(part: pd.DataFrame) -> tuple[int, int]:
    """Return when a session's stream began and ended, in nanoseconds since 1970.

    If the driver was killed, these are the begin of the first and the end of the last stage of its workers.
    """
    stream = part[(part.stage == STREAM) & (part.region < 0)]
    if stream.empty:
        work = part[(part.region >= 0) | (part.image >= 0)]
        return int(work.begin.min()), int(work.end.max())
    return int(stream.begin.iloc[0]), int(stream.end.iloc[0])


def device_states(own: pd.DataFrame, begin: int, end: int) -> NDArray[np.int64]:
    """Measure how long an actor's device was in each state between `begin` and `end`; see `device_changes`.

    Parameters
    ----------
    own : stages of regions in that actor
    begin, end : nanoseconds since 1970

    Returns
    -------
    (states,) int64, nanoseconds in the order of `STATES`; their sum is ``end - begin``
    """
    times, chosen = device_changes(own, begin, end)
    spent = np.zeros(len(STATES), np.int64)
    np.add.at(spent, chosen, np.diff(times))
    return spent


def device_changes(own: pd.DataFrame, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return the sequence of states of an actor's device from `begin` to `end`.

    Parameters
    ----------
    own : stages of regions in that actor
    begin, end : nanoseconds since 1970

    Returns
    -------
    times : (2 * stages + 2,) int64, nanoseconds, ascending
    states : (2 * stages + 1,) intp, index in `STATES` for each interval between two times
    """
    kinds = (INFERRING, WAITING, READING, WRITING)
    of_kind = {stage: index for index, kind in enumerate(kinds) for stage in kind}
    kind = own.stage.map(of_kind).to_numpy(np.int64)
    starts, stops = (own[name].to_numpy(np.int64).clip(begin, end) for name in ("begin", "end"))
    times = np.concatenate([starts, stops, [begin, end]])
    changes = np.zeros((len(times), len(kinds)), np.int64)
    changes[np.arange(len(own)), kind] = 1
    changes[len(own) + np.arange(len(own)), kind] = -1
    order = np.argsort(times, kind="stable")
    times = times[order]
    infer, wait, read, write = np.cumsum(changes[order], axis=0)[:-1].T
    at_once = int((infer + wait + read + write)[np.diff(times) > 0].max(initial=1))
    since = times[:-1]
    chosen = np.select(
        [infer > 0, wait > 0, read > 0, write >= at_once, since < starts.min(), since >= stops.max()],
        [STATES.index(name) for name in ("busy", "hand", "read", "write", "start", "end")],
        STATES.index("queue"),
    )
    return times, chosen


def _stages(timeline: pd.DataFrame) -> list[Stage]:
    """Summarise stages of regions and of images in the order of the work, then those of the driver as they came."""
    length = timeline.end - timeline.begin
    is_region, is_image = timeline.region >= 0, (timeline.region < 0) & (timeline.image >= 0)
    worked = float(length[is_region | is_image].sum())
    driver = timeline[~is_region & ~is_image]
    parts: tuple[tuple[str, pd.DataFrame, Any, list[str], float], ...] = (
        ("region", timeline[is_region], "region", list(REGION_STAGES), worked),
        ("image", timeline[is_image], "image", list(IMAGE_STAGES), worked),
        ("run", driver, "session", [], float((driver.end - driver.begin).sum())),
    )
    stages = []
    for unit, part, by, known, total in parts:
        seen = part.stage.unique().tolist()
        for stage in [*(name for name in known if name in seen), *(name for name in seen if name not in known)]:
            rows = part[part.stage == stage]
            # A region that was retried has a stage more than once.
            each = ((rows.end - rows.begin) / NANOSECONDS).groupby(rows[by]).sum()
            stages.append(
                Stage(
                    unit=unit,
                    stage=stage,
                    count=len(each),
                    seconds=float(each.sum()),
                    share=float(each.sum()) * NANOSECONDS / total if total else 0.0,
                    median=float(each.median()),
                    p95=float(each.quantile(0.95)),
                )
            )
    return stages
