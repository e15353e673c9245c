"""Commands that are told to stop, or whose process is killed, after some of their items."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

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


@contextmanager
def interrupted_at(module: ModuleType, function: str, calls: int) -> Iterator[None]:
    """The person at the terminal presses Ctrl-C when `function` of `module` is called once more than `calls` times."""
    original, left = getattr(module, function), [calls]

    def stopping(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, function, stopping)
        yield
