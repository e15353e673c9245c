"""Keeps Ray's own messages off the terminal: they go to its logs, and failures become errors of Chorus."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

# At the first restartable actor that is given an object, Ray's core warns that the object must stay alive
# (ray#53727). Ray Data creates its actors this way, and the driver keeps the object as long as they live.
_NOTICE = b"ray/issues/53727"


def keep_ray_data_off_the_terminal() -> None:
    """Send the messages of Ray Data to its log file only; its failures are raised as exceptions, so none is lost.

    Handlers that others added to its logger (a test, a log shipper) keep working, and so does a console that a user
    configured by ``RAY_DATA_LOGGING_CONFIG`` under another name.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL + 1)


def use_up_the_notice() -> None:
    """Trigger a notice of Ray's core now, while standard error is captured: it is printed once per process.

    The core writes to the terminal itself, and setting its log level prints a line as well.
    """
    never = ray.remote(num_cpus=0, max_restarts=1, resources={"chorus-never": 1})(_Nobody)
    with _native_errors_without(_NOTICE):
        never.remote(ray.put(None))  # fits on no node, and is deleted with its handle before it starts


class _Nobody:
    """An actor that never starts."""

    def __init__(self, anything: object) -> None: ...


@contextmanager
def _native_errors_without(notice: bytes) -> Iterator[None]:
    """Hold back what is written to file descriptor 2; at the end pass on every line that does not contain `notice`."""
    with tempfile.TemporaryFile() as held:
        terminal = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            held.seek(0)
            for line in held:
                if notice not in line:
                    os.write(terminal, line)
            os.close(terminal)
