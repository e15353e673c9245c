"""Large images on their way: what is known of each is a small document in storage, so that any process can tell.

::

    JOBS/<id>/state.json     `JobRecord`, written every few seconds while it goes on
    JOBS/<id>/stop           there when it is to stop
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
from chorus.pipeline.io.storage import remove_folder, storage_errors
from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import EnsembleName, JobState

_ID = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"[A-Za-z0-9._:-]+")
ENDED = ("done", "failed", "cancelled")
# Seconds between two notes of a job that goes on, and after how many without one it is taken for lost.
BEAT, LOST = 5.0, 90.0


class JobRecord(BaseModel):
    """What is kept of a job.

    Attributes
    ----------
    client : whose it is
    created, updated : seconds since the epoch
    """

    job: JobState
    client: str
    created: float
    updated: float


class JobStore:
    """The jobs below a URL, which all processes of a server see.

    Parameters
    ----------
    url : a folder or a bucket
    kept_seconds : after which an ended job is removed
    """

    def __init__(self, url: str, kept_seconds: float) -> None:
        self.url, self._kept = storage.normalise(url), kept_seconds

    def place(self, job: str, *parts: str) -> str:
        """URL of what belongs to a job."""
        return storage.join(self.url, job, *parts)

    def create(self, ensemble: EnsembleName, regions: int, client: str) -> JobRecord:
        """A new job; jobs that are too old go."""
        self._sweep()
        job, now = uuid.uuid4().hex, time.time()
        links = {"self": f"/v1/predictions/{job}", "events": f"/v1/predictions/{job}/events"}
        state = JobState(id=job, ensemble=ensemble, state="queued", regions=regions, links=links)
        record = JobRecord(job=state, client=client, created=now, updated=now)
        self.write(record)
        return record

    def write(self, record: JobRecord) -> None:
        """Raises OutputError where storage does not take it."""
        url = self.place(record.job.id, "state.json")
        with storage_errors(url):
            storage.write_bytes(url, record.model_dump_json().encode())

    def read(self, job: str, client: str) -> JobRecord:
        """What is known of a client's job; raises RequestError 404 where there is none."""
        record = self._read(job) if _ID.fullmatch(job) else None
        if record is None or record.client != client:
            raise RequestError(404, "there is no such prediction; it may have been removed")
        if record.job.state not in ENDED and time.time() - record.updated > LOST:
            lost = {"state": "failed", "detail": "what worked on it was lost; send the image again"}
            record = record.model_copy(update={"job": record.job.model_copy(update=lost)})
        return record

    def stop(self, record: JobRecord) -> None:
        """Have a job stop before its next region; one that has ended is removed."""
        if record.job.state in ENDED:
            self.remove(record.job.id)
            return
        url = self.place(record.job.id, "stop")
        with storage_errors(url):
            storage.write_bytes(url, b"")

    def is_stopped(self, job: str) -> bool:
        """Whether it is to stop."""
        return storage.exists(self.place(job, "stop"))

    def remove(self, job: str) -> None:
        """With all that belongs to it."""
        with storage_errors(self.url):
            remove_folder(self.place(job))

    def file(self, job: str, path: str) -> str:
        """URL of a file below ``images``, the results; raises RequestError 404 for a path that leads elsewhere."""
        parts = path.split("/")
        if parts[0] != "images" or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
            raise RequestError(404, "there is no such file")
        return self.place(job, "out", *parts)

    def _read(self, job: str) -> JobRecord | None:
        url = self.place(job, "state.json")
        try:
            with storage_errors(url):
                return JobRecord.model_validate_json(storage.read_bytes(url)) if storage.exists(url) else None
        except ValidationError:  # of another version
            return None

    def _all(self) -> Iterator[JobRecord]:
        with storage_errors(self.url):
            names = [name for name in storage.entries(self.url) if _ID.fullmatch(name)]
        yield from (record for name in names if (record := self._read(name)) is not None)

    def _sweep(self) -> None:
        for record in self._all():
            if time.time() - record.updated > self._kept:
                self.remove(record.job.id)
