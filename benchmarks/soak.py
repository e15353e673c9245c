"""Runs that are killed again and again: is anything lost or done twice, and does the driver's memory stay flat?

Three nodes on this machine work on runs of members that sleep, and once in a while something is killed with SIGKILL: an
actor, the process of a task, the driver, or a node with all that is on it. A driver that died is started anew with the
same command, a node that went is replaced. At the end every byte is compared with a run that nobody disturbed, and no
record may have been written twice. The driver's memory is kept as a table and as a picture.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from ray._private.node import Node
from ray.cluster_utils import Cluster
from rich.console import Console

from benchmarks.scaling import REGION, write_ensemble, write_images

# An actor each.
CORES = 1
# How often each is killed, of so many times.
KINDS = {"actor": 4, "task": 2, "driver": 2, "node": 3}
# Until a node that went is replaced, and for the process of a task to show up.
_REPLACED_AFTER, _PATIENCE = 15.0, 20.0
# Samples, one a second, that say anything of how a driver's memory grows.
_ENOUGH = 60
console = Console(highlight=False)


@dataclass
class Soak:
    """The cluster, the run that is on, and what became of it so far."""

    folder: Path
    random: random.Random
    cluster: Cluster
    nodes: list[Node] = field(default_factory=list)
    driver: subprocess.Popen[str] | None = None
    out: Path = Path()
    killed: Counter[str] = field(default_factory=Counter)
    drivers: int = 0
    memory: list[tuple[float, int, int, int]] = field(default_factory=list)
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    lost: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def start(self) -> None:
        """The driver, or the next one."""
        self.drivers += 1
        log = (self.folder / "driver.log").open("a")
        arguments = command(self.folder, self.folder / "sleeping/ensemble.yaml", self.out)
        arguments += ["--address", self.cluster.address]
        # Not with a wait of its own: the lock of a driver that died is free at once on this machine.
        self.driver = subprocess.Popen(
            arguments, stdout=log, stderr=log, text=True, env=os.environ | {"COLUMNS": "300"}
        )

    def look(self) -> None:
        """Note when each record was written, and the driver's memory."""
        for record in (self.out / "ledger").rglob("*.json"):
            if record not in self.marks:
                self.marks[record] = _mark(record)
        if self.driver is not None and self.driver.poll() is None:
            rss = psutil.Process(self.driver.pid).memory_info().rss
            if rss:  # one that has just ended has none
                self.memory.append((self.seconds, self.driver.pid, rss, len(self.marks)))

    def rewritten(self) -> list[str]:
        """Records that are not those that were seen first."""
        return [str(record) for record, mark in self.marks.items() if _mark(record) != mark]

    def strike(self) -> None:
        """Kill something, chosen by chance."""
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        victims: list[psutil.Process] = []
        if kind == "driver" and self.driver is not None:
            victims = [psutil.Process(self.driver.pid)]
        elif kind == "node" and self.nodes:
            victims = _processes(self.nodes.pop(self.random.randrange(len(self.nodes))))
            self.lost.append(self.seconds)
        else:
            title = "ray::attempt" if kind == "task" else "ray::MapWorker"
            deadline = self.seconds + _PATIENCE
            while not victims and self.seconds < deadline:
                found = [p for node in self._all() for p in _processes(node) if _title(p).startswith(title)]
                victims = [self.random.choice(found)] if found else []
                time.sleep(0.02)
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.killed[kind] += bool(victims)
        name = kind if victims else f"nothing, as there was no {kind}"
        console.print(f"{self.seconds:7.0f} s  killed: {name}; {len(self.marks)} records, {self._there()} nodes")

    def replace(self) -> None:
        """A node for each that went a while ago."""
        while self.lost and self.seconds > self.lost[0] + _REPLACED_AFTER:
            self.lost.pop(0)
            self.nodes.append(self.cluster.add_node(num_cpus=CORES, object_store_memory=96 << 20))
            console.print(f"{self.seconds:7.0f} s  a node joined")

    def _there(self) -> int:
        return 1 + len(self.nodes)

    def _all(self) -> list[Node]:
        return [self.cluster.head_node, *self.nodes]


def main(
    folder: Annotated[Path, typer.Argument(help="Where images, results, table and picture go; new or empty.")],
    minutes: Annotated[float, typer.Option(help="How long; a run that is on is brought to its end.")] = 30.0,
    every: Annotated[float, typer.Option(help="Seconds between kills, on average.")] = 60.0,
    images: Annotated[int, typer.Option(help="Of 16 regions each, in a run.")] = 32,
    sleep: Annotated[float, typer.Option(help="Seconds that members take for a region.")] = 3.0,
    seed: Annotated[int | None, typer.Option(help="Of the kills; by default another one each time.")] = None,
) -> None:
    """Kill things for a while, then compare.

    Example: `python benchmarks/soak.py /tmp/soak --minutes 30`
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    console.print(f"seed {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, seconds in {"sleeping": sleep, "awake": 0.0}.items():
        write_ensemble(folder / name, seconds)
    write_images(folder / "images", images)
    undisturbed = folder / "undisturbed"
    subprocess.run(
        [*command(folder, folder / "awake/ensemble.yaml", undisturbed), "--executor", "serial"], check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    expected = hashes(undisturbed)
    head = {"num_cpus": CORES, "object_store_memory": 128 << 20, "include_dashboard": False}
    soak = Soak(folder, random.Random(seed), Cluster(initialize_head=True, head_node_args=head))
    runs: list[dict[str, Any]] = []
    try:
        for _ in range(2):
            soak.nodes.append(soak.cluster.add_node(num_cpus=CORES, object_store_memory=96 << 20))
        while soak.seconds < 60 * minutes:
            runs.append(one_run(soak, f"out-{len(runs)}", expected, every, 60 * minutes))
            console.print(f"{soak.seconds:7.0f} s  {runs[-1]}")
    finally:
        keep_memory(soak, folder)
        if soak.driver is not None and soak.driver.poll() is None:
            soak.driver.kill()
        soak.cluster.shutdown()
    result = {
        "seed": seed,
        "minutes": round(soak.seconds / 60, 1),
        "killed": dict(soak.killed),
        "drivers": soak.drivers,
        "streams begun anew": (folder / "driver.log").read_text().count("Ray broke off"),
        "driver MB": memory_of_drivers(soak),
        "runs": runs,
    }
    (folder / "soak.json").write_text(json.dumps(result, indent=2))
    console.print_json(json.dumps(result))
    if any(run["lost or other bytes"] or run["written twice"] for run in runs):
        raise typer.Exit(1)


def one_run(soak: Soak, name: str, expected: dict[str, str], every: float, until: float) -> dict[str, Any]:
    """A run to its end, however often it dies; what is wrong with its results, if anything."""
    soak.out, soak.marks = soak.folder / name, {}
    soak.start()
    # A run that began late is disturbed no more than there is time for.
    strike = soak.seconds + soak.random.uniform(0.5, 1.5) * every
    while True:
        time.sleep(1.0)
        soak.look()
        soak.replace()
        code = soak.driver.poll() if soak.driver is not None else None
        if code == 0:
            break
        if code is not None and code not in (3, -9):
            raise RuntimeError(f"the driver ended with {code}; see {soak.folder / 'driver.log'}")
        if code is not None:
            soak.start()
        elif soak.seconds > strike and soak.seconds < until:
            soak.strike()
            strike = soak.seconds + soak.random.uniform(0.5, 1.5) * every
    soak.look()
    found, summary = hashes(soak.out), json.loads((soak.out / "run.json").read_text())["summary"]
    wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    twice = soak.rewritten()
    if not wrong:
        shutil.rmtree(soak.out / "images")
    return {
        "regions": summary["regions"],
        "repeated": summary["repeated"],
        "seconds": summary["seconds"],
        "lost or other bytes": wrong,
        "written twice": twice,
    }


def command(folder: Path, ensemble: Path, out: Path) -> list[str]:
    program = [sys.executable, "-m", "chorus.cli", "predict", str(folder / "images"), "-e", str(ensemble)]
    sizes = ["--region", str(REGION), "--chunk", str(REGION), "--overlap", "0", "--device", "cpu", "--augment", "none"]
    return [*program, "-o", str(out), *sizes, "--no-report", "--trust-code", "--sentinels", "skip"]


def hashes(out: Path) -> dict[str, str]:
    """What became of the images, by file, and their scores but for the time that they took."""
    import pandas as pd

    files = (path for path in (out / "images").rglob("*") if path.is_file())
    found = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    scores = pd.read_parquet(out / "scores.parquet").drop(columns="seconds")
    return found | {"scores": hashlib.sha256(scores.to_csv().encode()).hexdigest()}


def memory_of_drivers(soak: Soak) -> list[dict[str, float]]:
    """Of each driver under which enough regions ended: MB at the first and the last of them, and MB an hour between."""
    rows = []
    for pid in dict.fromkeys(pid for _, pid, _, _ in soak.memory):
        life = np.array([(at, rss / 1e6, records) for at, one, rss, records in soak.memory if one == pid])
        at_work = life[(life[:, 2] > life[0, 2]) & (life[:, 2] < life[-1, 2])]
        if len(at_work) > _ENOUGH:
            slope = float(np.polyfit(at_work[:, 0], at_work[:, 1], 1)[0]) * 3600
            rows.append({
                "seconds": float(round(at_work[-1, 0] - at_work[0, 0])),
                "records": float(at_work[-1, 2] - at_work[0, 2]),
                "start": float(round(at_work[:10, 1].mean(), 1)),
                "end": float(round(at_work[-10:, 1].mean(), 1)),
                "an hour": round(slope, 1),
            })  # fmt: skip
    return rows


def keep_memory(soak: Soak, folder: Path) -> None:
    """``driver-memory.csv`` and ``driver-memory.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with (folder / "driver-memory.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["seconds", "process", "bytes", "records"])
        table.writerows((round(at, 1), *others) for at, *others in soak.memory)
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    for pid in dict.fromkeys(pid for _, pid, _, _ in soak.memory):
        life = np.array([(at / 60, rss / 1e6) for at, one, rss, _ in soak.memory if one == pid])
        axes.plot(life[:, 0], life[:, 1])
    axes.set(xlabel="minutes", ylabel="memory of the driver, MB", ylim=(0, None))
    axes.set_title(f"{sum(soak.killed.values())} kills, a line for each driver")
    figure.savefig(folder / "driver-memory.png", dpi=120)
    plt.close(figure)


def _mark(record: Path) -> tuple[int, int]:
    """Changes when the record is written again."""
    return record.stat().st_ino, record.stat().st_mtime_ns


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0] if process.cmdline() else ""
    except psutil.Error:  # gone meanwhile
        return ""


def _processes(node: Node) -> list[psutil.Process]:
    """A node's raylet and all that it started."""
    try:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]
    except psutil.Error:
        return []


if __name__ == "__main__":
    typer.run(main)
