"""What is sent to a cluster, a command of Chorus, and the job that it becomes there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

DEFAULT_ADDRESS = "http://localhost:8265"
# Either of them would go before an address that is given to Ray's own client.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
State = Literal["waiting", "running", "done", "failures", "refused", "cut short", "stopped"]
_ENDED: dict[int | None, State] = {0: "done", 1: "failures", 2: "refused"}


@dataclass(frozen=True, slots=True)
class Command:
    """A command of Chorus for a cluster.

    Attributes
    ----------
    words : as typed after ``chorus``, the name of the command first
    names : how many of them name it, 2 for ``export rois``
    out, ensemble : what it writes or works on, and with which ensemble, if any: told to whoever lists jobs
    folder : where relative paths begin, on a file system that the cluster shares; None where there are none
    """

    words: tuple[str, ...]
    names: int
    out: str
    ensemble: str
    folder: str | None = None

    @property
    def name(self) -> str:
        return " ".join(self.words[: self.names])

    @property
    def entrypoint(self) -> str:
        """What the cluster's shell is given; by `exec` a signal reaches Chorus itself, and only once."""
        words = ["chorus", *self.words[: self.names], "--address", "auto", *self.words[self.names :]]
        begin = f"cd {shlex.quote(self.folder)} && " if self.folder else ""
        return f"{begin}exec {shlex.join(words)}"


@dataclass(frozen=True, slots=True)
class Job:
    """A job of Chorus: of `chorus submit`, or a RayJob or whatever else has ``chorus`` as its entrypoint.

    Attributes
    ----------
    state : ``done``, ``failures`` (done, some images failed), ``refused`` and ``cut short`` say how it ended by itself
    started, ended : seconds since the epoch
    message : what Ray says of it, in a line; of a job that failed its last words are in the log
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
    def of(cls, details: JobDetails) -> Job | None:
        """A job of Ray as one of ours; None where it is somebody else's."""
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
        return self.state in ("waiting", "running")

    @property
    def result(self) -> int:
        """The exit code of the command; 3, cut short, where it was stopped, killed, or lost with its machine."""
        return self.exit_code if self.exit_code in (0, 1, 2) else 3


def _read(entrypoint: str) -> dict[str, str]:
    """What a command line of Chorus says of its job, nothing for that of another program."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:  # only its own shell can read it
        return {}
    if len(words) < 2 or words[0] != "chorus":
        return {}
    given = dict(pairwise(words))
    out, ensemble = (given.get(long) or given.get(short, "") for long, short in (("--out", "-o"), ("--ensemble", "-e")))
    return {"command": words[1], "out": out, "ensemble": ensemble}


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
