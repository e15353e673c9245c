"""Runtimes that compute a member's network, where each can be used, and by how much its answers may differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from chorus.pipeline.core.device import Device
from chorus.pipeline.core.devices import device_of, kinds_that
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.posterior_builder import Precision

Backend = Literal["eager", "cudagraphs", "inductor", "onnxruntime", "openvino"]
"""``eager`` is plain PyTorch, operation by operation; ``cudagraphs`` the same operations, recorded once and launched
together; the others get the network as one graph, weights included."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)


@dataclass(frozen=True, slots=True)
class _Runtime:
    """Requirements and abilities of a backend.

    Attributes
    ----------
    modules : that must be installed
    mend : command that installs them
    runs_on : whether it runs on a device
    precisions : that it computes in
    """

    modules: tuple[str, ...]
    mend: str
    runs_on: Callable[[Device], bool]
    precisions: tuple[Precision, ...]


def _on_cores(device: Device) -> bool:
    return not device.accelerated


_RUNTIMES: dict[Backend, _Runtime] = {
    "eager": _Runtime((), "", lambda device: True, ("fp32", "bf16", "fp16")),
    "cudagraphs": _Runtime((), "", lambda device: device.recorder is not None, ("fp32", "bf16", "fp16")),
    "inductor": _Runtime((), "", lambda device: device.compiles, ("fp32", "bf16", "fp16")),
    "onnxruntime": _Runtime(("onnxruntime", "onnxscript"), "pip install 'chorus-bioimage[onnx]'", _on_cores, ("fp32",)),
    "openvino": _Runtime(
        ("openvino", "onnxscript"), "pip install 'chorus-bioimage[openvino]'", _on_cores, ("fp32", "bf16")
    ),
}


def check_backend(backend: Backend, precision: Precision, device: str) -> None:
    """Check that a backend can be used.

    Raises
    ------
    RefusedError
        If it cannot; the message says what is missing or does not fit, and what to do.
    """
    runtime = _RUNTIMES[backend]
    if not runtime.runs_on(device_of(device)):
        kinds = ", ".join(kinds_that(runtime.runs_on))
        raise RefusedError(f"--backend {backend} runs on {kinds} and not on {device}; leave it out")
    if precision not in runtime.precisions:
        raise RefusedError(
            f"--backend {backend} computes in {' or '.join(runtime.precisions)} and not in {precision}; choose another "
            f"--precision or leave --backend out"
        )
    if missing := [module for module in runtime.modules if not _installed(module)]:
        raise RefusedError(f"--backend {backend} needs {missing[0]}; {runtime.mend}")


def usable(precision: Precision, device: str) -> list[Backend]:
    """Return the backends that can be used here, ``eager`` first."""
    backends: list[Backend] = []
    for backend in BACKENDS:
        try:
            check_backend(backend, precision, device)
        except RefusedError:
            continue
        backends.append(backend)
    return backends


def difference(answer: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the root mean square of the difference between two answers, relative to that of `reference`.

    Parameters
    ----------
    answer, reference : of one shape, any floating dtype
    """
    reference, answer = device_of(reference.device).in_float64(reference), device_of(answer.device).in_float64(answer)
    scale = reference.square().mean().sqrt().item()
    return (answer - reference).square().mean().sqrt().item() / max(scale, 1e-30)


def tolerance(precision: Precision, module: torch.nn.Module) -> float:
    """Return how large `difference` to PyTorch in fp32 may be.

    In fp32 only the order of sums may differ. Half precision has 8 (bf16) or 11 bits (fp16), also if the weights
    themselves are of such a type.
    """
    halves = any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in module.parameters())
    if precision == "fp32" and not halves:
        return 1e-4
    return 0.05


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None
