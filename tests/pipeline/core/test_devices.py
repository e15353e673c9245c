"""Devices: which one is meant, what each kind can do, what fp32 means, and that nothing else asks for kinds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chorus.pipeline.core import devices
from chorus.pipeline.core.device import KINDS, DeviceKind
from chorus.pipeline.core.devices import best, chosen, device_of, fp32_policy_kept, of_cluster
from chorus.pipeline.core.gpus import Cuda, Mps, Xpu
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.posterior_builder import tiles_per_call
from chorus.pipeline.members.kinds.onnx_session import session_device

ROOT = Path(__file__).parents[3]
# A kind that is compared, or a module of torch for one of them.
ELSEWHERE = re.compile(
    r"""(?:==|!=|\bin\b)\s*\(?["'](?:cuda|mps|xpu)["']|["'](?:cuda|mps|xpu)["']\s*(?:==|!=)"""
    r"""|torch\.(?:cuda|mps|xpu)\b|\.is_cuda\b|backends\.(?:cudnn|cuda|mps|mkldnn)\b|device\(["'](?:cuda|mps|xpu)"""
    r"""|["'](?:cuda|mps|xpu)["']\s*:"""
)
AT_HOME = {"pipeline/core/device.py", "pipeline/core/devices.py", "pipeline/core/gpus.py"}


def test_no_other_module_compares_kinds_of_devices_or_calls_their_modules() -> None:
    rooms = ("cluster", "pipeline", "serving", "benchmarks", "chorus")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ELSEWHERE.search(line) and str(path.relative_to(ROOT)).removeprefix("chorus/") not in AT_HOME
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'if device.type == "cuda":',
        'on_gpu = settings.device == "cuda"',
        "torch.cuda.synchronize()",
        "if views.is_cuda:",
        'if kind in ("mps", "xpu"):',
        'PIXELS = {"cpu": 1, "cuda": 2}',
        "torch.backends.cudnn.benchmark = False",
        'torch.device("cuda", 0)',
    ],
)
def test_what_is_looked_for_elsewhere_would_be_found(line: str) -> None:
    assert ELSEWHERE.search(line)


def there(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    for kind in (Cuda, Xpu, Mps):
        monkeypatch.setattr(kind, "available", lambda self, kind=kind: kind.kind in kinds)


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [((), "cpu"), (("mps",), "mps"), (("xpu",), "xpu"), (("cuda",), "cuda"), (("cuda", "xpu", "mps"), "cuda")],
)
def test_auto_is_the_best_that_is_there(
    kinds: tuple[str, ...], wanted: DeviceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    there(monkeypatch, *kinds)
    assert best() == chosen("auto") == wanted


def test_a_device_that_is_not_there_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, "mps")
    assert chosen("mps") == "mps"
    assert chosen("cpu") == "cpu"
    with pytest.raises(RefusedError, match="this machine has no Intel GPU that PyTorch can use; use --device cpu"):
        chosen("xpu")


@pytest.mark.parametrize(
    ("gpus", "types", "wanted"),
    [
        (0, (), "cpu"),
        (4, (), "cuda"),
        (4, ("A100", "A100-80G"), "cuda"),
        (2, ("AMD-Instinct-MI300X-OAM",), "cuda"),
        (2, ("Intel-GPU-Max-1550",), "xpu"),
        (1, ("M4-Max",), "mps"),
        (3, ("Intel-GPU-Max-1550", "H100"), "cuda"),
    ],
)
def test_auto_on_a_cluster_goes_by_what_ray_calls_its_gpus(gpus: int, types: tuple[str, ...], wanted: str) -> None:
    assert of_cluster(gpus, types) == wanted


def test_an_actor_reserves_cores_or_a_gpu_and_a_mac_has_room_for_one() -> None:
    assert device_of("cpu").ray_options(3) == {"num_cpus": 3, "num_gpus": 0}
    assert device_of("cpu").slots(cpus=8, gpus=2) == 8
    for kind in ("cuda", "mps", "xpu"):
        assert device_of(kind).ray_options(3) == {"num_cpus": 0, "num_gpus": 1}
        assert device_of(kind).slots(cpus=8, gpus=0) == 0
    assert device_of("cuda").slots(cpus=8, gpus=4) == device_of("xpu").slots(cpus=8, gpus=4) == 4
    assert device_of("mps").slots(cpus=8, gpus=4) == 1


def test_every_kind_is_what_torch_calls_so_and_knows_its_calls() -> None:
    assert set(devices.REGISTRY) == set(KINDS)
    for kind in KINDS:
        device = device_of(kind)
        assert device.torch_device.type == device.kind == kind
        assert device_of(device.torch_device) is device
        assert (tiles_per_call(kind, (64, 64), 4) > 1) == device.accelerated
        assert device.most_pixels >= device.call_pixels
    assert device_of(torch.device("cuda")) is device_of("cuda") is device_of(torch.device("cuda", 0))
    assert device_of(torch.device("cuda", 1)).torch_device == torch.device("cuda", 1)


def test_graphs_of_onnx_run_on_the_host_where_onnxruntime_has_nothing_for_the_device() -> None:
    assert session_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert session_device(torch.device("mps")) == session_device(torch.device("xpu", 0)) == torch.device("cpu")


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_devices_are_known_without_torch() -> None:
    run(
        "import sys; from chorus.pipeline.core import devices; assert devices.device_of('cuda').ray_gpus == 1; "
        "assert 'torch' not in sys.modules"
    )


def test_what_apples_gpu_lacks_runs_on_the_cores_as_torch_is_told_before_it_is_imported() -> None:
    run(
        "import os, sys; os.environ.pop('PYTORCH_ENABLE_MPS_FALLBACK', None); import chorus; "
        "assert os.environ['PYTORCH_ENABLE_MPS_FALLBACK'] == '1' and 'torch' not in sys.modules"
    )


def test_fp32_means_ieee_in_whatever_a_gpu_computes_once_it_is_repeatable() -> None:
    # In a process of its own: these are settings of a whole process, and need no GPU.
    run(
        "import torch; from chorus.pipeline.core.devices import device_of; gpu = device_of('cuda');"
        "assert 'cudnn.conv=ieee' not in gpu.fp32_policy(), gpu.fp32_policy();"
        "gpu.be_repeatable();"
        "assert gpu.fp32_policy() == 'cudnn.conv=ieee cudnn.rnn=ieee cuda.matmul=ieee', gpu.fp32_policy();"
        "assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark;"
        "assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32;"
        "torch.backends.fp32_precision = 'tf32';"  # what they would inherit
        "assert 'tf32' not in gpu.fp32_policy();"
        "device_of('xpu').be_repeatable();"
        "assert device_of('xpu').fp32_policy() == 'mkldnn.conv=ieee mkldnn.rnn=ieee mkldnn.matmul=ieee'"
    )


@pytest.mark.parametrize("first", ["", "device_of('cuda').be_repeatable();"], ids=["as torch is", "repeatable"])
def test_an_import_that_allows_tf32_does_not_change_what_fp32_means(first: str) -> None:
    run(
        "import torch; from chorus.pipeline.core.devices import device_of, fp32_policy_kept;"
        f"{first} before = device_of('cuda').fp32_policy()\n"
        "with fp32_policy_kept():\n"
        "    torch.backends.cuda.matmul.allow_tf32 = True\n"  # as Cellpose does
        "assert device_of('cuda').fp32_policy() == before\n"
        "assert not torch.backends.cuda.matmul.allow_tf32\n"  # and torch can say it
    )


@fp32_policy_kept()
def failing() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    raise ImportError("no such package")


def test_the_policy_is_kept_where_the_import_fails() -> None:
    before = device_of("cuda").fp32_policy()
    with pytest.raises(ImportError):
        failing()
    assert device_of("cuda").fp32_policy() == before


def test_random_numbers_are_restored_on_the_cores() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    with device_of("cpu").forked_random():
        torch.rand(100)
    assert torch.equal(torch.rand(4), wanted)


def test_random_numbers_and_memory_of_apples_gpu_are_asked_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    state, told = torch.tensor([7]), []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", told.append)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 10)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: told.append("released"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: told.append("waited"))
    device = device_of("mps")
    with device.forked_random():
        assert told == []
    device.reset_peak_memory()
    device.finish()
    assert told == [state, "released", "waited"]
    assert (device.free_memory(), device.total_memory(), device.peak_memory()) == (990, 1000, 10)
