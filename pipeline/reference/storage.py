"""Storage of a reference beside its ensemble: ``reference.json``, and ``reference.npz`` with its arrays."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import ChorusError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence, one_line, storage_errors
from chorus.pipeline.reference.ood import Detectors
from chorus.pipeline.reference.reference import FORMAT, Reference
from chorus.pipeline.reference.words import NO_REFERENCE
from chorus.pipeline.scores.registry import current_name

_ARRAYS = "arrays_sha256"
_FEATURES = "reference_features"


def reference_url(ensemble_url: str) -> str:
    """Return the URL of ``reference.json`` beside an ``ensemble.yaml``, given that file's URL or its folder's."""
    url = storage.normalise(ensemble_url)
    folder = url.rsplit("/", 1)[0] if url.endswith((".yaml", ".yml")) else url
    return storage.join(folder, "reference.json")


def write_reference(ensemble_url: str, reference: Reference) -> str:
    """Write a reference beside its ensemble, replacing an older one; return its URL.

    Raises
    ------
    OutputError
        If storage does not accept it.
    """
    url = reference_url(ensemble_url)
    buffer = io.BytesIO()
    features = {} if reference.features is None else {_FEATURES: reference.features}
    np.savez_compressed(buffer, allow_pickle=False, **reference.detectors.arrays(), **features)
    arrays = buffer.getvalue()
    # The hash links the two files: one of them may be of an older reference if writing was interrupted.
    content = reference.model_dump(mode="json") | {_ARRAYS: hashlib.sha256(arrays).hexdigest()}
    with storage_errors(url):
        storage.write_bytes(_arrays_url(url), arrays)
        storage.write_bytes(url, json.dumps(content, indent=1).encode())
    return url


def read_reference(ensemble_url: str) -> Reference:
    """Return the reference of an ensemble.

    Raises
    ------
    RefusedError
        If there is none, or it is damaged or of another ensemble.
    """
    return reference_of(read_ensemble(ensemble_url))


def reference_of(ensemble: Ensemble, url: str | None = None) -> Reference:
    """Return the reference of an ensemble that is read; as `read_reference`.

    Parameters
    ----------
    url : of a ``reference.json`` elsewhere; by default the one beside ``ensemble.yaml``
    """
    url = reference_url(ensemble.url) if url is None else url
    try:
        data, arrays = storage.read_bytes(url), storage.read_bytes(_arrays_url(url))
    except OSError as error:
        raise RefusedError(f"{ensemble.url}: {NO_REFERENCE} ({failure_sentence(error, url)})") from error
    reference = _parsed(url, data, arrays)
    if reference.ensemble != ensemble.hash:
        raise RefusedError(
            f"{url}: is of another ensemble, or of this one before it was changed; run `chorus calibrate` again"
        )
    return reference


@dataclass(frozen=True)
class FoundReference:
    """The reference of an ensemble, or a sentence on why there is none."""

    reference: Reference | None
    absent: str | None = None


NOT_LOOKED_FOR = FoundReference(None)


def find_reference(ensemble: Ensemble) -> FoundReference:
    """Return the reference of an ensemble; one that is damaged, or of another ensemble, counts as absent."""
    url = reference_url(ensemble.url)
    try:
        with storage_errors(url):
            there = storage.exists(url)
        return FoundReference(reference_of(ensemble)) if there else FoundReference(None, NO_REFERENCE)
    except ChorusError as error:
        return FoundReference(None, f"scores stand alone, and no image is flagged ({error})")


def _parsed(url: str, data: bytes, arrays: bytes) -> Reference:
    again = "run `chorus calibrate` again"
    try:
        content: dict[str, Any] = json.loads(data)
        if content.get("format") != FORMAT:
            raise RefusedError(f"{url}: has format {content.get('format')}, this Chorus knows {FORMAT}; {again}")
        if content.pop(_ARRAYS, None) != hashlib.sha256(arrays).hexdigest():
            raise RefusedError(f"{url}: does not go with {storage.basename(_arrays_url(url))} beside it; {again}")
        with np.load(io.BytesIO(arrays), allow_pickle=False) as opened:
            loaded = dict(opened)
        _rename_scores(content)
        detectors = Detectors.from_arrays(content["detector_scores"], content["detector_names"], loaded)
        return Reference.model_validate(content | {"detectors": detectors, "features": loaded.get(_FEATURES)})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RefusedError(f"{url}: field {field}: {first['msg']}; {again}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RefusedError(f"{url}: is damaged ({one_line(error)}); {again}") from error


def _rename_scores(content: dict[str, Any]) -> None:
    """Give scores of a reference of an earlier version their present names."""
    for key in ("scores", "thresholds"):
        content[key] = {current_name(name): value for name, value in content[key].items()}
    for part in (content["quality"], content["bound"]["model"]):
        part["scores"] = [current_name(name) for name in part["scores"]]
    for key in ("detector_scores", "detector_names"):
        content[key] = [current_name(name) for name in content[key]]


def _arrays_url(url: str) -> str:
    return url.removesuffix(".json") + ".npz"
