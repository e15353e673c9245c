"""Members that are TorchScript files: the door for networks that exist in that form."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from pipeline.errors import RefusedError
from pipeline.members.contract import Member, ModuleMember, fetch_weights


class TorchScriptMember(BaseModel):
    """``{kind: torchscript, weights: m.pt, sha256: ...}``; loading reads a graph, it unpickles no Python."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["torchscript"]
    weights: str
    sha256: str | None = None

    def load(self, url: str, *, channels: int, outputs: int, device: torch.device) -> Member:
        """The network at `url`; raises RefusedError where it is no TorchScript file."""
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
        return ModuleMember(module, device)
