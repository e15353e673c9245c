"""Networks of BioImage.IO packages from their weights: torch modules, TorchScript and ONNX graphs.

Code that a package brings along runs only where it is trusted; an architecture of a library must be a network class of
a well-known library, or one of its functions that make networks: any other callable could do anything.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.members.kinds.bioimageio.package import Package, WeightFiles
from chorus.pipeline.members.kinds.onnx_session import open_session, session_errors
from chorus.pipeline.members.safety.pickles import load_tensors
from chorus.pipeline.members.safety.script import load_script

LIBRARIES = ("segmentation_models_pytorch", "torchvision", "monai", "timm", "cellpose")
_MAKERS = {("segmentation_models_pytorch", "create_model"), ("timm", "create_model")}
"""Functions that make networks and nothing else."""


class Network(Protocol):
    """A package's network, from all of its input tensors to all of its outputs."""

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run the network once.

        Parameters
        ----------
        inputs : one tensor per input of the package, with the input's axes and dtype, on the network's device

        Returns
        -------
        Sequence[torch.Tensor]
            One tensor per output of the package, with the output's axes.
        """
        ...

    def parameters_bytes(self) -> int:
        """Return the bytes of weights that the network keeps on its device."""
        ...


class TorchNetwork:
    """A module, TorchScript or not, in evaluation mode."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._module = module.to(device)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run the module; see `Network`.

        Parameters
        ----------
        inputs : one tensor per input of the package, with the input's axes and dtype, on the module's device

        Returns
        -------
        Sequence[torch.Tensor]
            One tensor per output of the package; the values of a dictionary in its order.
        """
        answer = self._module(*inputs)
        if isinstance(answer, dict):  # as torchvision's
            return list(answer.values())
        return list(answer) if isinstance(answer, list | tuple) else [answer]

    def parameters_bytes(self) -> int:
        """Return the bytes of the module's parameters and buffers."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)


class OnnxNetwork:
    """An ONNX graph on onnxruntime, on the GPU where its build can."""

    def __init__(self, session: Any, size: int, device: torch.device) -> None:
        self._session, self._size, self._device = session, size, device
        self._names = [entry.name for entry in session.get_inputs()]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run the graph; see `Network`.

        Parameters
        ----------
        inputs : one tensor per input of the graph, with the input's axes and dtype, on any device

        Returns
        -------
        Sequence[torch.Tensor]
            One tensor per output of the graph, copied to the network's device.

        Raises
        ------
        RuntimeError
            If onnxruntime cannot run the graph on these inputs.
        """
        arrays = dict(zip(self._names, (tensor.cpu().numpy() for tensor in inputs), strict=True))
        try:
            answers = self._session.run(None, arrays)
        except session_errors() as error:
            raise RuntimeError(first_line(error)) from error
        return [torch.from_numpy(np.asarray(answer)).to(self._device) for answer in answers]

    def parameters_bytes(self) -> int:
        """Return the size of the graph and its weights in bytes."""
        return self._size


def load_network(package: Package, files: WeightFiles, device: torch.device, *, trust_code: bool) -> Network:
    """Load the network of `files` on `device`; raise RefusedError if it cannot be loaded or is not trusted."""
    if files.format == "onnx":
        return _onnx(package, files, device)
    if files.format == "torchscript":
        where = f"{package.url}: {files.entry.source}"
        return TorchNetwork(load_script(where, files.weights, device, trust_code=trust_code), device)
    return TorchNetwork(_state_dict(package, files, trust_code), device)


def _onnx(package: Package, files: WeightFiles, device: torch.device) -> OnnxNetwork:
    # A graph may name files with data: it finds those of its package, and no others.
    with tempfile.TemporaryDirectory() as folder:
        for name, data in {**files.others, "graph.onnx": files.weights}.items():
            Path(folder, name).write_bytes(data)
        graph, mend = str(Path(folder, "graph.onnx")), "update onnxruntime, or choose another `format`"
        session = open_session(package.url, graph, device, what=str(files.entry.source), mend=mend)
    return OnnxNetwork(session, len(files.weights) + sum(map(len, files.others.values())), device)


def _state_dict(package: Package, files: WeightFiles, trust_code: bool) -> torch.nn.Module:
    architecture = files.entry.architecture
    where = f"{package.url}: {architecture.callable}"
    make, options = _architecture(package, architecture, trust_code), dict(architecture.kwargs)
    if getattr(architecture, "import_from", "").split(".")[0] == "segmentation_models_pytorch":
        options["encoder_weights"] = None  # they would be fetched only to be replaced
    try:
        module = make(**options)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        raise RefusedError(
            f"{where} cannot be made with {options} ({first_line(error)}); mend the package, or install "
            "the versions that it names"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise RefusedError(f"{where} makes no torch module; mend the package")
    try:
        state = load_tensors(files.weights)
        module.load_state_dict(state, strict=files.entry.strict)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            f"{package.url}: {files.entry.source} is no plain state dict, and Chorus never runs pickled code; save "
            "`model.state_dict()`"
        ) from error
    except (RuntimeError, TypeError, ValueError, EOFError, KeyError) as error:
        raise RefusedError(
            f"{package.url}: {files.entry.source} does not fit {architecture.callable} ({_difference(error)}); "
            "mend the package"
        ) from error
    return module


def _architecture(package: Package, architecture: Any, trust_code: bool) -> Any:
    """Import the class or function that makes the network, only if that is allowed."""
    if hasattr(architecture, "source"):
        if not trust_code:
            raise RefusedError(
                f"{package.url}: its architecture is code of its own ({architecture.source}); read it, then run with "
                "--trust-code, or choose another `format`"
            )
        return _imported(package, architecture)
    library = architecture.import_from
    name = f"{library}.{architecture.callable}"
    untrusted = RefusedError(
        f"{package.url}: its architecture {name} is no network of {', '.join(LIBRARIES)}; look at what it does, then "
        "run with --trust-code, or choose another `format`"
    )
    if library.split(".")[0] not in LIBRARIES and not trust_code:
        raise untrusted
    attribute = _imported(package, architecture)
    if not trust_code and not _makes_networks(library, architecture.callable, attribute):
        raise untrusted
    return attribute


def _imported(package: Package, architecture: Any) -> Any:
    from bioimageio.core.digest_spec import import_callable

    try:
        return import_callable(architecture)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise RefusedError(
            f"{package.url}: its architecture {architecture.callable} cannot be imported ({first_line(error)}); "
            "install the library that it is from, or choose another `format`"
        ) from error


def _makes_networks(library: str, name: Any, attribute: Any) -> bool:
    """Return whether a callable of a well-known library is a network's class or a function that makes one."""
    if inspect.isclass(attribute):
        return issubclass(attribute, torch.nn.Module) and attribute.__module__.split(".")[0] in LIBRARIES
    if library.split(".")[0] == "torchvision":
        return str(name) in importlib.import_module("torchvision.models").list_models()
    return (library, str(name)) in _MAKERS


def _difference(error: BaseException) -> str:
    """Return the first key that differs, which follows the headline of torch's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return first_line(lines[1] if len(lines) > 1 else error)
