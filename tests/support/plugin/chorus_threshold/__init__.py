"""A kind of member that another package brings: pixels above a threshold are foreground."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import torch

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember, fetch_weights
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind, Network
from chorus.pipeline.members.weight_file import read, stem
from chorus.pipeline.preprocessing.normalisation import Unchanged


class ThresholdMember(MemberEntry):
    """``{kind: threshold, weights: m.threshold, sha256: ..., sharpness: 0.01}``; its file is JSON, ``{"at": 500}``."""

    kind: Literal["threshold"]
    sharpness: float = 0.01

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """See `MemberEntry.load`."""
        at = json.loads(fetch_weights(asked.url, self.sha256))["at"]
        if asked.channels != 1:
            raise RefusedError(f"{asked.url}: a threshold is of one channel, the ensemble has {asked.channels}")
        return ModuleMember(_Threshold(float(at), self.sharpness), device, self.activation)


class _Threshold(torch.nn.Module):
    def __init__(self, at: float, sharpness: float) -> None:
        super().__init__()
        self.register_buffer("at", torch.tensor(at))
        self.sharpness = sharpness

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        above = (tiles - self.at) * self.sharpness
        return torch.cat([-above, above], dim=1)


def _describe(url: str, network: Network) -> tuple[ModelDescription, ...]:
    entry = ThresholdMember(kind="threshold", weights=url, sha256=hashlib.sha256(read(url)).hexdigest())
    return (
        ModelDescription(
            entry=entry,
            name=stem(url),
            channels=["channel-0"],
            classes=["background", "bright"],
            activation="softmax",
            tile=64,
            normalisation=Unchanged(kind="none"),
        ),
    )


KIND = MemberKind(entry=ThresholdMember, describe=_describe, own_suffixes=(".threshold",), suffixes=(".threshold",))
