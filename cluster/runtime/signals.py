"""Signals: a run that is told to stop ends with a message, not with a traceback."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from chorus.pipeline.errors import CutShortError

STOPPED = "stopped; run the same command again to go on"


@contextmanager
def stoppable() -> Iterator[None]:
    """Treat SIGTERM, which batch systems and Kubernetes send, like Ctrl-C, and raise CutShortError for both.

    Raises
    ------
    CutShortError
        If the process was told to stop and nothing inside handled it.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise CutShortError(STOPPED) from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def resumable() -> Iterator[None]:
    """Raise CutShortError on SIGTERM outside of `stoppable`: before a run begins, and at its very end.

    Raises
    ------
    CutShortError
        If the process was told to stop.
    """
    before = signal.signal(signal.SIGTERM, _cut_short)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the context ends; a second one goes through at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    arrived: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def hold(number: int, frame: FrameType | None) -> None:
        if arrived:
            restore()
            signal.raise_signal(number)
        arrived.append(number)

    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        restore()
        if arrived:
            signal.raise_signal(arrived[0])


def _cut_short(number: int, frame: FrameType | None) -> None:
    # Not KeyboardInterrupt, for which the command line exits with code 1: some images failed.
    raise CutShortError(STOPPED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
