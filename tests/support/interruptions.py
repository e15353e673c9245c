"""Commands that are told to stop, or whose process is killed, after some of their items."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.runtime.status import RegionStatus

_KILLED = 77


class StopAfter(Silent):
    """A reporter at which the person at the terminal presses Ctrl-C when so many items have ended."""

    def __init__(self, items: int) -> None:
        self._left = items

    def region(self, status: RegionStatus) -> None:
        """Count an item."""
        self._left -= 1
        if not self._left:
            self.end_here()

    def end_here(self) -> None:
        """Interrupt the command."""
        raise KeyboardInterrupt


class DieAfter(StopAfter):
    """A reporter that ends its process without a word when so many items have ended, as `kill -9` does."""

    def end_here(self) -> None:
        """End the process; nothing is flushed or cleaned up."""
        os._exit(_KILLED)


def killed_after(items: int, command: Callable[..., Any], request: Any) -> None:
    """Run a command in a process of its own that dies after so many items."""
    process = multiprocessing.get_context("spawn").Process(target=command, args=(request, DieAfter(items)))
    process.start()
    process.join()
    assert process.exitcode == _KILLED
