"""A Ray cluster of three nodes whose head loses the network after regions are recorded: is anything lost or mixed?

`sudo PYTHONPATH=. python benchmarks/partition.py --times 2` makes network namespaces for the head with the driver, two
nodes with the actors, and a server of S3, joined by a bridge that is seen from nowhere else. The head's cable is pulled
when some regions are recorded; the nodes still reach the bucket. Cases:

healed     the cable is back after a while; then the same command runs until it ends with exit code 0
killed     driver and cluster are killed during the cut, the same command runs on a new cluster
overtaken  another run with other settings takes the output over and ends during the cut; then the cable is back

One line each; the exit code is 1 if an output differs from that of an undisturbed run. It needs Linux and root.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated

import psutil
import typer
from moto.server import ThreadedMotoServer

from chorus.pipeline.io import storage
from tests.support.pausing import COLUMNS, OTHERS, ROWS, Dataset, contents, until_recorded
from tests.support.processes import wait_for

CASES = ("healed", "killed", "overtaken")
HOSTS = {"head": "10.77.0.1", "first": "10.77.0.2", "second": "10.77.0.3", "store": "10.77.0.4"}
_SWITCH = "chorus-switch"
_INSIDE = "CHORUS_PARTITION_INSIDE"
# Longer than Ray takes to give up a node that does not answer, and than a run keeps its lock here.
_CUT_SECONDS = 45.0
_LOCK_SECONDS = "6"
_LONGEST_SECONDS = 300.0


def main(
    times: Annotated[int, typer.Option(min=1, help="Repetitions of each case.")] = 1,
    case: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CASES)}; by default all.")] = None,
    seed: int = 0,
) -> None:
    """Repeat every case and print what came out of it."""
    if _INSIDE not in os.environ:
        with network():
            inside = on("store", [sys.executable, *sys.argv])
            raise SystemExit(subprocess.run(inside, env=os.environ | {_INSIDE: "1"}, check=False).returncode)
    folder = Path(tempfile.mkdtemp(prefix="chorus-cut-"))
    dataset = Dataset.make(folder)
    wrong = 0
    with bucket() as url:
        expected = {}
        for name, settings in {"own": (), "other": OTHERS["other bytes"]}.items():
            ended = run("store", dataset.command(f"{url}/{name}", *settings, "--executor", "serial"))
            if ended.wait(_LONGEST_SECONDS):
                raise SystemExit(f"the undisturbed run ended with exit code {ended.returncode}")
            expected[name] = contents(f"{url}/{name}")
        for index in range(times):
            for kind in case or CASES:
                trial = Trial(kind, dataset, f"{url}/{kind}-{index}", random.Random(f"{seed} {kind} {index}"), folder)
                wrong += not trial.report(index, expected)
    raise SystemExit(int(wrong > 0))


@dataclass
class Trial:
    """One cut of one run."""

    kind: str
    dataset: Dataset
    out: str
    moment: random.Random
    folder: Path
    codes: list[int | None] = field(default_factory=list)

    def report(self, index: int, expected: dict[str, dict[str, object]]) -> bool:
        """Do it, print what came out, and return whether that is right."""
        began = time.monotonic()
        log = self.folder / f"{self.kind}-{index}.log"
        with log.open("w") as said:
            recorded = self._cut(said)
        wanted = expected["other" if self.kind == "overtaken" else "own"]
        now = contents(self.out)
        different = [name for name in sorted({*now, *wanted}) if now.get(name) != wanted.get(name)]
        traceback = "Traceback" in log.read_text()
        right = not different and self.codes[-1] == (3 if self.kind == "overtaken" else 0) and not traceback
        line = {"case": self.kind, "index": index, "recorded": recorded, "codes": self.codes, "traceback": traceback}
        line |= {"different": different[:5], "seconds": round(time.monotonic() - began, 1), "right": right}
        print(json.dumps(line), flush=True)
        if not right:
            print(log.read_text(), flush=True)
        return right

    def _cut(self, said: IO[str]) -> int:
        """Cut the head off in the middle of a run, and do what the case says; return how many regions were recorded."""
        command = self.dataset.command(self.out, "--executor", "ray", "--address", f"{HOSTS['head']}:6379")
        with cluster(self.folder):
            first = run("head", [*command, "--actors", "2"], said)
            recorded = self.moment.randrange(1, 2 * ROWS * COLUMNS - 8)
            wait_for(f"{recorded} regions", until_recorded(self.out, recorded), first)
            with pulled("head"):
                if self.kind == "overtaken":
                    time.sleep(2 * float(_LOCK_SECONDS))
                    other = self.dataset.command(
                        self.out, *OTHERS["other bytes"], "--overwrite", "--executor", "serial"
                    )
                    assert run("store", other, said).wait(_LONGEST_SECONDS) == 0
                else:
                    time.sleep(_CUT_SECONDS)
                if self.kind == "killed":
                    first.kill()
            self.codes.append(first.wait(_LONGEST_SECONDS))
            if self.kind == "healed" and self.codes[-1] == 3:
                again = run("head", [*command, "--actors", "2"], said)
                self.codes.append(again.wait(_LONGEST_SECONDS))
        if self.kind == "killed":
            with cluster(self.folder):
                self.codes.append(run("head", [*command, "--actors", "2"], said).wait(_LONGEST_SECONDS))
        return recorded


def on(host: str, command: list[str]) -> list[str]:
    """Return the command that runs `command` in a host's namespace."""
    return ["ip", "netns", "exec", f"chorus-{host}", *command]


def ip(*words: str) -> None:
    """Change the network."""
    subprocess.run(["ip", *words], check=True)


def run(host: str, command: list[str], said: IO[str] | int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start a command on a host."""
    environment = os.environ | {"CHORUS_LOCK_SECONDS": _LOCK_SECONDS, "COLUMNS": "300", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        on(host, command), env=environment, stdout=said, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@contextmanager
def network() -> Iterator[None]:
    """Namespaces of all hosts, each with a cable to one switch."""
    names = [_SWITCH, *(f"chorus-{host}" for host in HOSTS)]
    for name in names:
        ip("netns", "add", name)
    try:
        ip("-n", _SWITCH, "link", "add", "bridge", "type", "bridge")
        ip("-n", _SWITCH, "link", "set", "bridge", "up")
        for host, address in HOSTS.items():
            own = f"chorus-{host}"
            ip("-n", _SWITCH, "link", "add", host, "type", "veth", "peer", "name", "cable", "netns", own)
            ip("-n", _SWITCH, "link", "set", host, "master", "bridge", "up")
            ip("-n", own, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", own, "link", "set", "cable", "up")
            ip("-n", own, "link", "set", "lo", "up")
        yield
    finally:
        for name in names:
            ip("netns", "delete", name)


@contextmanager
def pulled(host: str) -> Iterator[None]:
    """Pull a host's cable for a while."""
    ip("-n", _SWITCH, "link", "set", host, "down")
    try:
        yield
    finally:
        ip("-n", _SWITCH, "link", "set", host, "up")


@contextmanager
def bucket() -> Iterator[str]:
    """A bucket that all hosts reach; gives its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=HOSTS["store"], port=5000, verbose=False)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{HOSTS['store']}:5000",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        storage.filesystem("s3://lab")[0].mkdir("lab")
        yield "s3://lab"
    finally:
        server.stop()


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Ray on three nodes; the head computes nothing."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--object-store-memory", str(100 << 20)]
    head = ["--head", "--port", "6379", "--num-cpus", "0", "--include-dashboard", "false", "--temp-dir", f"{folder}/r"]
    nodes = []
    try:
        nodes.append(run("head", [*ray, *head, "--node-ip-address", HOSTS["head"]]))
        _until_alive(1, nodes[0])
        for host in ("first", "second"):
            joined = ["--address", f"{HOSTS['head']}:6379", "--node-ip-address", HOSTS[host], "--num-cpus", "2"]
            nodes.append(run(host, [*ray, *joined]))
        _until_alive(3, nodes[0])
        yield
    finally:
        for node in nodes:
            _end(node)


def _until_alive(nodes: int, head: subprocess.Popen[str]) -> None:
    """Wait until so many nodes are there."""
    program = (
        "import ray, sys, time\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "while sum(node['Alive'] for node in ray.nodes()) < int(sys.argv[2]):\n"
        "    time.sleep(0.5)\n"
    )
    asked = [sys.executable, "-c", program, f"{HOSTS['head']}:6379", str(nodes)]
    wait_for(f"{nodes} nodes", lambda: run("head", asked).wait(_LONGEST_SECONDS) == 0, head, every=1.0)


def _end(node: subprocess.Popen[str]) -> None:
    """Kill a node with all that it started."""
    with suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    node.wait()


if __name__ == "__main__":
    typer.run(main)
