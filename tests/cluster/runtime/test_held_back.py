"""What must not stop half-way goes on to its end before a signal is delivered."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from chorus.cluster.runtime.signals import held_back, resumable
from chorus.pipeline.errors import CutShortError


def interrupted(*signals: signal.Signals) -> list[str]:
    """What is done until the signals are delivered, which are raised one after the other."""
    done: list[str] = []

    def work() -> None:
        with held_back():
            for number in signals:
                signal.raise_signal(number)
                done.append(number.name)
        done.append("after")

    with pytest.raises((KeyboardInterrupt, CutShortError)) as raised:
        work()
    return [*done, raised.type.__name__]


def test_ctrl_c_is_delivered_when_the_context_has_ended() -> None:
    assert interrupted(signal.SIGINT) == ["SIGINT", "KeyboardInterrupt"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_is_delivered_to_the_handler_of_before() -> None:
    with resumable():
        assert interrupted(signal.SIGTERM) == ["SIGTERM", "CutShortError"]


def test_a_second_signal_goes_through_at_once() -> None:
    assert interrupted(signal.SIGINT, signal.SIGINT) == ["SIGINT", "KeyboardInterrupt"]


def test_nothing_is_held_back_without_a_signal_or_in_another_thread() -> None:
    with held_back():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    seen: list[object] = []

    def inside() -> None:
        with held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


_STOPPED = """
import _thread, sys, threading, time
import psutil
from chorus.cluster.runtime import session
session.start(None, staged=False)
processes = psutil.Process().children(recursive=True)
assert processes
threading.Timer(float(sys.argv[1]), _thread.interrupt_main).start()
try:
    session.stop()
    time.sleep(10)
except KeyboardInterrupt:
    _, alive = psutil.wait_procs(processes, timeout=30)
    sys.exit(len(alive) or 42)
"""


@pytest.mark.ray
def test_a_local_ray_that_is_interrupted_while_it_stops_leaves_no_process() -> None:
    code = subprocess.run([sys.executable, "-c", _STOPPED, "0.05"], timeout=120, check=False).returncode
    assert code == 42
