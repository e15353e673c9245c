"""A first call of a stranger's TorchScript network, in a process with limits of time, memory and files.

What such a network may call is known before (`chorus.pipeline.members.safety.script`); how long it computes and how
much memory it wants is known only once it runs. One process is kept for all trials: it has torch loaded and never
computes itself, and each trial is a fork of it, which takes milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chorus.pipeline.errors import RefusedError

_MEMORY, _REFUSED = 90, 91
"""Exit codes of a trial: more memory than it may have; anything else that went wrong, which the caller finds itself."""


@dataclass(frozen=True)
class Limits:
    """Limits of one call with one tile.

    Attributes
    ----------
    seconds : by the clock
    memory : bytes of address space beyond what torch itself takes
    """

    seconds: float = 120.0
    memory: int = 8 << 30


LIMITS = Limits()


@dataclass(frozen=True)
class _Request:
    file: str
    shapes: list[list[int]]
    child: int | None
    limits: Limits


def check_trial(
    url: str, data: bytes, shapes: Sequence[Sequence[int]], *, child: int | None = None, limits: Limits = LIMITS
) -> None:
    """Load a TorchScript file elsewhere and call it with noise of `shapes`; the same file once in a process.

    Whether it answers, and how, is not looked at here: only that it ends, in time and within its memory.

    Parameters
    ----------
    child : which network of an inference ensemble of deepflash2 is called; None calls the module itself

    Raises
    ------
    RefusedError
        Where it does not.
    """
    key = (hashlib.sha256(data).hexdigest(), tuple(map(tuple, shapes)), child, limits)
    if key not in _SAID:
        _SAID[key] = _tried(data, shapes, child, limits)
    reason = _SAID[key]
    if reason:
        raise RefusedError(
            f"{url}: {reason} for one tile; take a smaller tile, or run with --trust-code if you trust its author"
        )


_SAID: dict[tuple[str, tuple[tuple[int, ...], ...], int | None, Limits], str] = {}


def _tried(data: bytes, shapes: Sequence[Sequence[int]], child: int | None, limits: Limits) -> str:
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(data)
        file.flush()
        answer = _TRIALS.ask(_Request(file.name, [list(shape) for shape in shapes], child, limits))
    if answer == "time":
        return f"takes more than {limits.seconds:g} s"
    if answer == "memory":
        return f"takes more than {limits.memory / 2**30:.3g} GiB"
    return "" if answer == "ended" else f"ends its process ({answer})"


class _Trials:
    """The process that forks; started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: _Request) -> str:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = b""
            if not line:
                self._process = None
                raise RefusedError("the process in which networks are tried was ended; run the command again")
            return str(json.loads(line))

    def close(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        # A process that was forked from this one must not talk through its parent's pipes.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-m", __spec__.name]
            # A session of its own: Ctrl-C is for the command, which ends this process itself.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=_environment()
            )
            self._owner = os.getpid()
        return self._process


def _environment() -> dict[str, str]:
    """Return the environment: it finds this package, and has no GPU, as a trial tests the graph and no device."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


_TRIALS = _Trials()
atexit.register(_TRIALS.close)


def _serve() -> None:
    """Answer requests, one per line, until the other end is closed."""
    import torch  # noqa: F401 - before the first fork, so that no trial has to load it

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a network prints is no answer
    for line in sys.stdin:
        content = json.loads(line)
        request = _Request(**content | {"limits": Limits(**content["limits"])})
        answers.write(json.dumps(_fork(request)) + "\n")
        answers.flush()


def _fork(request: _Request) -> str:
    child = os.fork()
    if child == 0:
        code = _REFUSED
        try:
            code = _try(request)
        finally:
            os._exit(code)
    until = time.monotonic() + request.limits.seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "time"
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return signal.Signals(-code).name
    return "memory" if code == _MEMORY else "ended"


def _try(request: _Request) -> int:
    """Load and call; the exit code of the trial."""
    import torch

    from chorus.pipeline.members.safety.script import load_script

    _limit(request.limits)
    try:
        module = load_script(request.file, Path(request.file).read_bytes(), torch.device("cpu"))
        network = module if request.child is None else list(module.models.children())[request.child]
        network.eval()
        with torch.inference_mode():
            network(*(torch.rand(shape) for shape in request.shapes))
    except MemoryError:
        return _MEMORY
    except RuntimeError as error:
        return _MEMORY if "allocate memory" in str(error) or "bad_alloc" in str(error) else 0
    except (RefusedError, TypeError, ValueError, AttributeError, IndexError, AssertionError):
        return 0  # the caller meets it, too, and says it better
    return 0


def _limit(limits: Limits) -> None:
    import resource

    import psutil

    space = psutil.Process().memory_info().vms + limits.memory
    with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _serve()
