"""The folder of a model as StarDist saves it: its settings, its thresholds and its weights, checked and hashed.

::

    nuclei/
      config.json         what the network is built from
      thresholds.json     what objects are made with; default ones where it is missing
      weights_best.h5     weights in the format of Keras 2; one file of another name where there is no best one
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.kinds.stardist.settings import DESIGN, Design, Thresholds
from chorus.pipeline.members.weight_file import listing, read

_CONFIG, _THRESHOLDS, _BEST = "config.json", "thresholds.json", "best"
_WEIGHTS = (".h5", ".hdf5")
Content = TypeVar("Content")


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was read.

    Attributes
    ----------
    url : of the folder
    design : of the network
    thresholds : that its objects are made with
    weights_url : of the file of weights
    weights : its bytes
    sha256 : of all that defines what the network answers: ``config.json`` and the weights
    """

    url: str
    design: Design
    thresholds: Thresholds
    weights_url: str
    weights: bytes
    sha256: str


def is_model_folder(names: Sequence[str]) -> bool:
    """Return whether a folder that holds these names looks like one of StarDist."""
    return _CONFIG in names and any(name.endswith(_WEIGHTS) for name in names)


def read_folder(url: str) -> ModelFolder:
    """Read a model folder; raise RefusedError if it is none, or is damaged."""
    try:
        names = listing(url)
    except OSError as error:
        raise RefusedError(f"weights {failure_sentence(error, url) or url}") from error
    if names is None or not is_model_folder(names):
        raise RefusedError(f"{url}: no model folder of StarDist, which holds {_CONFIG} and weights_best.h5; correct it")
    config = read(storage.join(url, _CONFIG))
    thresholds = read(storage.join(url, _THRESHOLDS)) if _THRESHOLDS in names else b"{}"
    weights_url = storage.join(url, _chosen(url, names))
    weights = read(weights_url)
    digests = [hashlib.sha256(part).hexdigest() for part in (config, weights)]
    return ModelFolder(
        url,
        _parsed(storage.join(url, _CONFIG), config, DESIGN.validate_python),
        _parsed(storage.join(url, _THRESHOLDS), thresholds, Thresholds.model_validate),
        weights_url,
        weights,
        hashlib.sha256("\n".join(digests).encode()).hexdigest(),
    )


def checked_folder(url: str, sha256: str | None, *, beside: bool) -> ModelFolder:
    """Read the folder of a member; raise RefusedError if it is missing, or its hash differs.

    `beside`: see `chorus.pipeline.members.contract.LoadRequest`.
    """
    folder = read_folder(url)
    if sha256 is not None and folder.sha256 == sha256.lower():
        return folder
    if not beside:
        raise RefusedError(
            f"{url}: is not the model that ensemble.yaml names, whose sha256 it gives; correct the path or the hash"
        )
    if sha256 is None:
        raise RefusedError(f"{url}: its member has no sha256 in ensemble.yaml; add `sha256: {folder.sha256}`")
    raise RefusedError(
        f"{url}: sha256 of {_CONFIG} and weights is {folder.sha256}, ensemble.yaml says {sha256}; restore the folder "
        "or correct the hash"
    )


def _chosen(url: str, names: Sequence[str]) -> str:
    """Return the name of the best weights, or of the only ones."""
    files = sorted(name for name in names if name.endswith(_WEIGHTS))
    best = [name for name in files if _BEST in name]
    chosen = best if best else files
    if len(chosen) > 1:
        raise RefusedError(f"{url}: has several files of weights ({', '.join(chosen)}); leave one, as weights_best.h5")
    return chosen[0]


def _parsed(url: str, data: bytes, validate: Callable[[object], Content]) -> Content:
    try:
        return validate(json.loads(data))
    except ValueError as error:
        reason = first_line(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc'][-1:])) or 'file'}: {first_line(first['msg'])}"
        raise RefusedError(
            f"{url}: of no StarDist model that Chorus can build ({reason}); take one as StarDist saves it"
        ) from error
