"""Jobs of large images: the state of each is a small document in storage, which any process can read.

::

    JOBS/<id>/state.json     `JobRecord`, written every few seconds while it runs
    JOBS/<id>/stop           exists if it is to stop
    JOBS/<id>/source.ome.zarr
    JOBS/<id>/out/           a run of `chorus predict` with this one image
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import EnsembleName, JobState

_ID = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"[A-Za-z0-9._:-]+")
ENDED = ("done", "failed", "cancelled")
# Seconds between two updates of a running job, and without an update until it counts as lost.
BEAT, LOST = 5.0, 90.0


class JobRecord(BaseModel):
    """The stored record of a job.

    Attributes
    ----------
    client : its owner
    created, updated : seconds since the epoch
    """

    job: JobState
    client: str
    created: float
    updated: float


class JobStore:
    """The jobs below a URL, which all processes of a server can read.

    Parameters
    ----------
    url : a folder or a bucket
    kept_seconds : after which an ended job is removed
    """

    def __init__(self, url: str, kept_seconds: float) -> None:
        self.url, self._kept = storage.normalise(url), kept_seconds

    def place(self, job: str, *parts: str) -> str:
        """Return the URL of a part of a job."""
        return storage.join(self.url, job, *parts)

    def create(self, ensemble: EnsembleName, regions: int, client: str) -> JobRecord:
        """Create a job; remove those that are too old."""
        self._sweep()
        job, now = uuid.uuid4().hex, time.time()
        links = {"self": f"/v1/predictions/{job}", "events": f"/v1/predictions/{job}/events"}
        state = JobState(id=job, ensemble=ensemble, state="queued", regions=regions, links=links)
        record = JobRecord(job=state, client=client, created=now, updated=now)
        self.write(record)
        return record

    def write(self, record: JobRecord) -> None:
        """Write a record; raise OutputError if it cannot be written."""
        url = self.place(record.job.id, "state.json")
        with storage_errors(url):
            storage.write_bytes(url, record.model_dump_json().encode())

    def read(self, job: str, client: str) -> JobRecord:
        """Return the record of a client's job; raise RequestError 404 if there is none."""
        record = self._read(job) if _ID.fullmatch(job) else None
        if record is None or record.client != client:
            raise RequestError(404, "there is no such prediction; it may have been removed")
        if record.job.state not in ENDED and time.time() - record.updated > LOST:
            lost = {"state": "failed", "detail": "what worked on it was lost; send the image again"}
            record = record.model_copy(update={"job": record.job.model_copy(update=lost)})
        return record

    def stop(self, record: JobRecord) -> None:
        """Ask a job to stop before its next region; remove one that has ended."""
        if record.job.state in ENDED:
            self.remove(record.job.id)
            return
        url = self.place(record.job.id, "stop")
        with storage_errors(url):
            storage.write_bytes(url, b"")

    def is_stopped(self, job: str) -> bool:
        """Return whether it is to stop."""
        return storage.exists(self.place(job, "stop"))

    def remove(self, job: str) -> None:
        """Remove a job with all its files."""
        with storage_errors(self.url):
            remove_folder(self.place(job))

    def file(self, job: str, path: str) -> str:
        """Return the URL of a file of the results, below ``images``; raise RequestError 404 for any other path."""
        parts = path.split("/")
        if parts[0] != "images" or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
            raise RequestError(404, "there is no such file")
        return self.place(job, "out", *parts)

    def _read(self, job: str) -> JobRecord | None:
        url = self.place(job, "state.json")
        try:
            with storage_errors(url):
                return JobRecord.model_validate_json(storage.read_bytes(url)) if storage.exists(url) else None
        except ValidationError:  # written by another version
            return None

    def _all(self) -> Iterator[JobRecord]:
        with storage_errors(self.url):
            names = [name for name in storage.entries(self.url) if _ID.fullmatch(name)]
        yield from (record for name in names if (record := self._read(name)) is not None)

    def _sweep(self) -> None:
        for record in self._all():
            if time.time() - record.updated > self._kept:
                self.remove(record.job.id)
