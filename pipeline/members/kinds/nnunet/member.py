"""Members that nnU-Net v2 trained: each fold of a trained folder is one."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field

from chorus.pipeline.core.geometry import shown_size
from chorus.pipeline.core.outputs import CLASSES
from chorus.pipeline.core.provenance import About, Citation, DataReference
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind
from chorus.pipeline.members.kinds.nnunet.folder import (
    CHECKPOINT,
    CHECKPOINT_NAMES,
    DATASET,
    PLANS,
    Facts,
    Fold,
    FoldName,
    checked,
    digest_of,
    facts_of,
    folds_at,
    known_facts,
)
from chorus.pipeline.members.kinds.nnunet.networks import build_network
from chorus.pipeline.members.kinds.nnunet.prepared import NnunetInput
from chorus.pipeline.members.weight_file import WeightFile, listing

_MILLIMETRES = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
"""nnU-Net's readers of files whose spacings are millimetres."""
_WITHOUT_SPACING = "NaturalImage2DIO"


class NnunetMember(MemberEntry):
    """``{kind: nnunet, weights: Dataset004/nnUNetTrainer__nnUNetPlans__2d, fold: 0, sha256: ...}``.

    `weights` is the folder of a trainer, plans and configuration as nnU-Net v2 leaves it. Its plans say all else:
    architecture, channels, classes, normalisation, spacing and patch size.

    Attributes
    ----------
    sha256 : of plans.json, dataset.json and the checkpoint together
    fold : of the cross-validation, or ``all``
    checkpoint : file in the folder of the fold
    """

    kind: Literal["nnunet"]
    fold: FoldName
    checkpoint: str = Field(default=CHECKPOINT, pattern=r"^checkpoint_\w+\.pth$")
    activation: Literal["softmax", "sigmoid"] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the fold's files in the folder."""
        return Fold("", self.fold, self.checkpoint).files

    def preparation(self, asked: LoadRequest) -> NnunetInput:
        """Return nnU-Net's normalisation of these channels; raise RefusedError for another number of channels."""
        facts = known_facts(self._fold(asked), self.sha256, asked.beside)
        _check_channels(asked, facts)
        return facts.prepared

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network; raise RefusedError if the folder is not nnU-Net's or does not fit the ensemble."""
        if asked.outputs.roles != (CLASSES,):
            more = ", ".join(role.name for role in asked.outputs.roles if role != CLASSES) or "output without classes"
            raise RefusedError(f"{asked.url}: nnU-Net gives no {more}; correct `outputs` in ensemble.yaml")
        facts, state = checked(self._fold(asked), self.sha256, beside=asked.beside)
        _check_channels(asked, facts)
        own, patch = facts.plans.configuration, shown_size(facts.of_image(facts.plans.configuration.patch_size))
        if len(asked.shape) != len(own.patch_size):
            raise RefusedError(
                f"{asked.url}: its {facts.configuration} network takes tiles of {len(own.patch_size)} axes, not of "
                f"{len(asked.shape)}; set input.axes in ensemble.yaml to {'yx' if len(own.patch_size) == 2 else 'zyx'}"
            )
        if any(edge % stride for edge, stride in zip(asked.shape, facts.strides, strict=True)):
            raise RefusedError(
                f"{asked.url}: takes tiles that are multiples of {shown_size(facts.strides)}, not "
                f"{shown_size(asked.shape)}; it was trained with patches of {patch}"
            )
        url = f"{asked.url}/{PLANS}"
        outputs = len(facts.dataset.classes) - facts.dataset.has_regions
        network = build_network(url, own.architecture, len(facts.dataset.channels), outputs, state, facts.axes)
        return ModuleMember(network, device, "sigmoid" if facts.dataset.has_regions else "softmax")

    def _fold(self, asked: LoadRequest) -> Fold:
        return Fold(asked.url, self.fold, self.checkpoint)


def describe(url: str) -> tuple[ModelDescription, ...]:
    """Describe the folds of a trained folder, or the one at `url`, as members; raise RefusedError if there is none."""
    try:
        names = listing(url)
    except OSError:
        names = None
    return tuple(_described(fold) for fold in folds_at(url, names))


def _described(fold: Fold) -> ModelDescription:
    files = fold.read()
    facts, _ = facts_of(fold, files)
    own, dataset = facts.plans.configuration, facts.dataset
    entry = NnunetMember(
        kind="nnunet",
        weights=fold.url,
        sha256=digest_of(files),
        fold=fold.fold,
        checkpoint=fold.checkpoint,
    )
    patch = facts.of_image(own.patch_size)
    shown, axes = shown_size(patch), len(patch)
    size, note = _pixel_size(facts)
    return ModelDescription(
        entry=entry,
        name=facts.plans.dataset,
        channels=dataset.channels,
        classes=dataset.classes,
        activation="sigmoid" if dataset.has_regions else "softmax",
        axes="zyx" if axes == 3 else "yx",
        tile=patch if axes == 3 else patch[0] if patch[0] == patch[1] else None,
        pixel_size_um=size,
        padding="zero",
        augmentations=_augmentations(facts),
        about=About(
            description=f"nnU-Net {facts.configuration} of {facts.plans.dataset}, {facts.trainer}, patches of {shown}",
            data=[DataReference(name=facts.plans.dataset)],
            cite=[
                Citation(
                    text="Isensee, Jaeger, Kohl, Petersen and Maier-Hein. nnU-Net: a self-configuring method for deep "
                    "learning-based biomedical image segmentation. Nature Methods 18, 203-211, 2021.",
                    doi="10.1038/s41592-020-01008-z",
                )
            ],
        ),
        tile_needed=f"trained with patches of {shown}, and tiles of planes are square: a multiple of "
        f"{math.lcm(*facts.strides)} of about that size",
        notes=(f"{fold.url}: {note}",),
    )


def _augmentations(facts: Facts) -> tuple[str, ...]:
    """Return the mirrored views that nnU-Net averages over."""
    letters = "yx" if len(facts.axes) == 2 else "zyx"
    allowed = sorted(facts.axes[axis] for axis in facts.mirroring)
    views = [{letters[axis] for axis in axes} for n in range(len(allowed) + 1) for axes in combinations(allowed, n)]
    names = {"z": "z", "x": "h", "y": "v"}
    return tuple(
        "".join(names[axis] for axis in names if axis in view) + "flip" if view else "identity" for view in views
    )


def _pixel_size(facts: Facts) -> tuple[float | tuple[float, ...] | None, str]:
    """Return the pixel size in micrometres, None where planes have none or not one for y and x, and a sentence."""
    spacing, reader = facts.of_image(facts.plans.configuration.spacing), facts.plans.reader
    shown = shown_size(spacing)
    if reader == _WITHOUT_SPACING:
        return None, "was trained on images without a pixel size: images are taken as they are"
    if len(spacing) == 2 and not math.isclose(*spacing, rel_tol=0.01):
        return None, f"takes pixels of {shown}, and Chorus resamples planes to square ones: they are taken as they are"
    unit, note = (
        (1000, f"its spacing of {shown} was read as millimetres, which its image files have")
        if reader in _MILLIMETRES
        else (1, f"its spacing of {shown} was read as micrometres; set input.pixel_size_um where it is not")
    )
    return spacing[0] * unit if len(spacing) == 2 else tuple(size * unit for size in spacing), note


def _check_channels(asked: LoadRequest, facts: Facts) -> None:
    names = facts.dataset.channels
    if len(names) != asked.channels:
        raise RefusedError(
            f"{asked.url}: was trained on {len(names)} channels ({', '.join(names)}), ensemble.yaml has "
            f"{asked.channels}; correct input.channels"
        )


def _recognises(file: WeightFile) -> bool:
    """Return whether it is a trained folder, the folder of a fold, or a checkpoint."""
    return {PLANS, DATASET} <= set(file.folder) or CHECKPOINT in file.folder or file.strings >= CHECKPOINT_NAMES


KIND = MemberKind(
    entry=NnunetMember,
    describe=lambda url, _: describe(url),
    recognises=_recognises,
    volumes=True,
    is_package=lambda names: {PLANS, DATASET} <= set(names) or CHECKPOINT in names,
)
