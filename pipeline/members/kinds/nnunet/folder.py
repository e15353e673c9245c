"""A folder that nnU-Net's training left: which of its files make a member, and what they say together."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.contract import check_digest
from chorus.pipeline.members.kinds.nnunet.networks import settings_of
from chorus.pipeline.members.kinds.nnunet.plans import Dataset, Plans, read_dataset, read_plans
from chorus.pipeline.members.kinds.nnunet.prepared import NnunetInput, preparation
from chorus.pipeline.members.safety.pickles import load_tensors

PLANS, DATASET, CHECKPOINT = "plans.json", "dataset.json", "checkpoint_final.pth"
_CHECKPOINT_OF_FOLD = re.compile(r"(?P<folder>.*)/fold_(?P<fold>\d{1,3}|all)(/(?P<checkpoint>checkpoint_\w+\.pth))?")
Number = TypeVar("Number", int, float)
FoldName: TypeAlias = int | Literal["all"]
# Names in what nnU-Net's trainer pickles.
CHECKPOINT_NAMES = {"network_weights", "init_args", "trainer_name"}


@dataclass(frozen=True)
class Fold:
    """The files of one fold of a trained folder.

    Attributes
    ----------
    url : of the folder
    fold : of the cross-validation, or ``all``
    checkpoint : name of the file in the fold's folder
    """

    url: str
    fold: FoldName
    checkpoint: str = CHECKPOINT

    @property
    def files(self) -> tuple[str, str, str]:
        """Paths of its files in the folder."""
        return PLANS, DATASET, f"fold_{self.fold}/{self.checkpoint}"

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Read the files; raise RefusedError if one is missing."""
        plans, dataset, checkpoint = (_read(storage.join(self.url, path)) for path in self.files)
        return plans, dataset, checkpoint


@dataclass(frozen=True)
class Facts:
    """What plans, data set and checkpoint say, without the weights.

    Attributes
    ----------
    configuration, trainer : their names
    mirroring : axes of the network along which it may be mirrored
    prepared : its normalisation
    """

    plans: Plans
    dataset: Dataset
    configuration: str
    trainer: str
    mirroring: tuple[int, ...]
    prepared: NnunetInput

    @property
    def axes(self) -> tuple[int, ...]:
        """For each axis of the network its position among the image's, (y, x) or (z, y, x)."""
        if len(self.plans.configuration.patch_size) == 3:
            return self.plans.transpose
        return tuple(axis - 1 for axis in self.plans.transpose[1:])

    def of_image(self, values: Sequence[Number]) -> tuple[Number, ...]:
        """Return values of each axis of the network in the order of the image's axes."""
        return tuple(value for _, value in sorted(zip(self.axes, values, strict=True), key=lambda pair: pair[0]))

    @property
    def strides(self) -> tuple[int, ...]:
        """By how much the coarsest stage is smaller than a tile, on each axis of the image."""
        own = self.plans.configuration
        return self.of_image(settings_of(self.configuration, own.architecture).total_strides(len(own.patch_size)))


def folds_at(url: str, names: list[str] | None) -> list[Fold]:
    """Find the folds at `url`: of a trained folder, of the folder of one fold, or of a checkpoint in it.

    Parameters
    ----------
    names : in the folder; None for a file

    Raises
    ------
    RefusedError
        If there is none that was trained to its end.
    """
    one = _CHECKPOINT_OF_FOLD.fullmatch(url)
    if one is not None and (one["checkpoint"] or (names is not None and CHECKPOINT in names)):
        return [Fold(one["folder"], _fold_name(one["fold"]), one["checkpoint"] or CHECKPOINT)]
    found = [match[1] for name in names or () if (match := re.fullmatch(r"fold_(\d{1,3}|all)", name))]
    folds = [Fold(url, _fold_name(fold)) for fold in sorted(found, key=lambda fold: (len(fold), fold))]
    whole = [fold for fold in folds if storage.exists(storage.join(url, fold.files[2]))]
    if not whole:
        raise RefusedError(
            f"{url}: no fold of nnU-Net that was trained to its end; it needs {PLANS}, {DATASET} and "
            f"fold_0/{CHECKPOINT} (name a checkpoint_best.pth itself to take it)"
        )
    return whole


def digest_of(files: tuple[bytes, ...]) -> str:
    """Hash all that defines a member's results: plans, data set and checkpoint."""
    return hashlib.sha256("\n".join(hashlib.sha256(data).hexdigest() for data in files).encode()).hexdigest()


def checked(fold: Fold, sha256: str | None, *, beside: bool) -> tuple[Facts, dict[str, torch.Tensor]]:
    """Read a fold with its weights; raise RefusedError if its hash differs or it is damaged."""
    files = fold.read()
    check_digest(fold.url, digest_of(files), sha256, beside=beside)
    return facts_of(fold, files)


@lru_cache(maxsize=256)
def known_facts(fold: Fold, sha256: str | None, beside: bool) -> Facts:
    """Read once in a process: a preparation is asked for more often than weights are loaded."""
    return checked(fold, sha256, beside=beside)[0]


def facts_of(fold: Fold, files: tuple[bytes, bytes, bytes]) -> tuple[Facts, dict[str, torch.Tensor]]:
    """Return what the files of a fold say, and its weights."""
    plans_url, dataset_url, checkpoint_url = (storage.join(fold.url, path) for path in fold.files)
    content = _checkpoint(checkpoint_url, files[2])
    try:
        configuration = str(content["init_args"]["configuration"])
        trainer = str(content["trainer_name"])
        state = dict(content["network_weights"])
        mirroring = tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ())
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(
            f"{checkpoint_url}: no checkpoint of nnU-Net v2 (it lacks {error}); take a checkpoint_final.pth as its "
            "training left it"
        ) from error
    plans, dataset = read_plans(files[0], plans_url, configuration), read_dataset(files[1], dataset_url)
    prepared = preparation(plans_url, plans, len(dataset.channels))
    axes = len(plans.configuration.patch_size)
    if any(not 0 <= axis < axes for axis in mirroring):
        raise RefusedError(f"{checkpoint_url}: mirrors axes {mirroring} of {axes}; take it as its training left it")
    if axes == 2 and plans.transpose[0] != 0:
        raise RefusedError(
            f"{plans_url}: its planes lie across {'zyx'[plans.transpose[0]]}, the axis of the coarsest spacing, and "
            "Chorus cuts an image into planes along z; transpose the images, or add a 3D configuration"
        )
    return Facts(plans, dataset, configuration, trainer, mirroring, prepared), state


def _fold_name(text: str) -> FoldName:
    return "all" if text == "all" else int(text)


def _checkpoint(url: str, data: bytes) -> dict[str, Any]:
    try:
        content = load_tensors(data, numpy=True)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            f"{url}: not a checkpoint of nnU-Net, or one with more than tensors and numbers in it, which Chorus does "
            "not run; take a checkpoint_final.pth as its training left it"
        ) from error
    if not isinstance(content, dict):
        raise RefusedError(f"{url}: no checkpoint of nnU-Net, which is a dictionary; take a checkpoint_final.pth")
    return content


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(
            f"weights {failure_sentence(error, url) or url}; a folder that nnU-Net trained has {PLANS}, {DATASET} and "
            f"fold_0/{CHECKPOINT}"
        ) from error
