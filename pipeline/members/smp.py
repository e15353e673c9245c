"""Members of segmentation-models-pytorch: an architecture by name and a state dict."""

from __future__ import annotations

import io
import pickle
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from pipeline.errors import RefusedError
from pipeline.members.contract import Member, ModuleMember, fetch_weights


class SmpMember(BaseModel):
    """``{kind: smp, architecture: Unet, encoder: resnet18, options: {}, weights: m.safetensors, sha256: ...}``.

    `options` are further arguments of the architecture, e.g. ``decoder_channels``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["smp"]
    architecture: str
    encoder: str
    options: dict[str, Any] = {}
    weights: str
    sha256: str | None = None

    def load(self, url: str, *, channels: int, outputs: int, device: torch.device) -> Member:
        """The network with the weights at `url`; raises RefusedError where they do not fit it."""
        state = _state_dict(url, fetch_weights(url, self.sha256))
        # Here, not above: it takes seconds to import, and only a process that hosts members needs it.
        import segmentation_models_pytorch as smp

        try:
            module = smp.create_model(
                self.architecture,
                self.encoder,
                encoder_weights=None,
                in_channels=channels,
                classes=outputs,
                **self.options,
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RefusedError(
                f"{url}: segmentation-models-pytorch has no {self.architecture} with encoder {self.encoder} and "
                f"options {self.options} ({_first_line(error)}); correct the member in ensemble.yaml"
            ) from error
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise RefusedError(
                f"{url}: these weights do not fit {self.architecture}/{self.encoder} with {channels} input channels "
                f"and {outputs} outputs ({_first_difference(error)}); correct architecture, encoder, options, "
                f"channels or classes in ensemble.yaml"
            ) from error
        return ModuleMember(module, device)


def _state_dict(url: str, data: bytes) -> dict[str, torch.Tensor]:
    loaded: Any
    try:
        if url.endswith(".safetensors"):
            loaded = load_safetensors(data)
        else:
            # weights_only: tensors and plain containers; anything that would run code is refused by torch.
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        # What torch says of a pickle is a page on how to run it all the same.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({_first_line(error)})"
        raise RefusedError(
            f"{url}: not a plain state dict{reason}; Chorus loads tensors only and never runs pickled "
            f"code: save it with safetensors or `torch.save(model.state_dict(), ...)`"
        ) from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise RefusedError(f"{url}: holds no state dict; save `model.state_dict()`")
    return loaded


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _first_difference(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0])[:200]
