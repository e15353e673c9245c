"""Members that are ONNX files, run by onnxruntime on the member's device."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.outputs import Activation
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member, fetch_weights
from chorus.pipeline.members.kind import MemberKind, PackedOnnx
from chorus.pipeline.members.kinds.onnx_session import EXTRA, open_session, session_device, session_errors
from chorus.pipeline.members.selection import ExportEntry, InputShape, describe_export

TYPES = {"tensor(float)": (torch.float32, np.float32), "tensor(float16)": (torch.float16, np.float16)}
"""Dtypes of inputs and outputs, by onnxruntime's names."""


class OnnxMember(ExportEntry):
    """``{kind: onnx, weights: m.onnx, sha256: ...}``; a graph of known operators, it holds no code.

    A file that keeps its weights in other files beside it is refused: their names would choose what is read.
    """

    kind: Literal["onnx"]

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network; raise RefusedError if it cannot run or does not fit the ensemble."""
        url = asked.url
        onnx = _onnx(url)
        data = fetch_weights(url, self.sha256, beside=asked.beside)
        size = _bytes_of_weights(url, data, onnx)
        mend = "export it with operators and an opset that it knows"
        session = open_session(url, data, device, what="it", mend=mend)
        if len(session.get_inputs()) != 1:
            names = ", ".join(i.name for i in session.get_inputs())
            raise RefusedError(f"{url}: takes {len(session.get_inputs())} inputs ({names}); export it with one")
        given = session.get_inputs()[0]
        outputs = session.get_outputs()
        taken = outputs[self.position(url, [output.name for output in outputs])]
        for tensor in (given, taken):
            if tensor.type not in TYPES:
                raise RefusedError(f"{url}: {tensor.name} is a {tensor.type}; export it with float32 or float16")
        shape = InputShape.checked(url, [_size(length) for length in given.shape], self, asked)
        return _OnnxNetwork(self, url, session, given, taken, shape, size, session_device(device))


@dataclass
class _OnnxNetwork:
    """A session whose input and output are in torch's memory, so that on a GPU no data are copied to the host.

    Attributes
    ----------
    given, taken : its input and the output that was chosen
    size : bytes of its weights
    device : where it computes: the members' own, or the host
    answers : shape of the output for each shape of the input so far
    """

    entry: OnnxMember
    url: str
    session: Any
    given: Any
    taken: Any
    shape: InputShape
    size: int
    device: torch.device
    answers: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.activation: Activation | None = self.entry.activation

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        answers = [self._run(batch) for batch in self.shape.batches(self.entry.given(tiles))]
        return self.entry.taken(self.url, torch.cat(answers) if len(answers) > 1 else answers[0])

    def parameters_bytes(self) -> int:
        return self.size

    def _run(self, tiles: torch.Tensor) -> torch.Tensor:
        dtype, numpy_dtype = TYPES[self.given.type]
        home, tiles = tiles.device, tiles.to(self.device, dtype).contiguous()
        shape = tuple(tiles.shape)
        device = (self.device.type, self.device.index or 0)
        binding = self.session.io_binding()
        binding.bind_input(self.given.name, *device, numpy_dtype, shape, tiles.data_ptr())
        if shape not in self.answers:
            binding.bind_output(self.taken.name)
            self._go(binding)
            self.answers[shape] = tuple(binding.get_outputs()[0].shape())
        dtype, numpy_dtype = TYPES[self.taken.type]
        answer = torch.empty(self.answers[shape], dtype=dtype, device=self.device)
        binding.bind_output(self.taken.name, *device, numpy_dtype, tuple(answer.shape), answer.data_ptr())
        self._go(binding)
        return answer.to(home)

    def _go(self, binding: Any) -> None:
        device_of(self.device).finish()  # onnxruntime works on a stream of its own
        try:
            self.session.run_with_iobinding(binding)
        except session_errors() as error:
            raise RuntimeError(" ".join(str(error).split())) from error


def _onnx(url: str) -> ModuleType:
    try:
        return import_module("onnx")
    except ImportError as error:
        raise RefusedError(f"{url}: needs onnx; {EXTRA}") from error


def _bytes_of_weights(url: str, data: bytes, onnx: ModuleType) -> int:
    """Count the bytes of the graph's tensors; raise RefusedError if it is damaged or they are in other files."""
    try:
        graph = onnx.load_from_string(data).graph
    except import_module("google.protobuf.message").DecodeError as error:
        raise RefusedError(f"{url}: not an ONNX file; export it again, or correct the path") from error
    if not graph.node:
        raise RefusedError(f"{url}: not an ONNX file, or one with an empty graph; export it again")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise RefusedError(
            f"{url}: its weights are in another file; put them into one with `onnx.save(onnx.load(path), path)`"
        )
    return sum(_bytes(tensor, onnx) for tensor in graph.initializer)


def _bytes(tensor: Any, onnx: ModuleType) -> int:
    item: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return item * int(np.prod(tensor.dims, dtype=np.int64))


def _size(length: int | str | None) -> int | None:
    """Return the size of a dimension; None if it is a name."""
    return length if isinstance(length, int) else None


KIND = MemberKind(
    entry=OnnxMember,
    volumes=True,
    describe=lambda url, _: describe_export(OnnxMember, "onnx", url),
    own_suffixes=(".onnx",),
    suffixes=(".onnx",),
    pack=lambda entry, _, asked: PackedOnnx(fetch_weights(asked.url, entry.sha256)),
)
