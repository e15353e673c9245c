"""Three nodes on this machine, of which one is killed and others join: the same bytes, and nearly nothing done twice.

A node is killed with SIGKILL, its raylet and all of its workers at once, as a machine that vanishes; Ray notices after
some seconds of silence. What is done twice may be no more than what was in hand on that node. Members sleep, so that a
run lasts as long as nodes take to come and go.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from ray._private.node import Node
from ray.cluster_utils import Cluster

from benchmarks.scaling import REGION, write_ensemble, write_images
from chorus.cluster.planning.cost import Cost
from chorus.cluster.planning.devices.placement import Memory, Placement, place
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext, plan_images
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.regions.guard import NodeInfo
from chorus.cluster.regions.ray_executor import calibrate_on_ray
from chorus.cluster.regions.worker import RegionWorker
from chorus.cluster.runtime import session
from chorus.cluster.runtime.nodes import machines, with_gpu_memory
from chorus.cluster.runtime.resources import Machine, Resources
from chorus.cluster.state.ledger import Attempts
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.processes import LONGEST_SECONDS, hashes, wait_for

IMAGES, SECONDS = 2, 3.0
REGIONS = 16 * IMAGES
NODE = {"num_cpus": 1, "object_store_memory": 96 << 20}
# What an actor on a core has in hand at once.
IN_HAND = 2
GIGABYTE = 10**9


class Nodes:
    """A cluster of a head and two nodes, one core each."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        self.others = [self.add(), self.add()]

    def add(self) -> Node:
        return self.cluster.add_node(**NODE)

    @staticmethod
    def processes(node: Node) -> list[psutil.Process]:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]

    def kill(self, node: Node) -> None:
        """As when its power goes."""
        for process in self.processes(node):
            process.kill()

    def at_work(self, *nodes: Node) -> list[psutil.Process]:
        """Member actors, if there is one on each of the nodes."""
        found = [[p for p in self.processes(node) if p.name().startswith("ray::MapWorker")] for node in nodes]
        return [process for there in found for process in there] if all(found) else []


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.cluster.shutdown()


class Run:
    """A run of ``chorus predict`` as a process of its own."""

    def __init__(self, folder: Path, ensemble: str, out: Path, *more: str) -> None:
        self.out = out
        program = [sys.executable, "-m", "chorus.cli", "predict", str(folder / "images"), "-o", str(out)]
        program += ["-e", str(folder / ensemble / "ensemble.yaml"), "--trust-code", "--device", "cpu", "--no-report"]
        program += ["--region", str(REGION), "--chunk", str(REGION), "--overlap", "0", "--augment", "none", *more]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def reach(self, regions: int) -> None:
        def recorded() -> bool:
            return sum(1 for _ in (self.out / "ledger").rglob("region-*.json")) >= regions

        wait_for(f"{regions} regions", recorded, self.process)

    def end(self) -> tuple[int, str]:
        try:
            said, _ = self.process.communicate(timeout=2 * LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the run hangs:\n{self.process.communicate()[0]}") from None
        return self.process.returncode, said

    @property
    def repeated(self) -> int:
        return int(json.loads((self.out / "run.json").read_text())["summary"]["repeated"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and an ensemble that sleeps and one that does not, which give the same; what an undisturbed run makes."""
    made = tmp_path_factory.mktemp("nodes")
    write_images(made / "images", IMAGES)
    for name, seconds in {"sleeping": SECONDS, "awake": 0.0}.items():
        write_ensemble(made / name, seconds)
    code, said = Run(made, "awake", made / "undisturbed", "--executor", "serial").end()
    assert code == 0, said
    return made


def assert_as_undisturbed(run: Run, folder: Path) -> None:
    code, said = run.end()
    assert code == 0, said
    assert "Ray broke off" not in said
    assert hashes(run.out) == hashes(folder / "undisturbed")
    tables = [
        pd.read_parquet(out / "scores.parquet").drop(columns="seconds") for out in (run.out, folder / "undisturbed")
    ]
    pd.testing.assert_frame_equal(*tables)
    print(f"{run.repeated} of {REGIONS} regions were begun twice")


@pytest.mark.ray
@pytest.mark.kill
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("joining", [0, 2], ids=["none joins", "two join"])
def test_run_outlives_a_node_and_uses_those_that_join(joining: int, nodes: Nodes, folder: Path, tmp_path: Path) -> None:
    run = Run(folder, "sleeping", tmp_path / "out", "--address", nodes.cluster.address)
    wait_for("work on all nodes", lambda: nodes.at_work(nodes.cluster.head_node, *nodes.others), run.process)
    run.reach(random.Random(joining).randrange(3, 9))
    nodes.kill(nodes.others[0])
    if joining:
        new = [nodes.add() for _ in range(joining)]
        wait_for("work on the nodes that joined", lambda: nodes.at_work(*new), run.process)
    assert_as_undisturbed(run, folder)
    assert run.repeated <= IN_HAND


@pytest.mark.ray
@pytest.mark.kill
@pytest.mark.long
@pytest.mark.timeout(900)
def test_process_or_node_that_is_told_to_go_ends_what_it_has_in_hand(
    nodes: Nodes, folder: Path, tmp_path: Path
) -> None:
    """An actor by SIGTERM; a node by Ray's draining, as what watches for notices of preemption asks for."""
    run = Run(folder, "sleeping", tmp_path / "out", "--address", nodes.cluster.address)
    wait_for("work on all nodes", lambda: nodes.at_work(nodes.cluster.head_node, *nodes.others), run.process)
    run.reach(3)
    nodes.at_work(nodes.others[1])[0].terminate()
    run.reach(9)
    drain = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "drain-node",
        "--address",
        nodes.cluster.address,
        "--node-id",
        nodes.others[0].node_id,
    ]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine is wanted back"]
    subprocess.run([*drain, "--deadline-remaining-seconds", "60"], check=True)
    assert_as_undisturbed(run, folder)
    assert run.repeated == 0


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that is not there")
def test_run_waits_for_a_gpu_that_is_asked_for(tmp_path: Path) -> None:
    """The trial is carried out when a node with a GPU joins; that this one is no real GPU is what it then says."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    ensemble = read_ensemble(str(write_light_ensemble(tmp_path / "ensemble", width=2)))
    settings = resolve(ResultSettings(device="cuda"), ensemble)
    try:
        before = session.start(cluster.address, staged=False)
        assert (before.gpus, [machine.gpus for machine in before.machines]) == (0, [0])
        with pytest.raises(RefusedError, match="no cuda device of the cluster became free"):
            calibrate_on_ray(ensemble, settings, patience=2)
        failed: list[Exception] = []

        def trial() -> None:
            try:
                calibrate_on_ray(ensemble, settings, patience=120)
            except RefusedError as error:
                failed.append(error)

        waiting = threading.Thread(target=trial)
        waiting.start()
        waiting.join(5)
        assert waiting.is_alive()
        for _ in range(2):
            cluster.add_node(**NODE, num_gpus=1)
        waiting.join(120)
        assert "member-0.pt" in str(failed[0])  # which was loaded there, or rather was not
        now = session.found("")
        assert (now.gpus, sorted(machine.gpus for machine in now.machines)) == (2, [0, 1, 1])
        assert [machine.gpu_memory for machine in with_gpu_memory(machines())] == [0, 0, 0]  # not real ones
    finally:
        session.stop()
        cluster.shutdown()


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return read_ensemble(str(write_light_ensemble(tmp_path_factory.mktemp("light"), members=2, width=2)))


@pytest.mark.parametrize(
    ("begun", "state"),
    [
        (["gone", "gone", "gone", "here"], "done"),
        (["here", "here", "gone"], "done"),
        (["here", "gone", "here", "here"], "quarantined"),
        (["gone"] * 10, "quarantined"),
    ],
    ids=["nodes went", "twice here", "three times here", "ten nodes went"],
)
def test_region_is_not_to_blame_for_nodes_that_went(
    begun: list[str], state: str, light: Ensemble, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "images" / "a.ome.zarr", pixels((64, 64)))
    settings = resolve(ResultSettings(region=64, chunk=64), light)
    context = RunContext(
        out=str(tmp_path / "out"),
        ensemble=light.url,
        ensemble_hash=light.hash,
        ensemble_name="light",
        settings=settings,
        session="s",
    )
    ImageTable.collect(found for found in plan_images([str(image)], light, settings)).write(context.table_url)
    for index, node in enumerate(begun):
        Attempts(context.out, "s", node).begin(0, begun[:index])
    worker = RegionWorker(context, torch.device("cpu"), node=NodeInfo("here", lambda: {"here", "there"}))
    status = worker.process(0)
    assert (status.state, status.attempts) == (state, len(begun) + (state == "done"))
    assert ("set aside" in status.message) == (state == "quarantined")


NEEDS = Memory(weights=4 * GIGABYTE, activations=GIGABYTE, regions=GIGABYTE, process=GIGABYTE)
COST = Cost(10, 1000, 100_000, 100_000, 200_000, 1.0, 1, 1, 100)


def on(table: list[Machine], ensemble: Ensemble, device: str, device_memory: int, **run: int | str) -> Placement:
    resources = Resources(
        sum(m.cpus for m in table),
        sum(m.gpus for m in table),
        len(table),
        sum(m.memory for m in table),
        "",
        tuple(table),
    )
    settings = resolve(ResultSettings(device=device), ensemble)
    return place(ensemble, settings, RunSettings(**run), resources, NEEDS, COST, device_memory)


def test_smallest_gpu_of_the_cluster_decides(light: Ensemble) -> None:
    large, small = (Machine("a", "a", 8, 2, 0, 40 * GIGABYTE), Machine("b", "b", 8, 1, 0, 5 * GIGABYTE))
    unknown = Machine("c", "c", 8, 1, 0)
    alone = on([large, unknown], light, "cuda", 40 * GIGABYTE)
    assert (alone.kind, alone.actors, alone.memory_per_actor) == ("replicated", 3, 0)
    both = on([large, small, unknown], light, "cuda", 40 * GIGABYTE)
    assert (both.kind, both.actors) == ("staged", 4)
    with pytest.raises(RefusedError, match=r"needs 7\.0 GB and there are 5\.0 GB on 3 devices"):
        on([large, small], light, "cuda", 40 * GIGABYTE, placement="replicated")


def test_actors_on_cores_go_where_each_node_has_memory_for_them(light: Ensemble) -> None:
    many_cores, much_memory = Machine("a", "a", 16, 0, 15 * GIGABYTE), Machine("b", "b", 4, 0, 64 * GIGABYTE)
    head, none = Machine("h", "h", 0, 0, 64 * GIGABYTE), Machine("n", "n", 8, 0, 6 * GIGABYTE)
    placement = on([head, many_cores, much_memory, none], light, "cpu", 99 * GIGABYTE)
    assert (placement.actors, placement.memory_per_actor) == (2 + 4, 7 * GIGABYTE)
    assert on([head, many_cores], light, "cpu", 99 * GIGABYTE).actors == 2
    assert on([head, many_cores], light, "cpu", 8 * GIGABYTE).actors == 1  # what was free when it was tried
    with pytest.raises(RefusedError, match=r"needs 7\.0 GB and there are 6\.0 GB"):
        on([none, replace(none, id="m")], light, "cpu", 99 * GIGABYTE, placement="replicated")


def test_pool_grows_on_a_cluster_and_waits_for_what_is_asked_for(light: Ensemble) -> None:
    table = [Machine("a", "a", 8, 2, 0, 40 * GIGABYTE)]

    def sizes(**run: int | str) -> tuple[int, int, int | None]:
        placement = on(table, light, "cuda", 40 * GIGABYTE, **run)
        return placement.actors_per_stage, placement.least_actors_per_stage, placement.most_actors_per_stage

    assert sizes() == (2, 2, None)
    assert sizes(address="auto") == (2, 2, COST.regions)
    assert sizes(address="auto", actors=1) == (1, 1, None)
    assert sizes(address="auto", actors=16) == (2, 16, None)
    with pytest.raises(RefusedError, match="--actors 16: there is room for 2"):
        sizes(actors=16)
