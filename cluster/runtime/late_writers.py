"""The end of the processes of a run that another run has overtaken."""

from __future__ import annotations

import logging

from chorus.pipeline.errors import OutputError
from chorus.pipeline.io.fences import raised
from chorus.pipeline.io.storage_failures import storage_errors

log = logging.getLogger("chorus")


def settle() -> None:
    """Call before processes of this run are ended.

    Where another run has its output, those whose writes arrived late are given the time to take back what they wrote.
    """
    for fence in raised():
        try:
            with storage_errors(fence.given.lock):
                fence.settle()
        except OutputError as error:
            log.warning("the lock could not be read at the end: %s", error)
