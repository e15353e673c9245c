"""Routes of large images: their progress, as a document or a stream of events, and their results."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from chorus.pipeline.errors import ChorusError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.serving.contract.jobs import ENDED, JobStore
from chorus.serving.contract.predictors import LargeTask, Predictors, TooLarge
from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import EnsembleName, JobState, PredictOptions
from chorus.serving.contract.sources import Source, Stored, Uploaded
from chorus.serving.web.documents import problem

_EVERY_SECONDS = 1.0
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
# Maximum of a file that is sent in one piece; larger ones, such as shards, are requested in ranges.
_MOST_BYTES = 1 << 28


async def begin_job(
    predictors: Predictors,
    store: JobStore,
    name: str,
    source: Source,
    options: PredictOptions,
    size: TooLarge,
    client: str,
) -> JobState:
    """Start a job for a large image; raise RequestError if it is not accepted."""
    info = await predictors.info(name)
    try:
        record = await asyncio.to_thread(store.create, EnsembleName(name=name, hash=info.hash), size.regions, client)
        if isinstance(source, Uploaded):
            url = store.place(record.job.id, "source.ome.zarr")
            await asyncio.to_thread(source.keep, url)
            source = Stored(url)
    except ChorusError as error:
        raise RequestError(503, "the storage of the server does not take the image", 30) from error
    refusal = await predictors.start(name, LargeTask(record, source, options))
    if refusal is not None:
        await asyncio.to_thread(store.remove, record.job.id)
        raise refusal.error()
    return record.job


def add_job_routes(api: FastAPI, store: JobStore) -> None:
    """Add the routes of large images."""
    missing = {404: problem(404)}

    @api.get("/v1/predictions/{job}", tags=["jobs"], summary="How far a large image is", responses=missing)  # type: ignore[arg-type]
    async def state(request: Request, job: str) -> JobState:
        return (await asyncio.to_thread(store.read, job, request.state.client)).job

    @api.delete(
        "/v1/predictions/{job}", tags=["jobs"], summary="Stop a large image; remove one that has ended",
        status_code=204, responses=missing,  # type: ignore[arg-type]
    )  # fmt: skip
    async def stop(request: Request, job: str) -> None:
        record = await asyncio.to_thread(store.read, job, request.state.client)
        await asyncio.to_thread(store.stop, record)

    @api.get(
        "/v1/predictions/{job}/events", tags=["jobs"], summary="Its states as they come, until it ends",
        response_class=Response, responses=missing | {200: {"content": {"text/event-stream": {}}}},  # type: ignore[arg-type]
    )  # fmt: skip
    async def events(request: Request, job: str) -> Response:
        await asyncio.to_thread(store.read, job, request.state.client)
        return EventSourceResponse(_states(store, job, request.state.client))

    @api.get(
        "/v1/predictions/{job}/files/{path:path}", tags=["jobs"], summary="A file of its results, as of the OME-Zarr",
        response_class=Response, responses=missing | {206: {"description": "The bytes of `Range`"}},  # type: ignore[arg-type]
    )  # fmt: skip
    async def file(request: Request, job: str, path: str) -> Response:
        await asyncio.to_thread(store.read, job, request.state.client)
        return await asyncio.to_thread(_read_file, store.file(job, path), request.headers.get("range"))


async def _states(store: JobStore, job: str, client: str) -> AsyncIterator[ServerSentEvent]:
    last = ""
    while True:
        try:
            state = (await asyncio.to_thread(store.read, job, client)).job
        except RequestError:  # removed meanwhile
            return
        content = state.model_dump_json()
        if content != last:
            yield ServerSentEvent(content, event="state")
            last = content
        if state.state in ENDED:
            return
        await asyncio.sleep(_EVERY_SECONDS)


def _read_file(url: str, asked: str | None) -> Response:
    """Return all of a file, or a range of it."""
    try:
        with storage_errors(url):
            fs, path = storage.filesystem(url)
            if not storage.exists(url) or fs.isdir(path):
                raise RequestError(404, "there is no such file")
            size = int(fs.size(path))
            start, stop = _range(asked, size)
            if stop - start > _MOST_BYTES:
                raise RequestError(413, f"ask for at most {_MOST_BYTES} bytes by `Range`")
            data: bytes = fs.cat_file(path, start, stop) if stop > start else b""
    except ChorusError as error:
        raise RequestError(502, "the storage of the results does not answer") from error
    headers = {"Accept-Ranges": "bytes"}
    if asked is None:
        return Response(data, 200, headers, "application/octet-stream")
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(data, 206, headers, "application/octet-stream")


def _range(asked: str | None, size: int) -> tuple[int, int]:
    """Return the first byte and the one after the last; raise RequestError 416 unless it is one range of the file."""
    if asked is None:
        return 0, size
    match = _RANGE.fullmatch(asked.strip())
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(size, int(last) + 1) if last else size
    elif last:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = size, size
    if start >= stop:
        raise RequestError(416, "the range is not one of the file's")
    return start, stop
