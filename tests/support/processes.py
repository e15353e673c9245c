"""Runs as processes of their own: waiting for what they do, and what they leave behind."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# Far more than a run takes, also on a machine that others use: what takes longer hangs.
LONGEST_SECONDS = 240.0


def hashes(out: Path) -> dict[str, str]:
    files = (path for path in (out / "images").rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def wait_for(what: str, condition: Callable[[], object], run: subprocess.Popen[str], every: float = 0.05) -> object:
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert run.poll() is None, f"the run ended before {what}:\n{run.communicate()[0]}"
        time.sleep(every)
    raise AssertionError(f"{what} did not come")
