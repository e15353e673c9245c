"""Outlines of objects of decided images, as `chorus export` writes them, in an archive that is streamed."""

from __future__ import annotations

import csv
import io
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from chorus.cluster.exports.objects import Objects
from chorus.cluster.exports.outline_files import ExportRequest
from chorus.cluster.exports.outlines import IMAGES, export_objects
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.errors import OutputError
from chorus.serving.contract.problems import RequestError
from chorus.serving.review.decisions import Decision
from chorus.serving.review.run import ReviewedRun

Kind = Literal["geojson", "rois"]
# Larger exports are left to the command, which runs on the cluster and writes to storage.
MOST_IMAGES, MOST_OBJECTS = 2_000, 1_000_000
# Images whose files are on disk at once.
_BATCH = 32
_COLUMNS = ["image", "file", "status", "objects", "message"]


def outline_routes(run: ReviewedRun) -> APIRouter:
    """Return the route ``api/outlines.zip``."""
    router, busy = APIRouter(prefix="/api"), threading.Lock()

    @router.get("/outlines.zip")
    def outlines(decided: Decision, kind: Kind) -> Response:
        run.log.refresh(now=True)
        names = _decided(run, decided)
        parts = _archive(run, names, kind, busy)
        next(parts)  # once started, its cleanup runs even if the client disconnects
        headers = {"Content-Disposition": f'attachment; filename="{decided}-{kind}.zip"', "Cache-Control": "no-store"}
        return StreamingResponse(parts, media_type="application/zip", headers=headers)

    return router


def _decided(run: ReviewedRun, decided: Decision) -> list[str]:
    """Return the names of images with this decision that have objects, in the order of the gallery.

    Raises
    ------
    RefusedError
        If `chorus objects` has not been run.
    RequestError
        404, there is none; 413, there are more than the server sends.
    """
    places = run.snapshot().gallery.places
    known = {name for name, state in run.log.states().items() if state.decision == decided}
    objects = Objects(run.out)
    counts = {row.name: sum(row.objects.values()) for row in objects.images if row.status == "done"}
    names = sorted(known & counts.keys() & places.keys(), key=places.__getitem__)
    if not names:
        raise RequestError(404, f"no image with objects is decided {decided}; decide some first")
    if len(names) > MOST_IMAGES or sum(counts[name] for name in names) > MOST_OBJECTS:
        raise RequestError(
            413, f"more than {MOST_IMAGES} images or {MOST_OBJECTS} objects; use `chorus export --decided {decided}`"
        )
    return names


def _archive(run: ReviewedRun, names: Sequence[str], kind: Kind, busy: threading.Lock) -> Iterator[bytes]:
    """Yield a ZIP archive with a file per image and ``images.csv``; the first part is empty.

    Raises
    ------
    RequestError
        503, before the first part: `busy` is held by another archive.
    OutputError
        If an image cannot be read or its file not be written; what was sent is an incomplete archive.
    """
    if not busy.acquire(blocking=False):
        raise RequestError(503, "another export is being made; try again when it is done", 10)
    sink, listed = _Sink(), io.StringIO()
    table = csv.DictWriter(listed, _COLUMNS)
    table.writeheader()
    try:
        yield b""
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED if kind == "rois" else zipfile.ZIP_DEFLATED) as archive:
            for start in range(0, len(names), _BATCH):
                with tempfile.TemporaryDirectory(prefix="chorus-outlines-") as folder:
                    request = ExportRequest(out=run.out, to=folder, kind=kind, executor="serial")
                    outcome = export_objects(request, Silent(), names[start : start + _BATCH])
                    if outcome.state == "interrupted":
                        raise OutputError(outcome.message)
                    for row in outcome.rows:
                        message = run.said(row.message, row.name)
                        table.writerow(row.model_dump() | {"message": message})
                        if row.file is not None:
                            archive.write(Path(folder) / row.file, row.file)
                            yield sink.taken()
            archive.writestr(IMAGES, listed.getvalue())
        yield sink.taken()
    finally:
        busy.release()


class _Sink(io.RawIOBase):
    """A buffer of what an archive has written since the last read."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Append `data`."""
        self._data += data
        return len(data)

    def taken(self) -> bytes:
        """Return the bytes and empty the buffer."""
        data, self._data = bytes(self._data), bytearray()
        return data
