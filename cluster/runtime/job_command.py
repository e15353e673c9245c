"""A command of Chorus that is sent to a cluster, and the job that it becomes there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

DEFAULT_ADDRESS = "http://localhost:8265"
# Ray's own client prefers either of them to the address that it is given.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
State = Literal["waiting", "running", "done", "failures", "refused", "cut short", "stopped"]
_ENDED: dict[int | None, State] = {0: "done", 1: "failures", 2: "refused"}


@dataclass(frozen=True, slots=True)
class SubmittedCommand:
    """A command of Chorus for a cluster.

    Attributes
    ----------
    words : as typed after ``chorus``, the name of the command first
    names : how many of `words` are its name, 2 for ``export rois``
    out, ensemble : what it writes or works on, and with which ensemble, if any; shown in lists of jobs
    folder : base of relative paths, on a file system that the cluster shares; None if there are none
    """

    words: tuple[str, ...]
    names: int
    out: str
    ensemble: str
    folder: str | None = None

    @property
    def name(self) -> str:
        """Name of the command, as typed."""
        return " ".join(self.words[: self.names])

    @property
    def entrypoint(self) -> str:
        """The cluster's shell command; with `exec` a signal reaches Chorus itself, and only once."""
        words = ["chorus", *self.words[: self.names], "--address", "auto", *self.words[self.names :]]
        begin = f"cd {shlex.quote(self.folder)} && " if self.folder else ""
        return f"{begin}exec {shlex.join(words)}"


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job of Chorus: started by `chorus submit`, a RayJob, or any other job whose entrypoint is ``chorus``.

    Attributes
    ----------
    state : ``done``, ``failures`` (done, some images failed), ``refused`` and ``cut short`` are ends by itself
    started, ended : seconds since the epoch
    message : one line of Ray's on the job; the last output of a failed job is in its log
    """

    name: str
    state: State
    command: str
    out: str
    ensemble: str
    entrypoint: str
    exit_code: int | None
    started: float | None
    ended: float | None
    message: str

    @classmethod
    def of(cls, details: JobDetails) -> SubmittedJob | None:
        """Convert a Ray job; return None if it is not a job of Chorus."""
        told = details.metadata or {}
        if "chorus" not in told:
            told = _read(details.entrypoint)
        if details.submission_id is None or not told:
            return None
        states: dict[str, State] = {
            "PENDING": "waiting",
            "RUNNING": "running",
            "STOPPED": "stopped",
            "SUCCEEDED": "done",
            "FAILED": _ENDED.get(details.driver_exit_code, "cut short"),
        }
        return cls(
            name=details.submission_id,
            state=states[details.status.value],
            command=told.get("command", ""),
            out=told.get("out", ""),
            ensemble=told.get("ensemble", ""),
            entrypoint=details.entrypoint,
            exit_code=details.driver_exit_code,
            started=_seconds(details.start_time),
            ended=_seconds(details.end_time),
            message=(details.message or "").partition("\n")[0],
        )

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    @property
    def result(self) -> int:
        """The command's exit code; 3 (interrupted) if it was stopped, killed, or lost with its machine."""
        return self.exit_code if self.exit_code in (0, 1, 2) else 3


def _read(entrypoint: str) -> dict[str, str]:
    """Parse command, output and ensemble from a command line of Chorus; return nothing for other programs."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:  # only a shell can parse it
        return {}
    if len(words) < 2 or words[0] != "chorus":
        return {}
    given = dict(pairwise(words))
    out, ensemble = (given.get(long) or given.get(short, "") for long, short in (("--out", "-o"), ("--ensemble", "-e")))
    return {"command": words[1], "out": out, "ensemble": ensemble}


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
