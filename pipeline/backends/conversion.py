"""Conversion of a torch module to a graph for other runtimes; results are cached on this machine."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.inference.members import AUTOCAST
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.io import storage
from chorus.pipeline.members.contract import last_stage

Run = Callable[[torch.Tensor], list[torch.Tensor]]
"""Computes, for tiles, the outputs and the encoder's last stage if there is one."""
OPSET = 20
"""Operator set of the ONNX graphs: supported by onnxruntime since 1.17."""
_PACKAGES = ("chorus-bioimage", "torch", "onnxscript", "segmentation-models-pytorch", "timm")


class WithStage(torch.nn.Module):
    """A network that returns its outputs and, if it has an `encoder`, the last stage of that.

    Parameters
    ----------
    network : of a member
    encoder : see `chorus.pipeline.members.contract.ModuleMember`
    precision : that the network is computed in
    device : kind of device
    """

    def __init__(self, network: torch.nn.Module, encoder: torch.nn.Module | None, precision: Precision, device: str):
        super().__init__()
        self.network, self._device, self._dtype = network, device, AUTOCAST.get(precision)
        # In a list, so that torch does not register it and the encoder's weights are not counted twice.
        self._encoder = [] if encoder is None else [encoder]

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the outputs of tiles.

        Parameters
        ----------
        tiles : (batch, channels, tile, tile) float32

        Returns
        -------
        tuple of torch.Tensor
            Outputs, (batch, channels, y, x) float32, and the encoder's last stage, (batch, features, y, x) float32, if
            any.
        """
        kept: list[torch.Tensor] = []

        def keep(encoder: torch.nn.Module, inputs: Any, output: Any) -> None:
            kept.append(last_stage(output).to(torch.float32))

        hooks = [encoder.register_forward_hook(keep) for encoder in self._encoder]
        try:
            with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
                outputs = self.network(tiles)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs.to(torch.float32), *kept


def exported(network: WithStage, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Return the graph of a network for inputs of the example's shape.

    Parameters
    ----------
    network : to export
    example : (batch, channels, tile, tile) float32

    Raises
    ------
    RefusedError
        If torch cannot trace the network.
    """
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), strict=False)
    except Exception as error:
        raise RefusedError(
            f"torch cannot export {type(network.network).__name__} as a graph ({first_line(error)}); use --backend "
            f"eager"
        ) from error


def onnx_graph(network: WithStage, example: torch.Tensor) -> bytes:
    """Return the network as ONNX for inputs of the example's shape.

    Parameters
    ----------
    network : to convert
    example : (batch, channels, tile, tile) float32

    Raises
    ------
    RefusedError
        If torch cannot convert the network.
    """
    program = exported(network, example)
    try:
        converted = torch.onnx.export(program, (example,), opset_version=OPSET, verbose=False)
        assert converted is not None  # it is None only if a file name was given
        data: bytes = converted.model_proto.SerializeToString()
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        raise RefusedError(
            f"torch cannot export {type(network.network).__name__} as ONNX ({first_line(error)}); use --backend eager"
        ) from error
    return data


def compiled(network: WithStage, example: torch.Tensor) -> bytes:
    """Return the network compiled ahead of time for this device.

    Parameters
    ----------
    network : to compile
    example : (batch, channels, tile, tile) float32, on the device

    Raises
    ------
    RefusedError
        If torch cannot export the network, or there is no compiler.
    """
    from torch import _inductor as inductor

    program = exported(network, example)
    with tempfile.TemporaryDirectory(prefix="chorus-") as folder:
        path = os.path.join(folder, "network.pt2")
        # On a CPU weights become a part of the graph, in the memory layout that suits the convolutions.
        configs = {"freezing": not device_of(example.device).accelerated}
        try:
            inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=configs)
        except (RuntimeError, OSError, ValueError) as error:
            raise RefusedError(
                f"torch cannot compile {type(network.network).__name__} ({first_line(error)}); install a C++ compiler "
                f"such as g++, or use --backend eager"
            ) from error
        return Path(path).read_bytes()


def kept(name: str, make: Callable[[], bytes]) -> Path:
    """Return the path of a file in this machine's cache; create the file with `make` if it is missing.

    One process creates it, others wait for it.
    """
    path = cache_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            storage.write_bytes(str(path), make())
    return path


def cache_folder() -> Path:
    """Return this machine's cache of converted networks and timings.

    It is ``CHORUS_CACHE``, else ``chorus`` in the user's cache folder.
    """
    chosen = os.environ.get("CHORUS_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chorus"


def fingerprint(network: torch.nn.Module, *details: object) -> str:
    """Return a hash of a network, for names of what is made from it.

    It covers layers and weights, the versions of the packages that convert it, and `details`.
    """
    digest = hashlib.sha256(repr((str(network), details, _surroundings())).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def device_name(device: torch.device) -> str:
    """Return the name of a device: the model of a GPU, or of a CPU with the widest instructions that torch uses."""
    there = device_of(device)
    if there.accelerated:
        return there.name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _surroundings() -> tuple[str, ...]:
    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    return tuple(installed(package) for package in _PACKAGES)
