"""Members that are TorchScript files: the door for networks that exist in that form."""

from __future__ import annotations

from typing import Literal

import torch

from chorus.pipeline.members.contract import LoadRequest, Member, fetch_weights
from chorus.pipeline.members.kind import MemberKind, PackedTorchScript
from chorus.pipeline.members.safety.script import check_source, load_script
from chorus.pipeline.members.safety.trial import check_trial
from chorus.pipeline.members.selection import ExportEntry, SelectedMember, describe_export


class TorchScriptMember(ExportEntry):
    """``{kind: torchscript, weights: m.pt, sha256: ...}``; a program, see `chorus.pipeline.members.safety.script`."""

    kind: Literal["torchscript"]

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network; raise RefusedError if the file is no TorchScript, or more than a network."""
        url = asked.url
        data = fetch_weights(url, self.sha256, beside=asked.beside)
        if not asked.trust_code:
            check_source(url, data)
            if not asked.tried:
                tile = torch.zeros((1, asked.channels, *asked.shape))
                check_trial(url, data, [self.given(tile).shape])
        module = load_script(url, data, device, trust_code=asked.trust_code)
        return SelectedMember(module, device, self, url)


KIND = MemberKind(
    entry=TorchScriptMember,
    volumes=True,
    describe=lambda url, _: describe_export(TorchScriptMember, "torchscript", url),
    suffixes=(".pt",),
    recognises=lambda file: bool(file.code),
    pack=lambda entry, _, asked: PackedTorchScript(fetch_weights(asked.url, entry.sha256)),
)
