"""Runs that are paused with all their processes, overtaken by a run of other settings, and woken up again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pandas as pd
import psutil

from chorus.cluster.runtime.output_lock import output_lock
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.io import storage
from tests.support.faults import Fault, Proxy
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.processes import LONGEST_SECONDS, wait_for

SILENCE = 6.0
"""Seconds after which a paused run loses its lock here."""
ROWS, COLUMNS, REGION = 3, 4, 64
# Of the run that takes over: other bytes in the same places, and nothing in places where the first run writes.
OTHERS = {"other bytes": ("--overlap", "0.5", "--dtype", "float32"), "nothing there": ("--save", "none")}
_WITHOUT_FLOCK = (
    "import errno, fcntl, os\n"
    "def missing(file, operation):\n"
    "    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
    "fcntl.flock = missing\n"
    "import sys\n"
    "from chorus.cli import main\n"
    "sys.exit(main())\n"
)


@dataclass(frozen=True)
class Dataset:
    """Two images and an ensemble."""

    images: Path
    ensemble: Path

    @staticmethod
    def make(folder: Path) -> Dataset:
        ensemble = write_light_ensemble(folder / "ensemble", width=24)
        for index in range(2):
            shape = (ROWS * REGION, COLUMNS * REGION)
            write_image(folder / "images" / f"{index}.ome.zarr", pixels(shape, seed=index))
        return Dataset(folder / "images", ensemble)

    def command(self, out: str, *more: str, flock: bool = True) -> list[str]:
        program = ["-m", "chorus.cli"] if flock else ["-c", _WITHOUT_FLOCK]
        sizes = ["--region", str(REGION), "--chunk", str(REGION), "--no-report"]
        called = ["predict", str(self.images), "-e", str(self.ensemble), "-o", out]
        return [sys.executable, *program, *called, *sizes, *more]


def start(command: list[str], silence: float = SILENCE) -> subprocess.Popen[str]:
    environment = os.environ | {"COLUMNS": "300", "CHORUS_LOCK_SECONDS": str(silence)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that was said; a run that hangs is an error."""
    try:
        said, _ = process.communicate(timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the run hangs:\n{process.communicate()[0]}") from None
    return process.returncode, said


def processes(pid: int) -> list[psutil.Process]:
    """A process and all that come from it: of Ray, too."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def pause(pid: int) -> list[psutil.Process]:
    """Stop a process and all that come from it, until no new one has been started meanwhile."""
    stopped: list[psutil.Process] = []
    while new := [process for process in processes(pid) if process not in stopped]:
        for process in new:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        stopped += new
    return stopped


def wake(stopped: list[psutil.Process]) -> None:
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def contents(out: str) -> dict[str, object]:
    """Everything in an output, by its name; times left out, and how the run went."""
    fs, path = storage.filesystem(out)
    found: dict[str, object] = {}
    for file in fs.find(path):
        name = file[len(path) :].strip("/")
        data = fs.cat_file(file)
        if name.startswith("ledger/"):
            found[name] = _timeless(json.loads(data))
        elif name == "scores.parquet":
            found[name] = read_scores(out).drop(columns="seconds").to_json()
        elif name == "run.json":
            content = json.loads(data)
            found[name] = {key: content[key] for key in ("settings", "outcome", "inputs")}
        elif name.endswith(".parquet"):
            found[name] = pd.read_parquet(storage.filesystem(out)[0].open(file)).to_json()
        else:
            found[name] = data
    return found


def _timeless(record: dict[str, object]) -> dict[str, object]:
    row = record.get("row")
    if isinstance(row, dict):
        record["row"] = {key: value for key, value in row.items() if key != "seconds"}
    return {key: value for key, value in record.items() if key != "seconds"}


def recorded(out: str) -> int:
    """How many regions are recorded."""
    return sum("/region-" in name for name in storage.filesystem(out)[0].find(storage.filesystem(out)[1] + "/ledger"))


class Held:
    """Holds one request back on its way, which was sent before a pause and arrives after it."""

    def __init__(self, proxy: Proxy, kind: str, part_of_key: str) -> None:
        self._kind, self._part = kind, part_of_key
        self.arrived, self.free = threading.Event(), threading.Event()
        proxy.choose = self._choose

    def _choose(self, kind: str, key: str) -> Fault | None:
        if kind == self._kind and self._part in key and not self.arrived.is_set():
            self.arrived.set()
            self.free.wait(LONGEST_SECONDS)
        return None


def until_recorded(out: str, wanted: int) -> Callable[[], object]:
    return lambda: recorded(out) >= wanted


@dataclass(frozen=True)
class Ended:
    """How a run that was paused and overtaken ended, and what is different from an undisturbed run of the other."""

    code: int
    said: str
    different: list[str]


def overtake(
    dataset: Dataset,
    out: str,
    expected: dict[str, object],
    other: tuple[str, ...],
    *more: str,
    flock: bool = True,
    moment: random.Random,
    held: Held | None = None,
) -> Ended:
    """Pause a run in the middle, let another one take over and finish, wake the first one and wait for its end.

    Parameters
    ----------
    expected : contents of the output of an undisturbed run with the settings `other`
    moment : when it is paused
    held : a request of the first run that arrives when the other one has ended
    """
    first = start(dataset.command(out, *more, flock=flock))
    stopped: list[psutil.Process] = []
    try:
        if held is None:
            wanted = moment.randrange(1, 2 * ROWS * COLUMNS - 8)
            wait_for(f"{wanted} regions", until_recorded(out, wanted), first)
            time.sleep(moment.uniform(0, 0.3))
        else:
            wait_for("the request", held.arrived.is_set, first)
        stopped = pause(first.pid)
        assert first.poll() is None, f"the run ended too soon:\n{end(first)[1]}"
        time.sleep(SILENCE + 1.5)
        code, said = end(start(dataset.command(out, *other, "--overwrite", "--executor", "serial", flock=flock)))
        assert code == 0, said
    finally:
        if held is not None:
            held.free.set()
            time.sleep(0.2)
        wake(stopped)
    code, said = end(first)
    psutil.wait_procs(stopped, timeout=60)
    now = contents(out)
    different = [name for name in sorted({*now, *expected}) if now.get(name) != expected.get(name)]
    return Ended(code, said, different)


# Without networks, four threads write as fast as the storage takes it, so that most pauses come within a write.
_WRITER = (
    "import sys\n"
    "from concurrent.futures import ThreadPoolExecutor\n"
    "from chorus.cluster.runtime.output_lock import output_lock\n"
    "from chorus.pipeline.errors import OvertakenError\n"
    "from chorus.pipeline.io import storage\n"
    "def write(thread):\n"
    "    for index in range(1_000_000):\n"
    "        storage.write_bytes(f'{sys.argv[1]}/images/{(4 * index + thread) % 40}', b'first' * 1000)\n"
    "try:\n"
    "    with output_lock(sys.argv[1], 'first'), ThreadPoolExecutor(4) as pool:\n"
    "        list(pool.map(write, range(4)))\n"
    "except OvertakenError:\n"
    "    sys.exit(3)\n"
)


def overtake_writer(out: str, moment: random.Random, *, flock: bool = True) -> Ended:
    """Do as `overtake` with programs that do nothing but write; the other one leaves every second place empty.

    The lock is lost after a second; this process must have ``CHORUS_LOCK_SECONDS=1`` in its environment.
    """
    missing = "" if flock else _WITHOUT_FLOCK.partition("import sys")[0]
    first = start([sys.executable, "-c", missing + _WRITER, out], silence=1.0)
    wait_for("objects", lambda: len(storage.entries(f"{out}/images")) == 40, first)
    time.sleep(moment.uniform(0, 0.5))
    stopped = pause(first.pid)
    try:
        time.sleep(2.2)
        with _flock(flock), output_lock(out, "other"):
            storage.remove_folder(f"{out}/images")
            storage.remove_partial_files(out)
            for index in range(0, 40, 2):
                storage.write_bytes(f"{out}/images/{index}", b"other")
    finally:
        wake(stopped)
    code, said = end(first)
    fs, path = storage.filesystem(f"{out}/images")
    now = {storage.basename(file): fs.cat_file(file) for file in fs.find(path)}
    expected = {str(index): b"other" for index in range(0, 40, 2)}
    different = [name for name in sorted({*now, *expected}) if now.get(name) != expected.get(name)]
    return Ended(code, said, different)


@contextmanager
def _flock(present: bool) -> Iterator[None]:
    def missing(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with mock.patch.object(fcntl, "flock", fcntl.flock if present else missing):
        yield
