"""The terminal is ours: what Ray says of itself goes to its logs, what fails becomes a sentence of ours."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

# Ray's core says at the first actor that may be restarted and was given an object that the object would better
# stay alive (ray#53727). Ray Data makes its actors so, and the driver keeps the object for as long as they live.
_NOTICE = b"ray/issues/53727"


def keep_ray_data_off_the_terminal() -> None:
    """Ray Data's news go to its log file alone; what fails there is raised, and that is not lost.

    What others hung on its logger (a test, a log shipper) goes on, and so does a console that a user set up by
    ``RAY_DATA_LOGGING_CONFIG`` under another name.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL + 1)


def use_up_the_notice() -> None:
    """Have Ray's core say its notice now, where nobody reads it: it says it once in the life of a process.

    The core writes to the terminal itself, and its log level cannot be set without a line about that.
    """
    never = ray.remote(num_cpus=0, max_restarts=1, resources={"chorus-never": 1})(_Nobody)
    with _native_errors_without(_NOTICE):
        never.remote(ray.put(None))  # fits on no node; gone with its handle, before it is looked for


class _Nobody:
    def __init__(self, anything: object) -> None: ...


@contextmanager
def _native_errors_without(notice: bytes) -> Iterator[None]:
    """Hold back what is written to file descriptor 2, and pass on at the end every line that has no `notice`."""
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
