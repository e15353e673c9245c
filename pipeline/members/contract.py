"""What Chorus asks of a trained network, and how its weights are fetched and checked."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch

from pipeline import storage
from pipeline.errors import RefusedError


class Member(Protocol):
    """One trained network of an ensemble, on one device.

    Called with a batch of normalised tiles, (batch, channels, y, x) float32, it returns what its last layer
    says, (batch, outputs, y, x): logits, or probabilities where the ensemble's activation is ``none``.
    """

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor: ...

    def parameters_bytes(self) -> int:
        """Bytes of weights that this member keeps on its device."""
        ...


class ModuleMember:
    """A member that is a torch module, in evaluation mode and with channels last, where convolutions are fastest."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        module.eval()
        for parameter in module.parameters():  # TorchScript modules have no `requires_grad_` of their own
            parameter.requires_grad_(False)
        self.module = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.module(tiles)
        return result

    def parameters_bytes(self) -> int:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)


def fetch_weights(url: str, sha256: str | None) -> bytes:
    """The bytes of a weight file; raises RefusedError where it is missing or not the one that was meant."""
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(
            f"weights {storage.explain(error, url) or url}; a member's `weights` is relative to ensemble.yaml"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is None:
        raise RefusedError(f"{url}: its member has no sha256 in ensemble.yaml; add `sha256: {found}`")
    if found != sha256.lower():
        raise RefusedError(
            f"{url}: sha256 is {found}, ensemble.yaml says {sha256}; restore the file or correct the hash"
        )
    return data
