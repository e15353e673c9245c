"""What the web application and the predictors say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from chorus.serving.contract.jobs import JobRecord
from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import EnsembleInfo, PredictOptions
from chorus.serving.contract.sources import Source, Stored


@dataclass(frozen=True)
class Task:
    """What a predictor is asked.

    Attributes
    ----------
    id : of the request
    media : of the answer
    seconds : that are left for it
    """

    id: str
    source: Source
    options: PredictOptions
    media: str
    seconds: float


@dataclass(frozen=True)
class Answer:
    """The body of an answer."""

    media: str
    body: bytes


@dataclass(frozen=True)
class TooLarge:
    """The image is to be done as a job, of so many regions."""

    regions: int
    pixels: int


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer; as data, since exceptions of Ray wrap what is raised."""

    status: int
    detail: str
    retry_after: int | None = None

    def error(self) -> RequestError:
        return RequestError(self.status, self.detail, self.retry_after)


Outcome = Answer | TooLarge | Refusal


@dataclass(frozen=True)
class LargeTask:
    """An image to be done as a job, which is known by `record`."""

    record: JobRecord
    source: Stored
    options: PredictOptions


class Predictors(Protocol):
    """The ensembles of a server, wherever they are."""

    @property
    def names(self) -> list[str]:
        """The first one answers where none is named."""
        ...

    async def predict(self, name: str, task: Task) -> Outcome:
        """Answer an image."""
        ...

    async def start(self, name: str, large: LargeTask) -> Refusal | None:
        """Begin a job, or say why not."""
        ...

    async def info(self, name: str) -> EnsembleInfo:
        """What an ensemble is; raises RequestError 503 while it is not ready."""
        ...
