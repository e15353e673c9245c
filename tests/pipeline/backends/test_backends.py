"""Members on other runtimes: PyTorch's answers within a tolerance, at any place of a batch, or a refusal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from chorus.pipeline.backends import choosing, conversion
from chorus.pipeline.backends import member as converting
from chorus.pipeline.backends.choice import Backend, check_backend, difference, usable
from chorus.pipeline.backends.choosing import Workload, choose, fastest, known_timings, measure_and_keep
from chorus.pipeline.backends.measuring import EnsembleTimings, NetworkTimings, Timing, Work, measured
from chorus.pipeline.backends.member import ConvertedMember, on_backend
from chorus.pipeline.backends.recording import recorded
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.members.contract import Encoding, Member, ModuleMember
from tests.support.making import network, write_ensemble, write_light_ensemble

CPU = torch.device("cpu")
TILES = torch.randn((4, 1, 64, 64), generator=torch.Generator().manual_seed(5))
COMPILED = pytest.param("inductor", marks=pytest.mark.long)
RUNTIMES = ["onnxruntime", "openvino", COMPILED]


def _made(backend: Backend, precision: str = "fp32", seed: int = 0) -> Member:
    return on_backend(ModuleMember(network(seed, outputs=4), CPU), backend, precision, CPU)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("backend", RUNTIMES)
def test_answers_and_features_are_those_of_the_network_in_float64(backend: Backend) -> None:
    member = _made(backend)
    assert isinstance(member, ConvertedMember)
    assert isinstance(member, Encoding)
    exact = network(0, outputs=4).double()
    with torch.inference_mode():
        wanted, stage = exact(TILES.double()), exact.encoder(TILES.double())[-1]
        answer = member(TILES.clone())
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.double(), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    assert member.features == stage.shape[1]
    torch.testing.assert_close(member.encoded().double(), stage, rtol=0, atol=1e-4 * stage.abs().max().item())
    with pytest.raises(RuntimeError, match="asked last"):
        member.encoded()


@pytest.mark.parametrize("backend", RUNTIMES)
def test_a_tile_gets_the_same_bits_at_any_place_and_in_any_company(backend: Backend) -> None:
    member = _made(backend)
    tiles = TILES.clone()
    with torch.inference_mode():
        first = member(tiles)
        assert torch.equal(tiles, TILES)  # nothing computes in the caller's memory
        turned = member(TILES.flip(0))
        alone = torch.zeros_like(TILES)
        alone[2] = TILES[2]
        assert torch.equal(member(alone)[2], first[2])
    assert torch.equal(turned.flip(0), first)


def test_earlier_answers_stay_when_the_member_is_called_again() -> None:
    for backend in ("onnxruntime", "openvino"):
        member = _made(backend)
        with torch.inference_mode():
            first = member(TILES)
            kept = first.clone()
            member(TILES + 1)
        assert torch.equal(first, kept)


@pytest.mark.parametrize("backend", ["openvino", COMPILED])
def test_bf16_stays_within_what_bf16_can_say(backend: Backend) -> None:
    reference = network(0, outputs=4)
    with torch.inference_mode():
        said = difference(_made(backend, "bf16")(TILES), reference(TILES))
    assert 1e-5 < said < 0.05


@pytest.mark.parametrize("backend", ["openvino", COMPILED])
def test_a_member_that_is_first_called_with_autocast_on_is_converted_and_checked_as_without(
    backend: Backend, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def kept(answer: torch.Tensor, reference: torch.Tensor) -> float:
        seen.append(reference)
        return difference(answer, reference)

    monkeypatch.setattr(converting, "difference", kept)
    first, second = _made(backend, "bf16"), _made(backend, "bf16")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        first(TILES)
    monkeypatch.setenv("CHORUS_CACHE", str(own_cache / "other"))  # else the first one's comparison counts
    with torch.inference_mode():
        second(TILES)
    assert torch.equal(*seen)  # both are PyTorch's in fp32
    assert seen[0].dtype == torch.float32


def test_what_was_converted_is_not_converted_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        wanted = _made("onnxruntime")(TILES)
        monkeypatch.setattr(conversion, "exported", None)  # would raise TypeError
        assert torch.equal(_made("onnxruntime")(TILES), wanted)
        with pytest.raises(TypeError):
            _made("onnxruntime", seed=1)(TILES)  # other weights are another network
    assert len(list(own_cache.glob("onnx/*.onnx"))) == 1


def test_what_was_compared_with_pytorch_is_not_compared_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        wanted = _made("onnxruntime")(TILES)
        (kept,) = own_cache.glob("compared/*.txt")
        assert 0 < float(kept.read_text()) < 1e-4
        monkeypatch.setattr(converting, "difference", None)  # would raise TypeError
        assert torch.equal(_made("onnxruntime")(TILES), wanted)
        with pytest.raises(TypeError):
            _made("onnxruntime")(TILES[:2])  # another shape
        kept.write_text("nan")
        with pytest.raises(RefusedError, match="answers otherwise than PyTorch in fp32"):
            _made("onnxruntime")(TILES)


def test_a_graph_that_answers_otherwise_is_refused(own_cache: Path) -> None:
    with torch.inference_mode():
        _made("onnxruntime", seed=0)(TILES)
        (first,) = own_cache.glob("onnx/*.onnx")
        _made("onnxruntime", seed=1)(TILES)
        (second,) = set(own_cache.glob("onnx/*.onnx")) - {first}
        shutil.copy(second, first)
        with pytest.raises(RefusedError, match=r"answers otherwise than PyTorch in fp32.*use --backend eager"):
            _made("onnxruntime", seed=0)(TILES)


def test_networks_that_cannot_be_exported_are_refused_in_one_sentence(own_cache: Path) -> None:
    class Moody(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool(x.sum() > 0) else -x

    member = on_backend(ModuleMember(Moody(), CPU), "openvino", "fp32", CPU)
    with pytest.raises(RefusedError, match=r"torch cannot export Moody as a graph.*use --backend eager"):
        member(TILES)


def test_members_that_are_no_torch_modules_stay_as_they_are(tmp_path: Path) -> None:
    ensemble = read_ensemble(str(write_light_ensemble(tmp_path, members=1)))
    member = ensemble.load_member(0, CPU)
    assert on_backend(member, "openvino", "fp32", CPU) is member
    assert _made("eager").__class__ is ModuleMember


@pytest.mark.parametrize(
    ("backend", "precision", "device", "sentence"),
    [
        ("openvino", "fp32", "cuda", "runs on cpu and not on cuda; leave it out"),
        ("onnxruntime", "bf16", "cpu", "computes in fp32 and not in bf16; choose another --precision"),
        ("openvino", "fp16", "cpu", "computes in fp32 or bf16 and not in fp16"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(backend: Backend, precision: str, device: str, sentence: str) -> None:
    with pytest.raises(RefusedError, match=sentence):
        check_backend(backend, precision, device)


def test_a_backend_that_is_not_installed_is_refused_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus.pipeline.backends.choice._installed", lambda module: module != "openvino")
    with pytest.raises(RefusedError, match=r"needs openvino; pip install 'chorus-bioimage\[openvino\]'"):
        check_backend("openvino", "fp32", "cpu")
    assert usable("fp32", "cpu") == ["eager", "inductor", "onnxruntime"]


def test_what_was_measured_is_kept_and_decides(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chorus.pipeline.backends.measuring.usable", lambda *_: ["eager", "onnxruntime", "openvino"])
    ensemble = read_ensemble(str(write_ensemble(tmp_path / "ensemble", members=3)))
    workload = Workload(64, 2, "fp32", CPU)
    assert choose(ensemble, workload) == ("eager", 1)
    (found,) = measure_and_keep(ensemble, workload, 0.1, batch=1)
    assert known_timings(ensemble, workload.work(1)) == found
    assert known_timings(ensemble, workload.work(2)) is None
    (of,) = found.networks  # three members of one architecture
    assert of.members == [0, 1, 2]
    assert {timing.backend for timing in of.timings} == {"eager", "onnxruntime", "openvino"}
    assert all(timing.rate > 0 and timing.difference < 1e-4 for timing in of.timings)
    quickest = max(of.timings, key=lambda timing: timing.rate)
    assert found.best == quickest.backend
    assert choose(ensemble, workload) == (quickest.backend, 1)
    assert choose(ensemble, workload, batch=2) == ("eager", 2)
    assert found.seconds(found.best) == pytest.approx(3 / quickest.rate)


def timings_of(samples: int, **rates: float) -> EnsembleTimings:
    """As measured with one network; samples a second by backend."""
    timings = [Timing(backend=backend, rate=rate) for backend, rate in rates.items()]  # type: ignore[arg-type]
    network = NetworkTimings(network="Unet", members=[0], timings=timings)
    return EnsembleTimings(
        ensemble="",
        tile=64,
        samples=samples,
        precision="fp32",
        device="",
        threads=1,
        eager_fp32=[1],
        networks=[network],
    )


def test_of_batches_that_are_as_fast_the_smallest_is_taken() -> None:
    workload = Workload(64, 4, "fp32", CPU)
    found = [
        timings_of(4, eager=10, onnxruntime=99.5),
        timings_of(8, eager=12, onnxruntime=100),
        timings_of(16, eager=11),
    ]
    assert fastest(found, workload) == ("onnxruntime", 1)
    assert fastest([*found, timings_of(32, eager=110)], workload) == ("eager", 8)
    assert fastest([], workload) is None


@pytest.mark.parametrize(
    ("rates", "tried", "chosen"),
    [
        ({1: 10, 2: 9}, [1, 2], 1),
        ({1: 10, 2: 12, 4: 14, 8: 13}, [1, 2, 4, 8], 4),
        ({1: 10, 2: 12, 4: None}, [1, 2, 4], 2),  # out of memory
    ],
)
def test_larger_batches_are_tried_as_long_as_they_are_faster(
    rates: dict[int, float | None],
    tried: list[int],
    chosen: int,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = read_ensemble(str(write_light_ensemble(tmp_path / "ensemble", members=1)))
    seen: list[tuple[int, list[Backend] | None]] = []

    def measured(_: object, work: Work, *others: object) -> EnsembleTimings:
        tiles = work.samples // 4
        seen.append((tiles, others[-1]))  # type: ignore[arg-type]
        if (rate := rates[tiles]) is None:
            raise MemoryError
        return timings_of(work.samples, eager=1, openvino=rate)

    monkeypatch.setattr("chorus.pipeline.backends.choosing.measured", measured)
    monkeypatch.setattr("chorus.pipeline.backends.choosing.usable", lambda *_: ["eager", "openvino"])
    workload = Workload(64, 4, "fp32", CPU)
    path = choosing._path(ensemble.hash, workload.work(16))
    storage.write_bytes(path, timings_of(64, eager=1, openvino=99).model_dump_json().encode())
    assert choose(ensemble, workload) == ("openvino", 16)
    measure_and_keep(ensemble, workload, 1)  # what is known of other days does not count any more
    assert seen == [(tiles, ["openvino"] if tiles > 1 else None) for tiles in tried]
    assert choose(ensemble, workload) == ("openvino", chosen)


def test_a_backend_that_fails_is_measured_as_such_and_never_chosen(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chorus.pipeline.backends.measuring.usable", lambda *_: ["eager", "openvino"])

    def broken(*_: object) -> object:
        raise RefusedError("openvino 0 cannot run the network; use --backend eager")

    monkeypatch.setattr(converting, "_openvino", broken)
    found = measured(
        read_ensemble(str(write_ensemble(tmp_path / "ensemble", members=1))), Work(64, 1, "fp32", CPU), 0.1
    )
    assert [timing.message for timing in found.networks[0].timings] == [
        "",
        "openvino 0 cannot run the network; use --backend eager",
    ]
    assert found.best == "eager"


def test_a_network_is_not_recorded_where_the_device_records_nothing() -> None:
    with pytest.raises(RefusedError, match="operations on cpu cannot be recorded; use --backend eager"):
        recorded(cast(Any, torch.nn.Identity()), torch.zeros((1, 1, 8, 8)))
