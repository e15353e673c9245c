"""When what was done: stages of regions and of tasks, noted by whoever does them, kept where a run is profiled.

Each is a pair of readings of the clock in one thread. They travel with the status of a region and the result of a task,
and the driver writes them down::

    OUT/profile/<session>-0000.parquet, ...     stages of workers
    OUT/profile/<session>-driver.parquet        of the driver, when the session ends
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
from chorus.pipeline.io.storage import storage_errors

FOLDER = "profile"
# A file holds so many stages at most, and is written when it is so old: what a driver that is killed loses.
_MOST_SPANS, _MOST_SECONDS = 50_000, 60.0
_SCHEMA = pa.schema(
    [
        ("actor", pa.string()), ("thread", pa.int64()), ("stage", pa.string()), ("begin", pa.int64()),
        ("end", pa.int64()), ("region", pa.int64()), ("image", pa.int64()),
    ]
)  # fmt: skip


class Span(NamedTuple):
    """A stage in the process `actor` and a thread of it; `begin` and `end` are its clock's nanoseconds since 1970."""

    actor: str
    thread: int
    stage: str
    begin: int
    end: int


_NOTED: ContextVar[list[Span] | None] = ContextVar("noted", default=None)


@contextmanager
def noted(wanted: bool = True) -> Iterator[list[Span]]:
    """The stages of what this thread does inside, in the order in which they end; none where they are not `wanted`."""
    spans: list[Span] = []
    token = _NOTED.set(spans if wanted else None)
    try:
        yield spans
    finally:
        _NOTED.reset(token)


class span:  # noqa: N801 - reads as the function that it stands for; a generator would cost ten times as much
    """Note what is done inside as `stage`, where stages are noted; else look at a variable and nothing more."""

    __slots__ = ("_begin", "_spans", "_stage")

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        self._spans = _NOTED.get()
        if self._spans is not None:
            self._begin = time.time_ns()

    def __exit__(self, *raised: object) -> None:
        if self._spans is not None:
            # The clock may be set back meanwhile.
            ended = max(time.time_ns(), self._begin)
            self._spans.append(Span(_actor(), threading.get_ident(), self._stage, self._begin, ended))


def note_shared(begin: int, busy: float) -> None:
    """Note ``wait`` and ``infer`` of a region that was answered just now by a device that works for several at once.

    Regions take turns there: the `busy` seconds that it had are taken to be the last ones since `begin`, nanoseconds.
    """
    spans = _NOTED.get()
    if spans is not None:
        end = max(time.time_ns(), begin)
        since = max(begin, end - round(busy * 1e9))
        spans += [
            Span(_actor(), threading.get_ident(), stage, a, b)
            for stage, a, b in (("wait", begin, since), ("infer", since, end))
        ]


def keep(spans: Iterable[Span]) -> None:
    """Note stages that were noted apart, where stages are noted."""
    noted_here = _NOTED.get()
    if noted_here is not None:
        noted_here += spans


@contextmanager
def profiled(out: str, session: str, wanted: bool) -> Iterator[None]:
    """Note the stages of what this thread, the driver's, does inside, and write them down if that comes to its end."""
    with noted(wanted) as spans:
        yield
    if spans:
        writer = TimelineWriter(out, session)
        writer.add(spans)
        writer.write("driver")


@cache
def _actor() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def packed(spans: Iterable[Span]) -> str:
    """Stages as one text, for a row of a stream; empty where there are none."""
    found = list(spans)
    return json.dumps(found) if found else ""


def unpacked(text: str) -> list[Span]:
    """What was `packed`."""
    return [Span(*one) for one in json.loads(text)] if text else []


class TimelineWriter:
    """Writes stages down for a session of the run in `out`."""

    def __init__(self, out: str, session: str) -> None:
        self._url = storage.join(out, FOLDER, session)
        self._spans: list[tuple[Span, int, int]] = []
        self._written = time.monotonic()
        self._parts = 0

    def add(self, spans: Iterable[Span], *, region: int = -1, image: int = -1) -> None:
        """Keep stages of a region, by its number in the run, or of an image; raises OutputError as `write` does."""
        self._spans.extend((one, region, image) for one in spans)
        if len(self._spans) >= _MOST_SPANS or time.monotonic() - self._written > _MOST_SECONDS:
            self.write()

    def write(self, part: str | None = None) -> None:
        """Write what is kept; raises OutputError where storage does not take it."""
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
