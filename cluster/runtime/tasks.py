"""The interface behind which tasks run: on Ray, or in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from chorus.cluster.telemetry.logs import configure
from chorus.cluster.telemetry.metrics import export_by_ray
from chorus.cluster.telemetry.timeline import StageSpan, noted
from chorus.pipeline.errors import ChorusError, OutputError
from chorus.pipeline.io.fences import Pass
from chorus.pipeline.io.storage import raise_fences

log = logging.getLogger("chorus")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The result of a task: its value, or the message that says why there is none.

    Attributes
    ----------
    unwritable : whether the output could not be written; the image is not at fault
    spans : its stages
    """

    key: int
    value: Any
    error: str | None = None
    unwritable: bool = False
    spans: tuple[StageSpan, ...] = field(default=(), compare=False)


class Tasks(Protocol):
    """Runs tasks. They end in any order; nothing may depend on it."""

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a task; it must be safe to run twice."""
        ...

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        """Yield the results of tasks that have ended, each once; with `wait` until all have."""
        ...


def attempt(key: int, function: Callable[..., Any], *arguments: Any) -> TaskResult:
    """Call a task's function; an exception becomes a result, too."""
    with noted() as spans:
        result = _attempted(key, function, *arguments)
    return replace(result, spans=tuple(spans))


def _attempted(key: int, function: Callable[..., Any], *arguments: Any) -> TaskResult:
    try:
        return TaskResult(key, function(*arguments))
    except ChorusError as error:
        return TaskResult(key, None, str(error), isinstance(error, OutputError))
    except Exception as error:
        log.exception("task %d", key)
        return TaskResult(key, None, f"unexpected {type(error).__name__}: {error}; please report this with the log")


def attempt_fenced(passes: Sequence[Pass], key: int, function: Callable[..., Any], *arguments: Any) -> TaskResult:
    """Call `attempt` in another process, which writes only while its run holds the locks of `passes`."""
    raise_fences(passes)
    return attempt(key, function, *arguments)


def attempt_in_ray(passes: Sequence[Pass], key: int, function: Callable[..., Any], *arguments: Any) -> TaskResult:
    """Call `attempt_fenced` in a process of Ray."""
    begin_in_ray()
    return attempt_fenced(passes, key, function, *arguments)


def begin_in_ray() -> None:
    """Set where the metrics and logs of a Ray process go; safe to call repeatedly."""
    export_by_ray()
    configure()
