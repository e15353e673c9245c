"""Logs for machines: with ``CHORUS_LOG=json`` every line of the driver and of the workers is one JSON object.

It says which run, image and region it is about, as far as it is about one. Without it a person is spoken to as usual.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from chorus.pipeline.errors import RefusedError

VARIABLE = "CHORUS_LOG"
_KINDS = ("plain", "json")
_ABOUT: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039 - never changed in place
log = logging.getLogger("chorus")
# Of each region how it ended. To a person the summary says so.
log_of_regions = logging.getLogger("chorus.regions")
log_of_regions.setLevel(logging.CRITICAL)


@contextmanager
def about(**names: str | int) -> Iterator[None]:
    """Lines that are logged inside are about `run`, `image` and `region`, as far as they are given."""
    token = _ABOUT.set(_ABOUT.get() | names)
    try:
        yield
    finally:
        _ABOUT.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``message``, ``run``, ``image``, ``region``, ``node``,
    ``process``, what the record has in ``fields``, and ``error`` with the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **{name: _ABOUT.get().get(name) for name in ("run", "image", "region")},
            "node": socket.gethostname(),
            "process": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str, ensure_ascii=False)


def wanted() -> bool:
    """Whether logs are for machines; raises RefusedError where the environment says neither."""
    kind = os.environ.get(VARIABLE) or "plain"
    if kind not in _KINDS:
        raise RefusedError(f"{VARIABLE}={kind}: is not a kind of log; set it to {' or '.join(_KINDS)}")
    return kind == "json"


def configure() -> None:
    """Have this process, a worker, log as the environment says."""
    if wanted() and not is_structured():
        _add_handler()


def is_structured() -> bool:
    """Whether this process logs for machines."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in log.handlers)


@contextmanager
def structured() -> Iterator[None]:
    """All that is said on standard error inside, by whom ever, comes as the environment says."""
    if not wanted():
        yield
        return
    before = log.level, log.propagate
    handler = _add_handler()
    token = _ABOUT.set({})
    try:
        with contextlib.redirect_stderr(_Lines()):
            yield
    finally:
        _ABOUT.reset(token)
        log.removeHandler(handler)
        log.level, log.propagate = before
        log_of_regions.setLevel(logging.CRITICAL)


def about_run(run: str) -> None:
    """From here on lines of this process are about `run`, until what is `structured` ends."""
    _ABOUT.set(_ABOUT.get() | {"run": run})


def _add_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log_of_regions.setLevel(logging.INFO)
    log.propagate = False
    return handler


class _Lines(io.TextIOBase):
    """A standard error whose lines become lines of the log: what consoles and libraries print."""

    def __init__(self) -> None:
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if said := Text.from_ansi(line).plain.strip():
                log.info("%s", said)
        return len(text)
