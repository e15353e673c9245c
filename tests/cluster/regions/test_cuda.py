"""What only a GPU can show: the same posterior as on a CPU, bits that depend on no company, copies beside the work."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chorus.cluster.regions.batching import SharedDevice
from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.backends.member import on_backend
from chorus.pipeline.core.augmentation import FLIPS
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.inference.device_transfer import host_array, landing, to_device, to_host
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.inference.tile_stream import PlaneWindow
from chorus.pipeline.members.contract import ModuleMember
from tests.support.engines import settings_of
from tests.support.making import network

pytestmark = pytest.mark.skipif(not device_of("cuda").available(), reason="needs a GPU that is not there")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MAPS = ("probability", "epistemic", "aleatoric", "labels", "masks", "member_masks", "flows", "flow_variance")


def engine(device: torch.device, backend: Backend = "eager", precision: Precision = "fp32", *, flows: bool) -> Engine:
    device_of(device).be_repeatable()  # as `Ensemble.load_member` does
    how = settings_of("softmax", False, 2, 32, FLIPS, batch=4, precision=precision, flows=flows)
    made = [ModuleMember(network(seed, outputs=2 + 2 * flows), device) for seed in range(3)]
    return Engine([on_backend(one, backend, precision, device) for one in made], how, device)


def plane(height: int, width: int, seed: int = 0) -> PlaneWindow:
    values = np.random.default_rng(seed).normal(size=(1, height, width)).astype(np.float32)
    return PlaneWindow(values, Window.of(0, height, 0, width), Grid.make((height, width), 32, 0.5))


def maps_of(posterior: Posterior) -> list[NDArray[np.generic]]:
    return [getattr(posterior, name) for name in MAPS]


@pytest.mark.parametrize("flows", [False, True])
@pytest.mark.parametrize(("backend", "precision"), [("eager", "fp32"), ("cudagraphs", "fp32"), ("cudagraphs", "bf16")])
def test_a_gpu_says_what_a_cpu_says(backend: Backend, precision: Precision, flows: bool) -> None:
    one = plane(75, 90)
    found = engine(GPU, backend, precision, flows=flows).posterior(one, one.window)
    wanted = engine(CPU, flows=flows).posterior(one, one.window)
    close = 1e-4 if precision == "fp32" else 0.05
    for name in ("probability", "epistemic", "aleatoric"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=close, rtol=0, err_msg=name)
    assert (found.labels != wanted.labels).mean() < close


@pytest.mark.parametrize("backend", ["eager", "cudagraphs"])
def test_a_part_of_a_plane_has_the_bits_of_the_whole(backend: Backend) -> None:
    one, target = plane(120, 130), Window.of(30, 100, 17, 93)
    made = engine(GPU, backend, flows=True)
    whole, part = made.posterior(one, one.window), made.posterior(one, target)
    for found, of_whole in zip(maps_of(part), maps_of(whole), strict=True):
        assert found.tobytes() == np.ascontiguousarray(of_whole[..., target.y.slice, target.x.slice]).tobytes()


@pytest.mark.parametrize("backend", ["eager", "cudagraphs"])
def test_regions_that_share_batches_while_others_are_on_their_way_keep_their_bits(backend: Backend) -> None:
    made, device = engine(GPU, backend, flows=True), SharedDevice(fair=False)
    planes = [plane(60 + 7 * seed, 50 + 11 * seed, seed) for seed in range(8)]
    alone = [made.posterior(one, one.window) for one in planes]
    answers = [device.submit(made, one, one.window, None, time.monotonic() + 60) for one in planes]
    for answer, wanted in zip(answers, alone, strict=True):
        found = answer.result(60)[0]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(maps_of(found), maps_of(wanted), strict=True))
    device.close()


def test_a_recording_says_what_was_recorded_and_keeps_its_earlier_answers() -> None:
    tiles = torch.randn((4, 1, 64, 64), generator=torch.Generator().manual_seed(5)).to(GPU)
    eager = [ModuleMember(network(seed, outputs=4), GPU) for seed in (0, 1)]
    made = [on_backend(one, "cudagraphs", "fp32", GPU) for one in eager]
    with torch.inference_mode():
        first = [one(tiles) for one in made]
        kept = [one.clone() for one in first]
        for one in made:
            one(tiles + 1)
        for found, before, plain in zip(first, kept, eager, strict=True):
            assert torch.equal(found, before)
            torch.testing.assert_close(found, plain(tiles), rtol=0, atol=1e-4)
            assert torch.equal(found, plain(tiles.contiguous(memory_format=torch.channels_last)))


def test_copies_arrive_in_the_type_of_their_target() -> None:
    values = np.random.default_rng(0).integers(0, 60_000, (3, 40, 50)).astype(np.int32)
    there = to_device(values, GPU)
    target = host_array((3, 100, 50), torch.uint16, GPU)
    to_host(target[:, 20:60], there)
    landing(GPU)()
    assert target.is_pinned()
    assert np.array_equal(target.numpy()[:, 20:60], values)
