"""The initial network of a fold, and its weights as a member's file."""

from __future__ import annotations

import logging

import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import one_line
from chorus.pipeline.members.contract import fetch_weights
from chorus.pipeline.members.kinds.smp import fill, network, state_dict
from chorus.pipeline.members.kinds.unet import first_names, under_all_names
from chorus.pipeline.training.settings import TrainSettings

_log = logging.getLogger(__name__)
_HEAD = "segmentation_head."


def new_network(settings: TrainSettings, seed: int) -> tuple[nn.Module, str]:
    """Return a network to train, on the CPU, and its initial weights: ``imagenet``, ``random``, or the URL of a member.

    Weights that are not loaded are random and depend on `seed` alone; torch's global generator keeps its state.

    Raises
    ------
    RefusedError
        If segmentation-models-pytorch has no such network, or the weights of `settings.start` do not fit.
    """
    module = random_network(settings, seed)
    if settings.start is not None:
        _take_over(module, settings)
        return module, storage.normalise(settings.start.weights)
    if settings.imagenet and _pretrain(module, settings):
        return module, "imagenet"
    return module, "random"


def random_network(settings: TrainSettings, seed: int) -> nn.Module:
    """Return a network with random weights.

    Raises
    ------
    RefusedError
        If segmentation-models-pytorch has no such network, or a library is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.axes == "zyx":
            return settings.unet.build(len(settings.channels), settings.outputs)
        architecture, encoder, options = settings.design
        where = f"{architecture}/{encoder}"
        return network(where, architecture, encoder, len(settings.channels), settings.outputs, options)


def _take_over(module: nn.Module, settings: TrainSettings) -> None:
    """Load the weights of `settings.start`; its head is left out if it has other outputs."""
    start = settings.start
    assert start is not None
    url = storage.normalise(start.weights)
    state = {key: value.float() if value.is_floating_point() else value for key, value in _state(url, start.sha256)}
    own = module.state_dict()
    if any(key.startswith(_HEAD) and key in own and own[key].shape != value.shape for key, value in state.items()):
        _log.warning("%s: has other classes than are to be learnt, so its last layer begins anew", url)
        state |= {key: value for key, value in own.items() if key.startswith(_HEAD)}
    fill(url, module, state, "/".join(settings.design[:2]), len(settings.channels), settings.outputs)


def _state(url: str, sha256: str | None) -> list[tuple[str, torch.Tensor]]:
    return list(state_dict(url, fetch_weights(url, sha256)).items())


def _pretrain(module: nn.Module, settings: TrainSettings) -> bool:
    """Load the ImageNet weights of the encoder; return whether they were available."""
    import segmentation_models_pytorch as smp

    architecture, encoder, options = settings.design
    with torch.random.fork_rng(devices=[]):
        try:
            whole = smp.create_model(
                architecture,
                encoder,
                encoder_weights=True if encoder.startswith("tu-") else "imagenet",
                in_channels=len(settings.channels),
                classes=settings.outputs,
                **options,
            )
        except Exception as error:  # noqa: BLE001 - of several download libraries; it is said, and recorded in the result
            _log.warning(
                "encoder %s: its ImageNet weights cannot be had (%s); it begins with random ones",
                encoder,
                one_line(error)[:200],
            )
            return False
    module.encoder.load_state_dict(whole.encoder.state_dict())  # type: ignore[union-attr]
    return True


def freeze_encoder(module: nn.Module, frozen: bool) -> None:
    """Freeze or unfreeze the encoder, except for its batch normalisation, which adapts to the new images."""
    encoder = module.encoder
    assert isinstance(encoder, nn.Module)
    encoder.requires_grad_(not frozen)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.requires_grad_(True)


def member_weights(module: nn.Module, dtype: str) -> bytes:
    """Return the network's state as a safetensors file; tensors that float16 cannot represent stay float32.

    Raises
    ------
    RefusedError
        If a weight is NaN or infinite.
    """
    tensors = {}
    names = first_names(module)
    for key, value in module.state_dict().items():
        if names[key] != key:
            continue
        one = value.detach().cpu()
        if dtype == "float16" and one.is_floating_point() and bool(torch.isfinite(one.half()).all()):
            one = one.half()
        if one.is_floating_point() and not bool(torch.isfinite(one).all()):
            raise RefusedError(f"training: weights {key} became NaN or infinite; lower the learning rate")
        tensors[key] = one.contiguous()
    data: bytes = save_safetensors(tensors)
    return data


def fill_from(module: nn.Module, data: bytes) -> None:
    """Load the state of a file that `member_weights` made of the same network."""
    state = under_all_names(module, state_dict("weights.safetensors", data))
    own = module.state_dict()
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
