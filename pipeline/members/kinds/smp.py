"""Members of segmentation-models-pytorch: an architecture by name and a state dict."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch.overrides import TorchFunctionMode

from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember, fetch_weights
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind, Network, PackedModule
from chorus.pipeline.members.safety.pickles import load_tensors
from chorus.pipeline.members.weight_file import WeightFile, read, stem

# Some of `torch.nn.init` are seen by a mode themselves, of others what they call.
_DRAWS = (
    torch.nn.init.kaiming_uniform_,
    torch.nn.init.normal_,
    torch.nn.init.uniform_,
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
)


class SmpMember(MemberEntry):
    """``{kind: smp, architecture: Unet, encoder: resnet18, options: {}, weights: m.safetensors, sha256: ...}``.

    `options` are further arguments of the architecture, e.g. ``decoder_channels``; with an encoder of timm
    (``tu-...``) also of that. Weights of half precision are computed with in float32.
    """

    kind: Literal["smp"]
    architecture: str
    encoder: str
    options: dict[str, Any] = Field(default_factory=dict)

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Build the network and load its weights; raise RefusedError if they do not fit."""
        outputs = asked.outputs.channels
        state = state_dict(asked.url, fetch_weights(asked.url, self.sha256, beside=asked.beside))
        module = filled(asked.url, self.architecture, self.encoder, asked.channels, outputs, self.options, state)
        return ModuleMember(module, device, self.activation)


def filled(
    url: str,
    architecture: str,
    encoder: str,
    channels: int,
    outputs: int,
    options: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
) -> torch.nn.Module:
    """Build the architecture with all weights of `state`; raise RefusedError as `network` and `fill` do.

    Parameters
    ----------
    url : of the weights, for messages
    state : tensors by name
    """
    with _Unfilled():
        module = network(url, architecture, encoder, channels, outputs, options)
    fill(url, module, state, f"{architecture}/{encoder}", channels, outputs)
    return module


class _Unfilled(TorchFunctionMode):
    """Skips random initialisation, which takes 0.3 s for a ResNet-34; only for networks that `fill` then fills.

    Constants are set as ever: a network may hold some that are no part of its state.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in _DRAWS:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def network(
    url: str, architecture: str, encoder: str, channels: int, outputs: int, options: Mapping[str, Any]
) -> torch.nn.Module:
    """Build the architecture with random weights; raise RefusedError, naming `url`, if the library has none such."""
    # Here, not above: it takes seconds to import, and only a process that hosts members needs it.
    import segmentation_models_pytorch as smp

    known = smp.MODEL_ARCHITECTURES_MAPPING.get(architecture.lower())
    if known is None:
        names = ", ".join(a.__name__ for a in smp.MODEL_ARCHITECTURES_MAPPING.values())
        raise RefusedError(
            f"{url}: segmentation-models-pytorch has no architecture {architecture}; correct it in ensemble.yaml to "
            f"one of {names}"
        )
    _check_options(url, known, encoder, options)
    try:
        with warnings.catch_warnings():
            # Advice to rename an encoder is of no use to who has weights of it already.
            warnings.filterwarnings("ignore", "`timm-` encoders are deprecated")
            module: torch.nn.Module = known(
                encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=outputs, **options
            )
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError) as error:
        raise RefusedError(
            f"{url}: segmentation-models-pytorch has no {architecture} with encoder {encoder} and "
            f"options {dict(options)} ({first_line(error)}); correct the member in ensemble.yaml"
        ) from error
    return module


def fill(
    url: str, module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str, channels: int, outputs: int
) -> None:
    """Put all weights of `state` into `module`; raise RefusedError if they do not fit `what`.

    Parameters
    ----------
    url : of the weights, for messages
    state : tensors by name
    what : describes the architecture in the message
    """
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise RefusedError(
            f"{url}: these weights do not fit {what} with {channels} input channels and {outputs} outputs "
            f"({_first_difference(error)}); correct architecture, encoder, options, channels or classes in "
            f"ensemble.yaml"
        ) from error
    if getattr(module, "classification_head", None) is not None:
        # A second head, for one label per image, makes the network answer with a pair.
        module.register_module("classification_head", None)


def state_dict(url: str, data: bytes) -> dict[str, torch.Tensor]:
    """Read the tensors by name of a weight file; raise RefusedError if it holds anything else.

    Returns
    -------
    dict[str, torch.Tensor]
        Of any shapes and dtypes, on the CPU.
    """
    loaded: Any
    try:
        loaded = load_safetensors(data) if url.endswith(".safetensors") else load_tensors(data)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        # torch's message for a pickle is a page on how to run it anyway.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
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


def _check_options(url: str, architecture: type, encoder: str, options: Mapping[str, Any]) -> None:
    """Refuse unknown options: the library passes them to the encoder, and only timm's encoders check them."""
    from segmentation_models_pytorch.encoders import is_equivalent_to_timm_universal

    if encoder.startswith("tu-") or is_equivalent_to_timm_universal(encoder):
        return
    # Not of the class: its `__new__` takes anything.
    parameters = inspect.signature(architecture.__init__).parameters.values()  # type: ignore[misc]
    ours = {"self", "encoder_name", "encoder_weights", "in_channels", "classes"}
    known = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD} - ours
    unknown = sorted(set(options) - known)
    if unknown:
        raise RefusedError(
            f"{url}: {architecture.__name__} has no option {', '.join(unknown)}; correct the member's options in "
            f"ensemble.yaml, which may be {', '.join(sorted(known))}"
        )


def _first_difference(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0])[:200]


def describe(url: str, network: Network) -> tuple[ModelDescription, ...]:
    """Describe a plain state dict as a member; raise RefusedError if `network` does not name its architecture."""
    if network.architecture is None or network.encoder is None:
        raise RefusedError(
            f"{url}: a plain state dict does not say which network it is of; add --architecture and --encoder of "
            f"segmentation-models-pytorch, and --option where it has others than usual"
        )
    data = read(url)
    state = state_dict(url, data)
    entry = SmpMember(
        kind="smp",
        architecture=network.architecture,
        encoder=network.encoder,
        options=dict(network.options),
        weights=url,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return (ModelDescription(entry=entry, name=stem(url), channels=_input_channels(url, state, entry)),)


def _input_channels(url: str, state: Mapping[str, torch.Tensor], entry: SmpMember) -> list[str]:
    """Infer generic names of input channels from the first convolution; empty if ambiguous."""
    usual = 3
    like = network(url, entry.architecture, entry.encoder, usual, 1, entry.options).state_dict()
    same = {name: tensor for name, tensor in like.items() if name in state and tensor.ndim == state[name].ndim > 1}
    widths = {state[name].shape[1] for name, tensor in same.items() if tensor.shape[1] == usual}
    return [f"channel-{c}" for c in range(widths.pop())] if len(widths) == 1 else []


def _recognises(file: WeightFile) -> bool:
    # A reference to torch's rebuilding of tensors, under names with dots.
    return any(name.endswith((".weight", ".bias")) for name in file.strings)


def _pack(entry: SmpMember, member: Member, asked: LoadRequest) -> PackedModule:
    import segmentation_models_pytorch as smp

    assert isinstance(member, ModuleMember)
    # A head for one label per image is not part of what a member answers.
    options = {name: value for name, value in entry.options.items() if name != "aux_params"}
    return PackedModule(
        module=member.module,
        library="segmentation_models_pytorch",
        callable=smp.MODEL_ARCHITECTURES_MAPPING[entry.architecture.lower()].__name__,
        arguments={
            "encoder_name": entry.encoder,
            "encoder_weights": None,
            "in_channels": asked.channels,
            "classes": asked.outputs.channels,
            **options,
        },
        requirement=f"segmentation-models-pytorch=={smp.__version__}",
    )


KIND = MemberKind(
    entry=SmpMember,
    describe=describe,
    own_suffixes=(".safetensors",),
    suffixes=(".pt", ".pth", ".safetensors"),
    recognises=_recognises,
    pack=_pack,
)
