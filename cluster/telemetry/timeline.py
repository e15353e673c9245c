"""The timeline of a run: begin and end of every stage of regions and tasks, written only if the run is profiled.

A stage is a pair of clock readings in one thread. Stages travel with the status of a region or the result of a task to
the driver, which writes them::

    OUT/profile/<session>-0000.parquet, ...     stages of workers
    OUT/profile/<session>-driver.parquet        stages of the driver, written when the session ends
"""

from __future__ import annotations

import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

FOLDER = "profile"
# A file is written at this many stages or this age: a driver that is killed loses no more than that.
_MOST_SPANS, _MOST_SECONDS = 50_000, 60.0
_SCHEMA = pa.schema(
    [
        ("actor", pa.string()), ("thread", pa.int64()), ("stage", pa.string()), ("begin", pa.int64()),
        ("end", pa.int64()), ("region", pa.int64()), ("image", pa.int64()),
    ]
)  # fmt: skip


class StageSpan(NamedTuple):
    """A stage in a thread of the process `actor`; `begin` and `end` are nanoseconds since 1970."""

    actor: str
    thread: int
    stage: str
    begin: int
    end: int


_NOTED: ContextVar[list[StageSpan] | None] = ContextVar("noted", default=None)


@contextmanager
def noted(wanted: bool = True) -> Iterator[list[StageSpan]]:
    """Collect the stages that this thread runs inside the context, ordered by their end; none if `wanted` is False."""
    spans: list[StageSpan] = []
    token = _NOTED.set(spans if wanted else None)
    try:
        yield spans
    finally:
        _NOTED.reset(token)


class span:  # noqa: N801 - reads as the function that it stands for; a generator would cost ten times as much
    """Record the code inside the context as `stage` if stages are collected; otherwise only read one variable."""

    __slots__ = ("_begin", "_spans", "_stage")

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        self._spans = _NOTED.get()
        if self._spans is not None:
            self._begin = time.time_ns()

    def __exit__(self, *raised: object) -> None:
        if self._spans is not None:
            # The clock may have been set back in the meantime.
            ended = max(time.time_ns(), self._begin)
            self._spans.append(StageSpan(_actor(), threading.get_ident(), self._stage, self._begin, ended))


def note_shared(begin: int, busy: float) -> None:
    """Record ``wait`` and ``infer`` of a region that was just answered by a device that serves several regions at once.

    The regions take turns on the device. Its `busy` seconds for this one are placed at the end of the time since
    `begin`.

    Parameters
    ----------
    begin : nanoseconds since 1970
    busy : seconds
    """
    spans = _NOTED.get()
    if spans is not None:
        end = max(time.time_ns(), begin)
        since = max(begin, end - round(busy * 1e9))
        spans += [
            StageSpan(_actor(), threading.get_ident(), stage, a, b)
            for stage, a, b in (("wait", begin, since), ("infer", since, end))
        ]


def keep(spans: Iterable[StageSpan]) -> None:
    """Note stages that were noted apart, where stages are noted."""
    noted_here = _NOTED.get()
    if noted_here is not None:
        noted_here += spans


@contextmanager
def profiled(out: str, session: str, wanted: bool) -> Iterator[None]:
    """Collect the stages of the driver's thread inside the context; write them if the context ends without an error."""
    with noted(wanted) as spans:
        yield
    if spans:
        writer = TimelineWriter(out, session)
        writer.add(spans)
        writer.write("driver")


@cache
def _actor() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def packed(spans: Iterable[StageSpan]) -> str:
    """Serialise stages to one text for a row of a stream; empty if there are none."""
    entries = list(spans)
    return json.dumps(entries) if entries else ""


def unpacked(text: str) -> list[StageSpan]:
    """Return the stages that `packed` serialised."""
    return [StageSpan(*one) for one in json.loads(text)] if text else []


class TimelineWriter:
    """Writes the stages of one session of the run in `out`."""

    def __init__(self, out: str, session: str) -> None:
        self._url = storage.join(out, FOLDER, session)
        self._spans: list[tuple[StageSpan, int, int]] = []
        self._written = time.monotonic()
        self._parts = 0

    def add(self, spans: Iterable[StageSpan], *, region: int = -1, image: int = -1) -> None:
        """Keep stages of a region, by its number in the run, or of an image; raise OutputError as `write` does."""
        self._spans.extend((one, region, image) for one in spans)
        if len(self._spans) >= _MOST_SPANS or time.monotonic() - self._written > _MOST_SECONDS:
            self.write()

    def write(self, part: str | None = None) -> None:
        """Write the kept stages; raise OutputError if they cannot be written."""
        if self._spans:
            columns = [[*one, region, image] for one, region, image in self._spans]
            table = pa.table(list(map(list, zip(*columns, strict=True))), schema=_SCHEMA)
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            url = f"{self._url}-{part or f'{self._parts:04d}'}.parquet"
            with storage_errors(url):
                storage.write_bytes(url, buffer.getvalue())
            self._parts += part is None
            self._spans.clear()
        self._written = time.monotonic()
