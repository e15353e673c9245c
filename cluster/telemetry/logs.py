"""Structured logs: with ``CHORUS_LOG=json`` the driver and the workers write each log line as one JSON object.

A line names the run, the image and the region that it belongs to, where it belongs to one. Without the variable, logs
are plain text for people.
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

from rich.text import Text

from chorus.pipeline.errors import RefusedError

VARIABLE = "CHORUS_LOG"
_KINDS = ("plain", "json")
_ABOUT: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039 - never changed in place
log = logging.getLogger("chorus")
# The outcome of every region. On a terminal it is silent: there the summary tells the outcomes.
log_of_regions = logging.getLogger("chorus.regions")
log_of_regions.setLevel(logging.CRITICAL)


@contextmanager
def about(**names: str | int) -> Iterator[None]:
    """Add `run`, `image` and `region`, as far as they are given, to all lines that are logged inside the context."""
    token = _ABOUT.set(_ABOUT.get() | names)
    try:
        yield
    finally:
        _ABOUT.reset(token)


class JsonFormatter(logging.Formatter):
    """Format a log record as one line of JSON.

    Keys are ``time`` (UTC), ``level``, ``message``, ``run``, ``image``, ``region``, ``node``, ``process``, those of the
    record's attribute ``fields``, and ``error`` with the traceback of an exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a JSON object on one line."""
        content: dict[str, object] = {
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
    """Return whether logs are to be JSON; raise RefusedError if ``CHORUS_LOG`` has an unknown value."""
    kind = os.environ.get(VARIABLE) or "plain"
    if kind not in _KINDS:
        raise RefusedError(f"{VARIABLE}={kind}: is not a kind of log; set it to {' or '.join(_KINDS)}")
    return kind == "json"


def configure() -> None:
    """Configure the logging of this worker process as the environment demands."""
    if wanted() and not is_structured():
        _add_handler()


def is_structured() -> bool:
    """Return whether this process logs JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in log.handlers)


@contextmanager
def structured() -> Iterator[None]:
    """Turn all that is written to standard error inside the context into JSON lines, if the environment asks for it."""
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
    """Add `run` to all further lines of this process, until the surrounding `structured` context ends."""
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
    """A stand-in for standard error that logs each line that consoles and libraries print."""

    def __init__(self) -> None:
        self._begun = ""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Log all complete lines and keep the rest until its line is complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if content := Text.from_ansi(line).plain.strip():
                log.info("%s", content)
        return len(text)
