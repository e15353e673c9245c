"""Sessions of onnxruntime: on the member's device, deterministic, without spinning threads."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.errors import RefusedError

EXTRA = "pip install 'chorus-bioimage[onnx]'"


def open_session(url: str, graph: bytes | str, device: torch.device, *, what: str, mend: str) -> Any:
    """Open an ``onnxruntime.InferenceSession`` of `graph`, given as bytes or as a path.

    Parameters
    ----------
    what, mend : of the sentence where the graph cannot be run: which one it is, and what to do about it

    Raises
    ------
    RefusedError
        where onnxruntime is missing, has no such device, or does not know the graph's operators or opset
    """
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as error:
        raise RefusedError(f"{url}: needs onnxruntime; {EXTRA}") from error
    provider, how = device_of(session_device(device)).onnx_provider() or ("", {})
    if provider not in onnxruntime.get_available_providers():
        raise RefusedError(
            f"{url}: this onnxruntime cannot run on {device.type}; install onnxruntime-gpu, or run on the CPU"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # what goes wrong is raised, too
    # Threads that spin while they wait starve the other processes of the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[(provider, how)])
    except session_errors() as error:
        reason = " ".join(str(error).split())[:300]
        raise RefusedError(
            f"{url}: onnxruntime {onnxruntime.__version__} cannot run {what} ({reason}); {mend}"
        ) from error


def session_device(device: torch.device) -> torch.device:
    """Return the device of sessions for members on `device`: the same, or the host if onnxruntime has no provider."""
    return device if device_of(device).onnx_provider() else torch.device("cpu")


def session_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that onnxruntime raises for a graph that it cannot load or run."""
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented,
        state.RuntimeException,
    )  # fmt: skip
