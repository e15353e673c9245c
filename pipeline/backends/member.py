"""A member whose network is computed by another runtime: converted and checked at its first call."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from chorus.pipeline.backends.choice import Backend, difference, tolerance
from chorus.pipeline.backends.conversion import Run, WithStage, compiled, device_name, fingerprint, kept, onnx_graph
from chorus.pipeline.backends.recording import recorded
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.outputs import Activation
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.members.contract import Member, ModuleMember


def on_backend(member: Member, backend: Backend, precision: Precision, device: torch.device) -> Member:
    """Return the member on a backend; members that are no torch modules (ONNX, TorchScript) are returned unchanged."""
    if backend == "eager" or not isinstance(member, ModuleMember) or isinstance(member.module, torch.jit.ScriptModule):
        return member
    return ConvertedMember(member, backend, precision, device)


class ConvertedMember:
    """A member on another backend; see `chorus.pipeline.members.contract.Member` and `Encoding`.

    Each shape of a batch is converted once, and its answer compared with PyTorch's in fp32, once per machine.

    Raises
    ------
    RefusedError
        When it is called, if the network cannot be converted, or its answers differ by more than `tolerance`.
    """

    def __init__(self, member: ModuleMember, backend: Backend, precision: Precision, device: torch.device) -> None:
        self.activation: Activation | None = member.activation
        self.features = member.features
        self._member, self._backend, self._precision, self._device = member, backend, precision, device
        self._runs: dict[tuple[int, ...], Run] = {}
        self._stage: torch.Tensor | None = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the network's outputs.

        Parameters
        ----------
        tiles : (batch, channels, tile, tile) float32, on the device

        Returns
        -------
        torch.Tensor
            (batch, outputs, y, x) float32.
        """
        shape = tuple(tiles.shape)
        if shape not in self._runs:
            self._runs[shape] = self._prepared(shape)
        outputs, *stages = self._runs[shape](tiles)
        self._stage = stages[0] if stages else None
        return outputs

    def encoded(self) -> torch.Tensor:
        """Return the encoder's last stage for the last call; see `Encoding`.

        Returns
        -------
        torch.Tensor
            (batch, features, y, x) float32.

        Raises
        ------
        RuntimeError
            If the member was not called since the last request.
        """
        stage, self._stage = self._stage, None
        if stage is None:
            raise RuntimeError("the member was not called since its encoder was asked last")
        return stage

    def parameters_bytes(self) -> int:
        """Return the bytes of PyTorch's weights, and of the runtime's own copy if it has one.

        PyTorch's weights are kept, since other shapes are converted from them.
        """
        return (1 if self._backend == "cudagraphs" else 2) * self._member.parameters_bytes()

    def _prepared(self, shape: tuple[int, ...]) -> Run:
        # Values as after normalisation, from a fixed seed, so that a network passes always or never.
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self._device)
        # The caller enables autocast for reduced precision; here it is a part of the graph, or set in the runtime.
        with torch.autocast(self._device.type, enabled=False), torch.inference_mode(mode=False), torch.no_grad():
            run, graph = self._made(example)
            difference = self._difference(run, graph, example)
        allowed = tolerance(self._precision, self._member.module)
        if not difference <= allowed:
            raise RefusedError(
                f"--backend {self._backend} in {self._precision} answers otherwise than PyTorch in fp32 (relative "
                f"difference {difference:.1e}, {allowed:.0e} is allowed); use --backend eager"
            )
        return run

    def _made(self, example: torch.Tensor) -> tuple[Run, str]:
        """Return the network for inputs of the example's shape, and the hash of the file that the runtime opened."""
        if self._backend == "cudagraphs":
            return recorded(self._network(self._precision), example), ""
        path = self._converted(example)
        with path.open("rb") as file:
            graph = hashlib.file_digest(file, "sha256").hexdigest()
        if self._backend == "inductor":
            return _inductor(path), graph
        return _openvino(path, self._precision) if self._backend == "openvino" else _onnxruntime(path), graph

    def _difference(self, run: Run, graph: str, example: torch.Tensor) -> float:
        """Return the difference to PyTorch's answer in fp32.

        The comparison takes as long as several calls, so its result is cached for all processes that share the graph,
        the runtime and the kind of device.
        """

        def compare() -> bytes:
            return repr(difference(run(example)[0], self._member.module(example))).encode()

        of_torch = self._backend in ("cudagraphs", "inductor")
        runtime = import_module("torch" if of_torch else self._backend).__version__
        how = (self._backend, runtime, self._precision, *self._place(), torch.get_num_threads())
        name = fingerprint(self._member.module, tuple(example.shape), graph, *how)
        return float(kept(f"compared/{name}.txt", compare).read_text())

    def _converted(self, example: torch.Tensor) -> Path:
        """Return the file that the runtime opens, made from the network for inputs of the example's shape."""
        network, shape = self._network(self._precision), tuple(example.shape)
        if self._backend == "inductor":
            example = example.contiguous(memory_format=torch.channels_last)
            name = fingerprint(network, shape, self._precision, *self._place())
            return kept(f"inductor/{name}.pt2", lambda: compiled(network, example))
        # Runtimes convert the precision themselves: the graph has the precision of the weights.
        plain = self._network("fp32")
        return kept(f"onnx/{fingerprint(plain, shape)}.onnx", lambda: onnx_graph(plain, example))

    def _place(self) -> tuple[str, str]:
        """Return what answers depend on beside the network: the device, and what fp32 means on it."""
        return device_name(self._device), device_of(self._device).fp32_policy()

    def _network(self, precision: Precision) -> WithStage:
        network = WithStage(self._member.module, self._member.encoder, precision, self._device.type)
        network.eval()
        return network


def _inductor(path: Path) -> Run:
    from torch import _inductor as inductor

    loaded: Any = inductor.aoti_load_package(str(path))
    return lambda tiles: list(loaded(tiles.contiguous(memory_format=torch.channels_last)))


def _onnxruntime(path: Path) -> Run:
    from chorus.pipeline.members.kinds.onnx_session import open_session

    session = open_session(str(path), str(path), torch.device("cpu"), what="the graph", mend="use --backend eager")
    name = session.get_inputs()[0].name
    return lambda tiles: [torch.from_numpy(output) for output in session.run(None, {name: tiles.contiguous().numpy()})]


def _openvino(path: Path, precision: Precision) -> Run:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        # With pinning, several actors on a machine would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        request = core.compile_model(core.read_model(str(path)), "CPU", options).create_infer_request()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RefusedError(
            f"openvino {openvino.__version__} cannot run the network ({reason}); use --backend eager"
        ) from error

    def run(tiles: torch.Tensor) -> list[torch.Tensor]:
        # Without `share_inputs`, which computes in the input's memory and overwrites it.
        return [torch.from_numpy(output) for output in request.infer([tiles.contiguous().numpy()]).values()]

    return run
