"""Where members go: all in every actor where they fit, in stages where not, and refused where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.cluster.planning.cost import Cost
from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.planning.devices.placement import Memory, Placement, estimate_memory, place, require_devices
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.resolved_settings import ResolvedSettings, resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.runtime.resources import Resources
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.making import write_light_ensemble
from tests.support.plans import planned

GIGABYTE = 10**9
MEMBERS = 5


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return read_ensemble(str(write_light_ensemble(tmp_path_factory.mktemp("e"), members=MEMBERS, width=1)))


def settings(ensemble: Ensemble, **changes: Any) -> ResolvedSettings:
    return resolve(ResultSettings(**changes), ensemble)


def cost(regions: int = 1000, tiles: int = 100) -> Cost:
    """Of `regions` regions of `tiles` tiles each."""
    return Cost(10, regions, regions * tiles, regions * tiles, regions * tiles * 20, 1.0, 1, 1, tiles)


MEMORY = Memory(weights=5 * GIGABYTE, activations=GIGABYTE, regions=GIGABYTE, process=GIGABYTE)


def placed(ensemble: Ensemble, device_memory: int, *, device: str = "cuda", threads: int = 1, **run: Any) -> Placement:
    resources = Resources(cpus=16, gpus=4, nodes=1, memory=64 * GIGABYTE)
    chosen = settings(ensemble, device=device, threads=threads)
    return place(ensemble, chosen, RunSettings(**run), resources, MEMORY, run.pop("cost", cost()), device_memory)


def test_every_gpu_hosts_all_members_where_they_fit(ensemble: Ensemble) -> None:
    placement = placed(ensemble, 8 * GIGABYTE)
    assert (placement.kind, placement.groups, placement.actors) == ("replicated", (range(MEMBERS),), 4)
    assert (placement.gpus_per_actor, placement.cpus_per_actor) == (1, 0)
    assert placement.least_actors_per_stage == placement.actors_per_stage


@pytest.mark.parametrize(
    ("device", "seconds", "at_once"),
    # Beside inference a megapixel takes a third of a second; a region here is 100 tiles and four megapixels.
    [
        ("cuda", 0.0, 3),
        ("cuda", 1.0, 3),
        ("cuda", 0.007, 3),
        ("cuda", 0.006, 4),
        ("cuda", 0.0001, 6),
        ("cpu", 0.001, 2),
    ],
)
def test_a_fast_gpu_has_more_regions_in_hand(ensemble: Ensemble, device: str, seconds: float, at_once: int) -> None:
    work = Cost(10, 1000, 100_000, 100_000, 2_000_000, 4000.0, 1, 1, 100)
    resources = Resources(cpus=16, gpus=4, nodes=1, memory=64 * GIGABYTE)
    chosen = settings(ensemble, device=device)
    placement = place(ensemble, chosen, RunSettings(), resources, MEMORY, work, 8 * GIGABYTE, seconds)
    assert placement.blocks_per_actor == at_once


def test_members_go_into_as_few_stages_as_fit(ensemble: Ensemble) -> None:
    two = placed(ensemble, 6 * GIGABYTE)
    assert two.kind == "staged"
    assert two.groups == (range(2), range(2, 5))
    assert two.actors_per_stage == 2
    three = placed(ensemble, 5 * GIGABYTE)
    assert [len(group) for group in three.groups] == [2, 1, 2]


@given(members=st.integers(1, 12), memory=st.integers(1, 20), gpus=st.integers(1, 16))
def test_placement_fits_or_is_refused(ensemble: Ensemble, members: int, memory: int, gpus: int) -> None:
    spec = ensemble.spec.model_copy(update={"members": ensemble.spec.members[:1] * members})
    many = replace(ensemble, spec=spec)
    needs = replace(MEMORY, weights=members * GIGABYTE)
    resources = Resources(cpus=4, gpus=gpus, nodes=1, memory=0)

    def find() -> Placement:
        return place(many, settings(many, device="cuda"), RunSettings(), resources, needs, cost(), memory * GIGABYTE)

    if memory < 4 or gpus * (memory - 3) < members:  # 3 GB besides the weights, 1 GB of weights a member
        with pytest.raises(RefusedError):
            find()
        return
    found = find()
    assert [member for group in found.groups for member in group] == list(range(members))
    assert max(len(group) for group in found.groups) + 3 <= memory
    assert len(found.groups) <= found.actors <= gpus


def test_too_little_memory_is_refused_with_what_is_needed_and_what_there_is(ensemble: Ensemble) -> None:
    with pytest.raises(RefusedError, match=r"an actor needs 4\.0 GB and there are 3\.5 GB on 4 devices; use a smaller"):
        placed(ensemble, int(3.5 * GIGABYTE))


def test_cores_share_the_memory_of_their_node(ensemble: Ensemble) -> None:
    placement = placed(ensemble, 25 * GIGABYTE, device="cpu")
    assert (placement.actors, placement.cpus_per_actor, placement.gpus_per_actor) == (3, 1, 0)


def test_actors_of_several_threads_take_as_many_cores(ensemble: Ensemble) -> None:
    placement = placed(ensemble, 1000 * GIGABYTE, device="cpu", threads=6)
    assert (placement.actors, placement.cpus_per_actor) == (2, 6)
    assert placed(ensemble, 8 * GIGABYTE, threads=6).cpus_per_actor == 0
    with pytest.raises(RefusedError, match="--threads 17: no machine has more than 16 cores; ask for fewer"):
        placed(ensemble, 1000 * GIGABYTE, device="cpu", threads=17)


def test_user_chooses_the_number_of_actors_within_what_fits(ensemble: Ensemble) -> None:
    assert placed(ensemble, 8 * GIGABYTE, actors=2).actors == 2
    with pytest.raises(RefusedError, match=r"--actors 5: there is room for 4 \(8\.0 GB each\); ask for fewer"):
        placed(ensemble, 8 * GIGABYTE, actors=5)


def test_user_chooses_the_stages(ensemble: Ensemble) -> None:
    staged = placed(ensemble, 8 * GIGABYTE, placement="staged", stages=4)
    assert (len(staged.groups), staged.actors) == (4, 4)
    with pytest.raises(RefusedError, match=r"an actor needs 8\.0 GB"):
        placed(ensemble, 6 * GIGABYTE, placement="replicated")
    with pytest.raises(RefusedError, match=r"6 stages for 5 members; give at most 5"):
        placed(ensemble, 8 * GIGABYTE, placement="staged", stages=6)


def test_there_are_no_more_actors_than_regions(ensemble: Ensemble) -> None:
    resources = Resources(cpus=16, gpus=0, nodes=1, memory=0)
    few = place(ensemble, settings(ensemble), RunSettings(), resources, MEMORY, cost(3), 1000 * GIGABYTE)
    assert few.actors == 3


def test_small_regions_travel_together_to_a_gpu(ensemble: Ensemble) -> None:
    resources = Resources(cpus=1, gpus=1, nodes=1, memory=0)

    def together(tiles: int, device: str) -> int:
        chosen = settings(ensemble, device=device)
        return place(
            ensemble, chosen, RunSettings(), resources, MEMORY, cost(tiles=tiles), 100 * GIGABYTE
        ).regions_per_block

    assert together(9, "cuda") > 1
    assert together(1000, "cuda") == 1
    assert together(9, "cpu") == 1


@pytest.mark.parametrize(("device", "actors"), [("cuda", 4), ("xpu", 4), ("mps", 1)])
def test_gpus_of_every_maker_are_placed_alike_and_a_mac_has_one_actor(
    ensemble: Ensemble, device: str, actors: int
) -> None:
    placement = placed(ensemble, 8 * GIGABYTE, device=device)
    assert (placement.actors, placement.gpus_per_actor, placement.cpus_per_actor) == (actors, 1, 0)
    assert placement.blocks_per_actor == placed(ensemble, 8 * GIGABYTE).blocks_per_actor


def test_cluster_without_what_members_run_on_is_refused(ensemble: Ensemble) -> None:
    with pytest.raises(RefusedError, match=r"no GPU; use --device cpu, an --address that has one, or --actors N"):
        require_devices(settings(ensemble, device="cuda"), RunSettings(), Resources(cpus=4, gpus=0, nodes=1, memory=0))
    with pytest.raises(RefusedError, match=r"the cluster has no Intel GPU; use --device cpu"):
        require_devices(settings(ensemble, device="xpu"), RunSettings(), Resources(cpus=4, gpus=0, nodes=1, memory=0))
    with pytest.raises(RefusedError, match=r"no cores"):
        require_devices(settings(ensemble), RunSettings(), Resources(cpus=0, gpus=4, nodes=1, memory=0))


def measured(**changes: int) -> DeviceProbe:
    return replace(DeviceProbe(100, 20, 3, 10**12, 0.1, "a device"), **changes)


def test_memory_grows_with_regions_up_to_the_largest_image(ensemble: Ensemble) -> None:
    small, large = ImageTable.collect([planned("s", (500, 600))]), ImageTable.collect([planned("l", (9000, 9000))])

    def regions(table: ImageTable, region: int) -> int:
        images = [replace(table.image(0), region=region)]
        return estimate_memory(ImageTable.collect(images), ensemble, settings(ensemble), measured()).regions

    assert regions(large, 1024) < regions(large, 2048) < regions(large, 4096)
    assert regions(small, 1024) == regions(small, 4096) < regions(large, 1024)


def test_memory_counts_pixels_of_the_models_plane_where_it_is_finer(ensemble: Ensemble) -> None:
    coarse = planned("coarse", (4000, 4000), region=1024)
    finer = replace(coarse, model_height=8000, model_width=8000)
    both = [estimate_memory(ImageTable.collect([i]), ensemble, settings(ensemble), measured()) for i in (coarse, finer)]
    assert 3 < both[1].regions / both[0].regions < 4


def test_memory_is_that_of_the_device_and_of_the_regions(ensemble: Ensemble) -> None:
    table = ImageTable.collect([planned("a")])
    memory = estimate_memory(table, ensemble, settings(ensemble), measured())
    assert memory.total == 100 + 20 + 3 + memory.regions
    # At least two regions' posteriors of float32: two classes, two variances.
    assert memory.regions > 2 * 50 * 70 * 4 * 4


def test_no_image_needs_no_memory_for_regions(ensemble: Ensemble, tmp_path: Path) -> None:
    assert estimate_memory(ImageTable.collect([]), ensemble, settings(ensemble), measured()).regions == 0
