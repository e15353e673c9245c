"""Members that are TorchScript files: the door for networks that exist in that form."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import torch

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import Asked, Member, ModuleMember, fetch_weights
from chorus.pipeline.members.kind import MemberKind, PackedTorchScript
from chorus.pipeline.members.selection import ExportEntry, describe_export


class TorchScriptMember(ExportEntry):
    """``{kind: torchscript, weights: m.pt, sha256: ...}``; loading reads a graph, it unpickles no Python."""

    kind: Literal["torchscript"]

    def load(self, asked: Asked, device: torch.device) -> Member:
        """The network; raises RefusedError where the file is no TorchScript."""
        url = asked.url
        data = fetch_weights(url, self.sha256)
        try:
            with warnings.catch_warnings():
                # Deprecated for what is written anew; these files exist and must go on loading.
                warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
                module = torch.jit.load(io.BytesIO(data), map_location=device)
        except (RuntimeError, ValueError) as error:
            raise RefusedError(
                f"{url}: not a TorchScript file; export it with `torch.jit.save`, or name its architecture with "
                f"`kind: smp`"
            ) from error
        return _TorchScript(module, device, self, url)


class _TorchScript(ModuleMember):
    """Whose outputs are known only once it answers."""

    def __init__(self, module: torch.nn.Module, device: torch.device, entry: TorchScriptMember, url: str) -> None:
        super().__init__(module, device, entry.activation)
        self.entry, self.url = entry, url

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        answer = self.module(self.entry.given(tiles))
        return self.entry.taken(self.url, self.entry.chosen(self.url, answer))


KIND = MemberKind(
    entry=TorchScriptMember,
    describe=lambda url, _: describe_export(TorchScriptMember, "torchscript", url),
    suffixes=(".pt",),
    recognises=lambda file: bool(file.code),
    pack=lambda entry, _, asked: PackedTorchScript(fetch_weights(asked.url, entry.sha256)),
)
