"""Memory that does not suffice: calls of members get smaller and the results the same, or one image fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import inference_settings, resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.telemetry.metrics import REGISTRY
from chorus.pipeline.core.outputs import CLASSES
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.ensembles import ensemble as ensembles
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.members import MemberGroup
from chorus.pipeline.inference.oom_splitting import OomSplitter, is_out_of_memory
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.members.contract import Member
from tests.support.making import pixels, write_image, write_light_ensemble

BATCH = 4


class Small:
    """A member on a device with room for so many tiles, views counted; what it was called with is kept."""

    def __init__(self, member: Member, room: int, error: Exception) -> None:
        self._member, self._room, self._error = member, room, error
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(tiles))
        if len(tiles) > self._room:
            raise self._error
        return self._member(tiles)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
SHORT = [
    CUDA,
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory."),
]


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_errors_of_memory_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_what_torch_says_when_a_cpu_has_too_little_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@given(batch=st.integers(1, 9), views=st.integers(1, 4), room=st.integers(1, 40), seed=st.integers(0, 99))
def test_answers_are_in_order_whatever_the_size_of_calls(batch: int, views: int, room: int, seed: int) -> None:
    tiles = torch.randn(views * batch, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    sizes, shortages = [], []
    calls = OomSplitter(batch, views, lambda: shortages.append(1))

    def ask(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(part))
        if len(part) > room * views:
            raise CUDA
        return 2 * part, part[: len(part) // views, :, 0, 0].to(torch.int64)

    for _ in range(2):
        outputs, features = calls.answer(ask, tiles)
        assert torch.equal(outputs, 2 * tiles)
        assert torch.equal(features, tiles[:batch, :, 0, 0].to(torch.int64))
    assert calls.tiles == max(size for size in (batch >> k for k in range(5)) if size <= room)
    assert len(set(sizes[sum(size > room * views for size in sizes) :])) == 1
    assert len(shortages) == sum(size > room * views for size in sizes)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_sums_are_the_same_in_smaller_calls(room: int, ensemble_url: str) -> None:
    ensemble = read_ensemble(ensemble_url)
    settings = resolve(ResultSettings(batch=BATCH, tile=64), ensemble)
    inference = inference_settings(settings, ensemble)
    device = torch.device("cpu")
    members = [ensemble.load_member(index, device, 64) for index in range(2)]
    batch = torch.randn(BATCH, 1, 64, 64, generator=torch.Generator().manual_seed(0))

    def sums(members: list[Any], inference: InferenceSettings) -> tuple[SampleSums, torch.Tensor, MemberGroup]:
        group = MemberGroup(members, inference, device)
        found = SampleSums.zeros(inference.outputs, BATCH, (64, 64), device)
        with torch.inference_mode():
            features = group.add_samples(batch, found).features
        return found, features, group

    whole, said, _ = sums(members, inference)
    small = [Small(member, room * len(inference.augmentations), CUDA) for member in members]
    parts, same, group = sums(small, inference)
    assert group.calls.tiles == (1 if room == 1 else 2)
    # The second member is called with what fits from its first call on.
    assert max(small[1].calls) <= room * len(inference.augmentations)
    # A convolution may be computed in another order where a call has another shape: in the last bits.
    sums_of = parts.of[CLASSES], whole.of[CLASSES]
    torch.testing.assert_close(sums_of[0].total, sums_of[1].total, rtol=0, atol=1e-4)
    torch.testing.assert_close(sums_of[0].spread, sums_of[1].spread, rtol=0, atol=1e-4)
    assert (same - said).abs().max() <= 1e-4 * said.abs().max()


@pytest.fixture
def run_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run over two images whose members have room for so many tiles, views counted."""
    ensemble = write_light_ensemble(tmp_path / "ensemble", width=2, augmentations=["identity"])
    for index in range(2):
        write_image(tmp_path / "images" / f"{index}.ome.zarr", pixels((100, 130), seed=index))
    load = ensembles.Ensemble.load_member

    def run(name: str, room: int) -> PredictOutcome:
        def small(*arguments: Any, **named: Any) -> Small:
            return Small(load(*arguments, **named), room, CUDA)

        monkeypatch.setattr(ensembles.Ensemble, "load_member", small)
        return predict(
            PredictRequest(
                sources=[str(tmp_path / "images")],
                ensemble=str(ensemble),
                out=str(tmp_path / name),
                settings=ResultSettings(region=64, chunk=32, batch=BATCH),
                run=RunSettings(executor="serial"),
            ),
            Silent(),
        )

    return run


def shortages(out: Path) -> float:
    found = REGISTRY.get_sample_value
    labels = {"run": str(out), "ensemble": "light"}
    import socket

    return found("chorus_device_oom_total", labels | {"node": socket.gethostname()}) or 0.0


def test_run_goes_on_in_smaller_calls_and_says_so(run_with: Any, tmp_path: Path) -> None:
    plenty, little = run_with("plenty", 100), run_with("little", 1)
    assert (plenty.state, little.state) == ("complete", "complete")
    assert (plenty.summary.smaller_batch, little.summary.smaller_batch) == (0, plenty.summary.regions)
    assert shortages(tmp_path / "plenty") == 0
    assert shortages(tmp_path / "little") == 2  # 4 to 2 to 1, once for the worker
    for row, other in zip(plenty.rows, little.rows, strict=True):
        assert row.scores["uncertainty"] == pytest.approx(other.scores["uncertainty"], abs=1e-6)


def test_too_little_memory_for_a_single_tile_fails_images_and_names_the_mend(
    run_with: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chorus.cluster.runs import setup as planned_runs

    calibrate = planned_runs.probe_device
    measured: list[Any] = []

    def once(*arguments: Any, **options: Any) -> Any:
        if not measured:
            measured.append(calibrate(*arguments, **options))
        return measured[0]

    monkeypatch.setattr(planned_runs, "probe_device", once)
    assert run_with("plenty", 100).state == "complete"
    outcome = run_with("none", 0)
    assert (outcome.state, outcome.exit_code) == ("failures", 1)
    assert [row.status for row in outcome.rows] == ["failed", "failed"]
    assert "needs more memory than there is (cpu), also with one tile a call; use a smaller --region" in (
        outcome.rows[0].message
    )


def test_bits_of_a_tile_do_not_depend_on_what_else_is_in_a_smaller_call(ensemble_url: str) -> None:
    ensemble = read_ensemble(ensemble_url)
    settings = resolve(ResultSettings(batch=3, tile=64), ensemble)
    inference = replace(inference_settings(settings, ensemble), augmentations=("identity",))
    device = torch.device("cpu")
    member = ensemble.load_member(0, device, 64)
    batch = torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    group = MemberGroup([Small(member, 2, CUDA)], inference, device)
    found = []
    for order in ([0, 1, 2], [1, 0, 2]):
        sums = SampleSums.zeros(inference.outputs, 3, (64, 64), device)
        with torch.inference_mode():
            group.add_samples(batch[order], sums)
        found.append(sums.of[CLASSES].total[np.argsort(order)])
    assert torch.equal(*found)
