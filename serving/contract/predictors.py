"""The messages between the web application and the predictors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from chorus.serving.contract.jobs import JobRecord
from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import EnsembleInfo, PredictOptions
from chorus.serving.contract.sources import Source, Stored


@dataclass(frozen=True)
class Task:
    """A request to a predictor.

    Attributes
    ----------
    id : of the request
    media : of the answer
    seconds : left for the answer
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
    """The image must be processed as a job of so many regions."""

    regions: int
    pixels: int


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer; as data, since Ray wraps exceptions that are raised."""

    status: int
    detail: str
    retry_after: int | None = None

    def error(self) -> RequestError:
        """Return it as an exception."""
        return RequestError(self.status, self.detail, self.retry_after)


PredictorOutcome = Answer | TooLarge | Refusal


@dataclass(frozen=True)
class LargeTask:
    """An image to be processed as a job with this record."""

    record: JobRecord
    source: Stored
    options: PredictOptions


class Predictors(Protocol):
    """The ensembles of a server, wherever they are."""

    @property
    def names(self) -> list[str]:
        """Names of the ensembles; the first one is the default."""
        ...

    async def predict(self, name: str, task: Task) -> PredictorOutcome:
        """Process an image."""
        ...

    async def start(self, name: str, large: LargeTask) -> Refusal | None:
        """Start a job, or return why not."""
        ...

    async def info(self, name: str) -> EnsembleInfo:
        """Describe an ensemble; raise RequestError 503 while it is not ready."""
        ...
