"""Where work is carried out, behind one small interface: Ray, or this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from chorus.cluster.telemetry.logs import configure
from chorus.cluster.telemetry.metrics import export_by_ray
from chorus.cluster.telemetry.timeline import Span, noted
from chorus.pipeline.errors import ChorusError, OutputError

log = logging.getLogger("chorus")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of a task: its value, or the sentence that says why there is none.

    Attributes
    ----------
    unwritable : the output is at fault, not the image
    spans : when its stages were
    """

    key: int
    value: Any
    error: str | None = None
    unwritable: bool = False
    spans: tuple[Span, ...] = field(default=(), compare=False)


class Tasks(Protocol):
    """Carries out tasks. They end in any order; nothing may depend on it."""

    def submit(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a task; it must be safe to run twice."""
        ...

    def results(self, *, wait: bool) -> Iterator[TaskResult]:
        """Tasks that have ended, each once; with `wait` until all have."""
        ...


def attempt(key: int, function: Callable[..., Any], *arguments: Any) -> TaskResult:
    """Call a task's function; its failure is a result like any other."""
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


def attempt_in_ray(key: int, function: Callable[..., Any], *arguments: Any) -> TaskResult:
    """`attempt` in a process of Ray."""
    begin_in_ray()
    return attempt(key, function, *arguments)


def begin_in_ray() -> None:
    """Called by whatever works in a process of Ray, as often as it likes: where its metrics and its log go."""
    export_by_ray()
    configure()
