"""Members that deepflash2 trained: its checkpoints (``.pth``) and the networks of its inference ensembles (``.pt``).

References
----------
https://github.com/matjesg/deepflash2: ``models.save_smp_model`` (what a checkpoint holds), ``data._read_img`` and
``BaseDataset.compute_stats`` (which pixels its statistics are of), ``inference.InferenceEnsemble``.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.outputs import CLASSES
from chorus.pipeline.core.provenance import About
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember, fetch_weights
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind
from chorus.pipeline.members.kinds import smp
from chorus.pipeline.members.safety.pickles import load_tensors
from chorus.pipeline.members.safety.script import check_source, is_script, load_script
from chorus.pipeline.members.safety.trial import check_trial
from chorus.pipeline.members.weight_file import WeightFile
from chorus.pipeline.preprocessing.normalisation import ChannelScaling, apply, dtype_divisor
from chorus.pipeline.preprocessing.preparation import Measure, Preparation, Statistics

TILE = 512
"""Edge of a tile in deepflash2 unless its settings say otherwise; a checkpoint does not tell."""
# Names in what `save_smp_model` pickles, and attributes of an inference ensemble.
_CHECKPOINT = {"model", "arch"}
_INFERENCE_ENSEMBLE = ("models", "norm", "num_classes", "tile_shape")
_MAKE = "name its architecture with `kind: smp` instead"


class Deepflash2Member(MemberEntry):
    """``{kind: deepflash2, weights: Unet_resnet34_2classes-fold1.pth, sha256: ...}``; all else is read from the file.

    `model` chooses a network of an inference ensemble (``ensemble_....pt``), which holds several: each is a member of
    its own, so that what they disagree on is seen.
    """

    kind: Literal["deepflash2"]
    model: int | None = None

    def preparation(self, asked: LoadRequest) -> Preparation | None:
        """Return deepflash2's normalisation with the file's statistics; None if a checkpoint was saved without."""
        return _facts(asked.url, self.sha256, self.model, asked.trust_code, asked.beside).preparation

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network; raise RefusedError if the file is not deepflash2's or does not fit the ensemble."""
        url = asked.url
        if asked.outputs.roles != (CLASSES,):
            more = ", ".join(role.name for role in asked.outputs.roles if role != CLASSES) or "output without classes"
            raise RefusedError(f"{url}: deepflash2 networks give no {more}; correct `outputs` in ensemble.yaml")
        data = fetch_weights(url, self.sha256, beside=asked.beside)
        if is_script(data) and not asked.trust_code:
            check_source(url, data)
            if not asked.tried:
                check_trial(url, data, [(1, asked.channels, asked.edge, asked.edge)], child=self.model or 0)
        module, facts = _read(url, data, self.model, asked.trust_code)
        if facts.channels is not None and facts.channels != asked.channels:
            raise RefusedError(
                f"{url}: was trained on {facts.channels} channels, ensemble.yaml has {asked.channels}; correct "
                f"input.channels"
            )
        # deepflash2 knows no other last layer (`mode` multiclass, softmax in all of its predictions).
        return ModuleMember(module, device, self.activation or "softmax")


@dataclass(frozen=True)
class Deepflash2Input:
    """(x - mean) / std per channel, in the units that deepflash2 took its statistics in.

    Until 0.1 images are divided by the maximum of their integer type, so `top` is 1; since 0.2 statistics are of 8-bit
    images, so `top` is 255. Integers of another type are brought to that range by their type's maximum (uint16 to 255
    by 255 / 65535), floating-point pixels are taken to be in it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: Literal[1, 255]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    @property
    def measures(self) -> frozenset[Measure]:
        """None: the statistics are in the file."""
        return frozenset()

    def apply(self, raw: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """Standardise each pixel; see `chorus.pipeline.preprocessing.preparation.Preparation.apply`.

        Parameters
        ----------
        raw : (channels, y, x) of any real dtype
        statistics : not used

        Returns
        -------
        NDArray[np.float32]
            (channels, y, x).
        """
        stored = dtype_divisor(raw.dtype) / self.top if raw.dtype.kind in "iu" else 1.0
        return apply(raw, ChannelScaling.of((m * stored for m in self.mean), (s * stored for s in self.std)))


@dataclass(frozen=True)
class _Facts:
    """Metadata of a file, beside its weights; None where it has none."""

    architecture: str
    encoder: str
    channels: int | None
    classes: int
    tile: int
    preparation: Deepflash2Input | None
    remark: str = ""


def describe(url: str, *, trust_code: bool = False) -> tuple[ModelDescription, ...]:
    """Describe the members in a file of deepflash2: one of a checkpoint, each network of an inference ensemble.

    An inference ensemble is a program; one that does more than compute is read only with `trust_code`.

    Raises
    ------
    RefusedError
        If the file is missing or not deepflash2's.
    """
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"weights {failure_sentence(error, url) or url}; correct the path") from error
    digest = hashlib.sha256(data).hexdigest()
    script = _script(url, data, trust_code)
    if script is None:
        return (_described(url, digest, None, _of_checkpoint(url, data)[1]),)
    networks = range(len(list(script.models.children())))
    return tuple(_described(url, digest, i, _of_inference_ensemble(url, script, i)[1]) for i in networks)


def _described(url: str, digest: str, model: int | None, facts: _Facts) -> ModelDescription:
    name = storage.basename(url).rsplit(".", 1)[0]
    return ModelDescription(
        entry=Deepflash2Member(kind="deepflash2", weights=url, sha256=digest, model=model),
        name=name if model is None else f"{name}-{model}",
        channels=[f"channel-{c}" for c in range(facts.channels or 0)],
        classes=["background", *(f"class-{k}" for k in range(1, facts.classes))],
        activation="softmax",
        tile=facts.tile,
        about=About(
            description=f"deepflash2: {facts.architecture}/{facts.encoder}" if facts.encoder else "deepflash2",
            limits=facts.remark,
        ),
    )


@lru_cache(maxsize=256)
def _facts(url: str, sha256: str | None, model: int | None, trust_code: bool, beside: bool) -> _Facts:
    """Read once in a process: a preparation is asked for more often than weights are loaded."""
    return _read(url, fetch_weights(url, sha256, beside=beside), model, trust_code)[1]


def _read(url: str, data: bytes, model: int | None, trust_code: bool) -> tuple[torch.nn.Module, _Facts]:
    script = _script(url, data, trust_code)
    if script is not None:
        return _of_inference_ensemble(url, script, model)
    if model is not None:
        raise RefusedError(f"{url}: holds one network, not several; remove `model` from its member in ensemble.yaml")
    return _of_checkpoint(url, data)


def _of_checkpoint(url: str, data: bytes) -> tuple[torch.nn.Module, _Facts]:
    """Read what ``save_smp_model`` wrote: ``{model: state dict, arch, stats, encoder_name, in_channels, ...}``."""
    content = _checkpoint(url, data)
    try:
        state, architecture = dict(content.pop("model")), str(content.pop("arch"))
        statistics = content.pop("stats", None)
        encoder = str(content.pop("encoder_name"))
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(
            f"{url}: no checkpoint of deepflash2 0.1.4 or later (it lacks {error}); networks of earlier versions "
            f"cannot be built: train again, or {_MAKE}"
        ) from error
    content.pop("encoder_weights", None)
    channels, classes = int(content.pop("in_channels", 3)), int(content.pop("classes", 1))
    module = smp.filled(url, architecture, encoder, channels, classes, _renamed(content), state)
    preparation = None if statistics is None else _preparation(url, statistics, channels)
    return module, _Facts(architecture, encoder, channels, classes, TILE, preparation)


def _of_inference_ensemble(
    url: str, script: torch.jit.ScriptModule, model: int | None
) -> tuple[torch.nn.Module, _Facts]:
    """Extract one network of the inference ensemble, which tiles, augments and averages by itself, as Chorus does."""
    networks = list(script.models.children())
    if model is None or not 0 <= model < len(networks):
        raise RefusedError(
            f"{url}: holds {len(networks)} networks; add a member for each, with `model: 0` to "
            f"`model: {len(networks) - 1}`"
        )
    mean, std = tuple(map(float, script.norm.mean)), tuple(map(float, script.norm.std))
    scale = float(getattr(script.tiler, "scale", 1.0)) if hasattr(script, "tiler") else 1.0
    remark = f"deepflash2 shrank its images {scale:g}-fold: set input.pixel_size_um accordingly" if scale != 1 else ""
    facts = _Facts(
        architecture="",
        encoder="",
        channels=len(mean),
        classes=int(script.num_classes),
        tile=int(next(iter(script.tile_shape))),
        preparation=_preparation(url, {"channel_means": mean, "channel_stds": std}, len(mean)),
        remark=remark,
    )
    return networks[model], facts


def _script(url: str, data: bytes, trust_code: bool) -> torch.jit.ScriptModule | None:
    """Load the TorchScript module in a file; None if there is none or it is not deepflash2's ensemble."""
    if not is_script(data):
        return None  # a checkpoint, or nothing of deepflash2's: reading it as one says which
    module = load_script(url, data, torch.device("cpu"), trust_code=trust_code)
    needed = ("models", "norm", "num_classes", "tile_shape")
    return module if all(hasattr(module, name) for name in needed) else None


def _checkpoint(url: str, data: bytes) -> dict[str, Any]:
    """Read the saved dictionary: tensors, plain values and NumPy's numbers; nothing that runs code."""
    try:
        content = load_tensors(data, numpy=True)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            f"{url}: not a checkpoint or inference ensemble of deepflash2, or one with more than tensors and numbers "
            f"in it, which Chorus does not run; save it again with deepflash2's `save_smp_model`"
        ) from error
    if not isinstance(content, dict):
        raise RefusedError(f"{url}: no checkpoint of deepflash2, which is a dictionary; {_MAKE}")
    return dict(content)


def _preparation(url: str, statistics: object, channels: int) -> Deepflash2Input:
    """Read the statistics: a pair (means, stds) of pixels up to 1, or a dictionary of those of pixels up to 255."""
    try:
        if isinstance(statistics, Mapping):
            given, top = (statistics["channel_means"], statistics["channel_stds"]), 255
        elif isinstance(statistics, Sequence | np.ndarray) and len(statistics) == 2:
            given, top = (statistics[0], statistics[1]), 1
        else:
            raise TypeError(type(statistics).__name__)
        mean, std = (np.asarray(values, np.float64).reshape(-1) for values in given)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{url}: its `stats` are not deepflash2's means and stds ({error}); {_MAKE}") from error
    if len(mean) != channels or len(std) != channels or not np.isfinite([mean, std]).all():
        raise RefusedError(f"{url}: its `stats` are not {channels} finite means and stds; {_MAKE}")
    return Deepflash2Input(tuple(map(float, mean)), tuple(map(float, std)), 255 if top == 255 else 1)


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the architecture under their present names."""
    now = {"decoder_use_batchnorm": "decoder_use_norm", "psp_use_batchnorm": "decoder_use_norm"}
    return {now.get(name, name): value for name, value in options.items()}


def _recognises(file: WeightFile) -> bool:
    """Return whether it is a checkpoint, or TorchScript with a class that has an inference ensemble's attributes."""
    if not file.code:
        return file.strings >= _CHECKPOINT
    classes = [text for source in file.code for text in source.split("\nclass ")]
    return any(all(f"\n  {name} : " in text for name in _INFERENCE_ENSEMBLE) for text in classes)


KIND = MemberKind(
    entry=Deepflash2Member,
    describe=lambda url, network: describe(url, trust_code=network.trust_code),
    suffixes=(".pt", ".pth"),
    recognises=_recognises,
)
