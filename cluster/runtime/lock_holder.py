"""Who holds a lock: a process that other processes, on this machine or another one, can tell from all others.

A process number alone says little: containers on one host have the same numbers (and often the same host name) in
namespaces of their own, and numbers are given again. A holder counts as dead only if it ran under this very kernel and
in this very namespace, and its process is gone or was started at another time.
"""

from __future__ import annotations

import os
import platform
import socket
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# A lock is some 300 bytes; what is much longer is something else.
LONGEST = 1 << 14


class Holder(BaseModel):
    """The content of a lock.

    Attributes
    ----------
    token : of this hold alone; other processes of the run know it, and write only while it stands here
    host, pid : for people
    kernel : the running kernel of the host, from its start to its end
    namespace : in which `pid` means a process
    started : when the process was started, in units of the kernel
    silence : seconds after which its holder counts as dead if it has not renewed the lock
    beat : how often it was renewed
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    token: str = Field(min_length=1, max_length=200)
    host: str = Field(max_length=300)
    pid: int
    kernel: str = Field(max_length=200)
    namespace: str = Field(max_length=200)
    started: str = Field(max_length=200)
    silence: float = Field(ge=1, le=86400)
    beat: int = 0

    @staticmethod
    def here(session: str, silence: float) -> Holder:
        """Return this process as a holder, for a run of that name."""
        return Holder(
            token=f"{session}-{uuid.uuid4().hex[:12]}",
            host=socket.gethostname(),
            pid=os.getpid(),
            kernel=_kernel(),
            namespace=_namespace(),
            started=_started(os.getpid()) or "",
            silence=silence,
        )

    @staticmethod
    def parse(content: bytes) -> Holder | None:
        """Return the holder in the content of a lock; None if it is something else."""
        if len(content) > LONGEST:
            return None
        try:
            return Holder.model_validate_json(content)
        except (ValidationError, ValueError, RecursionError):
            return None

    def content(self) -> bytes:
        """Return what stands in the lock."""
        return self.model_dump_json().encode()

    def renewed(self) -> Holder:
        """Return this holder after one more sign of life."""
        return self.model_copy(update={"beat": self.beat + 1})

    def is_dead(self) -> bool:
        """Return whether the process is known to have ended; False of one that cannot be seen from here."""
        if (self.host, self.kernel, self.namespace) != (socket.gethostname(), _kernel(), _namespace()):
            return False
        if not psutil.pid_exists(self.pid):
            return True
        if _is_zombie(self.pid):
            return True
        started = _started(self.pid)
        return bool(self.started) and started is not None and started != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {''.join(c for c in self.host if c.isprintable())}"


def _kernel() -> str:
    """Return a name of the running kernel that no other one has, also none of this machine after a restart."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{uuid.getnode():x}-{platform.node()}-{psutil.boot_time():.0f}"


def _namespace() -> str:
    """Return the PID namespace of this process; empty where there is only one."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process was started, the same at every call; None if it cannot be told."""
    try:
        # psutil adds the time of the host's start, which changes when the clock is set.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, UnicodeDecodeError):
        pass
    if os.path.exists("/proc/self/stat"):  # hidden from us
        return None
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return None


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended and only its parent has not taken notice."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
