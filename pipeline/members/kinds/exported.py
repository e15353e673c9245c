"""Members that are programs of ``torch.export`` (``.pt2``)."""

from __future__ import annotations

import io
import zipfile
from typing import Any, Literal

import torch

from chorus.pipeline.core.outputs import Activation
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member, fetch_weights
from chorus.pipeline.members.kind import MemberKind
from chorus.pipeline.members.selection import ExportEntry, InputShape, Size, describe_export


class ExportedMember(ExportEntry):
    """``{kind: exported, weights: m.pt2, sha256: ...}``; loads with ``--trust-code`` alone.

    A ``.pt2`` may run code when it is loaded: `torch.export.load` unpickles constants (``pickle.loads`` of opaque
    objects, ``torch.load(..., weights_only=False)`` of tensors, `torch.export.pt2_archive._package`) and evaluates
    expressions of sizes with `sympy.sympify` (`torch._export.serde.serialize`), as read in torch 2.15; its
    documentation says never to load one from an untrusted source.
    """

    kind: Literal["exported"]

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network; raise RefusedError if it is not trusted, not such a file or does not fit."""
        url = asked.url
        data = fetch_weights(url, self.sha256, beside=asked.beside)
        if not asked.trust_code:
            raise RefusedError(
                f"{url}: a torch.export file may run code when it is loaded; run with --trust-code if you trust its "
                f"author, or export it as ONNX"
            )
        program = _program(url, data)
        inputs = program.graph_signature.user_inputs
        if len(inputs) != 1:
            raise RefusedError(f"{url}: takes {len(inputs)} inputs; export it with one")
        shape = InputShape.checked(url, _sizes(program, str(inputs[0])), self, asked)
        return _Program(self, url, _moved(program, device), shape)


class _Program:
    """An exported program as a member; it is in the mode that it was exported in, for good."""

    def __init__(self, entry: ExportedMember, url: str, program: torch.export.ExportedProgram, shape: InputShape):
        self.activation: Activation | None = entry.activation
        self.entry, self.url, self.shape = entry, url, shape
        self.module = program.module()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        answers = [self._run(batch) for batch in self.shape.batches(self.entry.given(tiles))]
        return self.entry.taken(self.url, torch.cat(answers) if len(answers) > 1 else answers[0])

    def parameters_bytes(self) -> int:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _run(self, tiles: torch.Tensor) -> torch.Tensor:
        try:
            answer = self.module(tiles)
        except AssertionError as error:  # a guard on the sizes that it was exported for
            raise RuntimeError(str(error)) from error
        return self.entry.chosen(self.url, answer)


def _program(url: str, data: bytes) -> torch.export.ExportedProgram:
    try:
        return torch.export.load(io.BytesIO(data))
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError, zipfile.BadZipFile) as error:
        raise RefusedError(
            f"{url}: torch {torch.__version__} cannot load it as a torch.export file; save it with "
            f"`torch.export.save` of this version"
        ) from error


def _moved(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _sizes(program: torch.export.ExportedProgram, name: str) -> list[Size]:
    """Return the sizes of the input's dimensions; None where the program takes any."""
    node: Any = next(node for node in program.graph.nodes if node.name == name)
    return [length if isinstance(length, int) else None for length in node.meta["val"].shape]


KIND = MemberKind(
    entry=ExportedMember,
    volumes=True,
    describe=lambda url, _: describe_export(ExportedMember, "exported", url),
    own_suffixes=(".pt2",),
    suffixes=(".pt2",),
)
