"""Runs as jobs of a Ray cluster through Ray's Jobs API: only a command is sent; the image there holds all else."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from chorus.cluster.runtime.job_command import ADDRESS_VARIABLES, DEFAULT_ADDRESS, SubmittedCommand, SubmittedJob
from chorus.cluster.runtime.versions import SUBMITTED_WITH
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import one_line

# Ray kills a job three seconds after it was told to stop, unless the job's environment says otherwise.
STOP_SECONDS = 90
_ANSWER_SECONDS = 10.0
# The log is requested again after this much silence, since a connection may be dead without an error.
_SILENCE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


class Jobs:
    """The jobs of a cluster.

    Parameters
    ----------
    address : of Ray's dashboard, ``http://HEAD:8265``; or of its head, or ``auto`` on a machine of the cluster

    Raises
    ------
    RefusedError
        If no cluster answers there, it has another version of Ray, or it denies access.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        with self._refusing():
            self._client = _connect(address)
            there = self._client._server_ray_version  # no public attribute has the version of the server
        if there != ray.__version__:
            raise RefusedError(
                f"--address {address}: ray is {there} on the cluster and {ray.__version__} here; install the cluster's"
            )

    def call(self, verb: str, name: str = "") -> str:
        """Return the command line, for messages, that applies `verb` to a job of this cluster."""
        known = self.address in (DEFAULT_ADDRESS, *map(os.environ.get, ADDRESS_VARIABLES))
        return " ".join(filter(None, ["`chorus jobs", verb, name, "" if known else f"--address {self.address}"])) + "`"

    def submitted(self) -> list[SubmittedJob]:
        """Return the jobs of Chorus, the latest first."""
        with self._refusing():
            details = self._client.list_jobs()
        ours = [job for one in details if (job := SubmittedJob.of(one)) is not None]
        return sorted(ours, key=lambda job: job.started or 0, reverse=True)

    def job(self, name: str) -> SubmittedJob:
        """Return a job by its name; raise RefusedError if there is none."""
        with self._refusing():
            try:
                submitted = SubmittedJob.of(self._client.get_job_info(name))
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
                submitted = None
        if submitted is None:
            raise RefusedError(
                f"--address {self.address}: no job {name} of Chorus on this cluster, which forgets jobs when its head "
                f"goes; see {self.call('list')}, or submit the same command again, which goes on"
            )
        return submitted

    def latest(self) -> SubmittedJob:
        """Return the job that was submitted last; raise RefusedError if there is none."""
        jobs = self.submitted()
        if not jobs:
            raise RefusedError(
                f"--address {self.address}: no jobs of Chorus on this cluster; begin with `chorus submit`"
            )
        return jobs[0]

    def submit(self, command: SubmittedCommand) -> SubmittedJob:
        """Start a command on the cluster; raise RefusedError if the same command is running with the same output."""
        metadata = {"command": command.name, "out": command.out, "ensemble": command.ensemble}
        return self._start(command.entrypoint, metadata)

    def resume(self, name: str) -> SubmittedJob:
        """Start the command of an ended job again; raise RefusedError if it still runs or is done."""
        job = self.job(name)
        if job.alive:
            raise RefusedError(f"{name}: has not ended; follow it with {self.call('logs --follow', name)}")
        if job.state == "done":
            raise RefusedError(f"{name}: all is done; there is nothing to go on with in {job.out}")
        return self._start(job.entrypoint, {"command": job.command, "out": job.out, "ensemble": job.ensemble})

    def stop(self, name: str) -> SubmittedJob:
        """Stop a job and wait until it has ended; after `STOP_SECONDS` Ray kills it.

        Raises
        ------
        RefusedError
            If it has ended already.
        CutShortError
            If it does not end.
        """
        job = self.job(name)
        if not job.alive:
            raise RefusedError(f"{name}: has ended already ({job.state})")
        with self._refusing():
            self._client.stop_job(name)
        until = time.monotonic() + STOP_SECONDS + _SILENCE_SECONDS
        while (job := self.job(name)).alive:
            if time.monotonic() > until:
                raise CutShortError(f"{name}: was told to stop and is still {job.state}; look into Ray's dashboard")
            time.sleep(_POLL_SECONDS)
        return job

    def log(self, name: str) -> str:
        """Return the log of a job so far."""
        with self._refusing():
            text: str = self._client.get_job_logs(name)
        return text

    def follow(self, name: str, write: Callable[[str], object]) -> SubmittedJob:
        """Pass the log of a job to `write`, from its beginning, until the job ends.

        Raises
        ------
        CutShortError
            If the cluster no longer answers; the job may still run.
        """
        seen, heard = 0, time.monotonic()

        def pass_on(part: str) -> None:
            nonlocal seen
            seen += len(part)
            write(part)

        while True:
            try:
                job = self.job(name)
                if job.state != "waiting":
                    asyncio.run(self._tail(name, seen, pass_on))
                heard = time.monotonic()
                if not job.alive:
                    return job
            except (RefusedError, RuntimeError, OSError, aiohttp.ClientError) as error:
                if time.monotonic() - heard > RETRIES.job_seconds:
                    raise CutShortError(
                        f"--address {self.address}: answers no more ({one_line(error)}); {name} may go on there: "
                        f"{self.call('status', name)} tells, and if the cluster is gone the same command goes on"
                    ) from error
            time.sleep(_POLL_SECONDS)

    async def _tail(self, name: str, skip: int, write: Callable[[str], object]) -> None:
        """Pass on the log after its first `skip` characters, until it ends or nothing arrives for a while."""
        async with aclosing(self._client.tail_job_logs(name)) as parts:  # type: ignore[type-var]
            while True:
                try:
                    part = await asyncio.wait_for(anext(parts), _SILENCE_SECONDS)
                except (StopAsyncIteration, TimeoutError):
                    return
                if fresh := part[skip:]:
                    write(fresh)
                skip = max(0, skip - len(part))

    def _start(self, entrypoint: str, metadata: dict[str, str]) -> SubmittedJob:
        known = self.submitted()
        for job in known:
            if job.alive and job.out == metadata["out"] and job.command == metadata["command"]:
                raise RefusedError(
                    f"{job.out}: job {job.name} is at it already; follow it with "
                    f"{self.call('logs --follow', job.name)}, or stop it with {self.call('stop', job.name)}"
                )
        name = _free_name(metadata["out"], known)
        # No working directory, no packages: nothing is uploaded.
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), SUBMITTED_WITH: version("chorus-bioimage")}
        with self._refusing():
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=name,
                runtime_env={"env_vars": environment},
                metadata=metadata | {"chorus": version("chorus-bioimage")},
            )
        return self.job(name)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn errors of Ray's client into RefusedError."""
        try:
            yield
        except AuthenticationError as error:
            raise RefusedError(
                f"--address {self.address}: asks for a token; set RAY_AUTH_MODE=token and give it in RAY_AUTH_TOKEN"
            ) from error
        except (OSError, requests.RequestException) as error:
            raise RefusedError(
                f"--address {self.address}: no cluster answers there ({one_line(error)}); give the address of "
                f"Ray's dashboard, http://HEAD:8265, or bring it here by `ray dashboard` or `kubectl port-forward`"
            ) from error
        except (RuntimeError, ValueError, RayError) as error:
            raise RefusedError(
                f"--address {self.address}: Ray refuses ({one_line(error)[:300]}); give the address of its "
                f"dashboard, http://HEAD:8265"
            ) from error


def _connect(address: str) -> JobSubmissionClient:
    """Connect to exactly this address, although Ray prefers the environment's; do not wait for one that is silent."""
    if "://" not in address and address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
        if _is_web(address):
            address = f"http://{address}"
    elif address != "auto":
        parts = urlsplit(address)
        port_of = {"http": 80, "https": 443, "ray": 10001}
        endpoint = (parts.hostname or "", parts.port or port_of.get(parts.scheme, 0))
        socket.create_connection(endpoint, _ANSWER_SECONDS).close()
    # It logs that it closed a connection.
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        return JobSubmissionClient(address)
    finally:
        os.environ.update(kept)


def _is_web(address: str) -> bool:
    """Return whether a dashboard listens there, not a head; Ray would try to reach it as a head for 40 seconds."""
    try:
        requests.get(f"http://{address}/api/version", timeout=_ANSWER_SECONDS)
    except requests.RequestException:
        return False
    return True


def _free_name(out: str, known: list[SubmittedJob]) -> str:
    """Return a name that no job has yet, as Ray requires: the output's, and a running number."""
    stem = _UNUSUAL.sub("-", storage.basename(out)).strip("-") or "run"
    taken = [re.fullmatch(re.escape(stem) + r"-(\d+)", job.name) for job in known]
    return f"{stem}-{1 + max((int(match[1]) for match in taken if match), default=0)}"
