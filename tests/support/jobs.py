"""Ray's jobs without Ray: what its client answers, from a list in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.job_submission import JobDetails, JobStatus, JobType


class FakeClient:
    """Answers as `ray.job_submission.JobSubmissionClient` does; `submitted` holds what was handed to it.

    Every job runs `polls` times that it is asked for, then ends as `ends` says, status and exit code.
    """

    def __init__(self, *, polls: int = 0, ends: tuple[JobStatus, int | None] = (JobStatus.SUCCEEDED, 0)) -> None:
        self._server_ray_version = ray.__version__
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.logs = "one\ntwo\n"
        self.breaks = 0
        self._polls, self._ends = polls, ends
        self._asked: dict[str, int] = {}

    def submit_job(self, **given: Any) -> str:
        if any(given["submission_id"] == one["submission_id"] for one in self.submitted):
            raise RuntimeError(f"Request failed with status code 500: {given['submission_id']} already exists")
        self.submitted.append(given)
        return str(given["submission_id"])

    def stop_job(self, name: str) -> bool:
        self.stopped.append(name)
        self._ends, self._polls = (JobStatus.STOPPED, None), 0
        return True

    def list_jobs(self) -> list[JobDetails]:
        foreign = JobDetails(type=JobType.DRIVER, status=JobStatus.RUNNING, entrypoint="python somebody.py")
        return [foreign, *(self._details(index, asked=False) for index in range(len(self.submitted)))]

    def get_job_info(self, name: str) -> JobDetails:
        for index, one in enumerate(self.submitted):
            if one["submission_id"] == name:
                return self._details(index, asked=True)
        raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")

    def get_job_logs(self, name: str) -> str:
        return self.logs

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        """The log from its beginning, in parts of three characters; the connection breaks after ever more of them."""
        for start in range(0, len(self.logs), 3):
            if self.breaks and start == 12 // self.breaks // 3 * 3:
                self.breaks -= 1
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield self.logs[start : start + 3]

    def _details(self, index: int, *, asked: bool) -> JobDetails:
        given = self.submitted[index]
        name = given["submission_id"]
        self._asked[name] = self._asked.get(name, 0) + asked
        ended = self._asked[name] > self._polls
        status, code = self._ends if ended else (JobStatus.RUNNING, None)
        return JobDetails(
            type=JobType.SUBMISSION,
            submission_id=name,
            status=status,
            entrypoint=given["entrypoint"],
            metadata=given["metadata"],
            start_time=1_000 + index,
            end_time=61_000 if ended else None,
            driver_exit_code=code,
            message="Job was intentionally stopped." if status == JobStatus.STOPPED else "",
        )
