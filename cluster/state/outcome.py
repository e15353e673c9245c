"""How a command ended: a row per item, and a summary. Each command has models of its own for both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue

from chorus.cluster.runtime.tasks import TaskResult

State = Literal["complete", "failures", "interrupted"]
"""``complete``; ``failures``, finished without some items; ``interrupted``, the same command resumes."""


class ItemRow(BaseModel):
    """What became of an item of a command.

    Attributes
    ----------
    name : of the item
    status : ``done``, ``failed``, or ``open`` if the command was interrupted before it; some commands have more
    message : why it failed, or a remark
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: str = "open"
    message: str = ""

    def without_result(self, result: TaskResult) -> Self:
        """Return the row of an item whose task has no result: it failed, or storage did not take it."""
        status = "open" if result.unwritable else "failed"
        return self.model_copy(update={"status": status, "message": result.error or ""})


class Summary(BaseModel):
    """Counts of a command and what else is said of all of its items; part of its record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Row_co = TypeVar("Row_co", bound=ItemRow, covariant=True)
Summary_co = TypeVar("Summary_co", bound=BaseModel, covariant=True)


@dataclass(frozen=True)
class Outcome(Generic[Row_co, Summary_co]):
    """How a command ended.

    Attributes
    ----------
    out : URL of the results
    message : why it was interrupted
    rows : one per item
    """

    out: str
    state: State
    message: str
    rows: Sequence[Row_co]
    summary: Summary_co

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 complete, 1 with failures, 3 interrupted."""
        return {"complete": 0, "failures": 1, "interrupted": 3}[self.state]

    @property
    def content(self) -> dict[str, JsonValue]:
        """The outcome as it is printed for programs."""
        return {
            "out": self.out,
            "state": self.state,
            "message": self.message,
            "summary": self.summary.model_dump(mode="json"),
            "rows": [row.model_dump(mode="json") for row in self.rows],
        }


def state_of(ended: Literal["complete", "interrupted"], rows: Iterable[ItemRow]) -> State:
    """Return how a command ended: ``failures`` if it was not interrupted and some of its items failed."""
    return "failures" if ended == "complete" and any(row.status == "failed" for row in rows) else ended


def count(rows: Iterable[ItemRow], status: str) -> int:
    """Return the number of rows with this status."""
    return sum(row.status == status for row in rows)


def failures_of(rows: Iterable[ItemRow]) -> dict[str, str]:
    """Return why items failed, by their names."""
    return {row.name: row.message for row in rows if row.status == "failed"}
