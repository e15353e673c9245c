"""Make an ensemble, add members to it, take them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from chorus.pipeline.core.geometry import of_each, shown_size
from chorus.pipeline.ensembles import weights as ensemble_weights
from chorus.pipeline.ensembles.creation import Wanted, check_fit, new_content
from chorus.pipeline.ensembles.ensemble import Ensemble, check_answer, content_hash, ensemble_url, read_ensemble
from chorus.pipeline.ensembles.entries import Sentinel
from chorus.pipeline.ensembles.spec import EnsembleSpec
from chorus.pipeline.errors import RefusedError, reason_of
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.contract import MemberEntry
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.detection import describe, may_be_name, members_in
from chorus.pipeline.members.kind import Network


@dataclass(frozen=True)
class Edited:
    """An ensemble after it was written.

    Attributes
    ----------
    ensemble : as it is now
    added, removed : `weights` of these members, as ``ensemble.yaml`` has or had them
    notes : what the user should know, a sentence each
    """

    ensemble: Ensemble
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def add(
    url: str,
    files: Sequence[str],
    wanted: Wanted,
    *,
    kind: str | None = None,
    network: Network | None = None,
    link: bool = False,
    trust_code: bool = False,
) -> Edited:
    """Add networks to the ensemble at `url`, which is made where there is none; each is loaded and tried first.

    Parameters
    ----------
    files : weights, packages, or folders of them
    wanted : of a new ensemble
    kind, network : see `chorus.pipeline.members.detection.describe`
    link : keep the weights where they are instead of copying them beside ``ensemble.yaml``
    trust_code : whether code that a package brings along may run

    Raises
    ------
    RefusedError
        In one sentence, and nothing is written.
    """
    url = ensemble_url(url)
    old = read_ensemble(url) if _exists(url) else None
    if old is not None and wanted.options():
        raise RefusedError(
            f"{url} exists; options of a new ensemble ({', '.join(wanted.options())}) do not change it: edit the file"
        )
    described = _described(files, kind, network, trust_code)
    _refuse_repeated(url, old, described)
    if old is None:
        content, before = new_content(_name(url, described), described[0], wanted), []
    else:
        content = written(old.spec)
        before = content.pop("members")
    entries = [_entry(each, content.get("activation", "softmax")) for each in described]
    # Tried where the weights are, so that nothing is copied of a member that is refused.
    tried = _spec(url, content | {"members": before + entries})
    for each in described:
        check_fit(url, tried, each)
    _try(
        Ensemble(url, tried, content_hash(tried), trust_code, named=True),
        range(len(before), len(before) + len(entries)),
    )
    for entry, each in zip(entries, described, strict=True):
        is_id = "://" not in entry["weights"] and not entry["weights"].startswith("/")
        if not link and not is_id:
            entry["weights"] = ensemble_weights.bring(entry["weights"], _folder(url), entry["sha256"], each.entry.files)
            for companion, suffix in each.entry.companions():
                ensemble_weights.copy(companion, storage.join(_folder(url), entry["weights"] + suffix))
    ensemble = _write(url, content | {"members": before + entries}, trust_code=trust_code)
    notes = [note for each in described for note in _notes(ensemble, each)] + _stale(ensemble)
    # Members of one folder have the same notes.
    return Edited(ensemble, added=tuple(entry["weights"] for entry in entries), notes=tuple(dict.fromkeys(notes)))


def remove(url: str, which: Sequence[str], *, delete: bool = False) -> Edited:
    """Take members out of the ensemble at `url`, by index or by the name of their weights.

    With `delete` their weights are deleted too, where they lie beside ``ensemble.yaml`` and no other member has them.

    Raises
    ------
    RefusedError
        Where there is no such member, or none would be left.
    """
    old = read_ensemble(url)
    out = {_position(old, text) for text in which}
    content = written(old.spec)
    left = [entry for index, entry in enumerate(content["members"]) if index not in out]
    if not left:
        raise RefusedError(f"{old.url}: an ensemble needs a member; leave one, or delete the folder")
    gone = [old.spec.members[index].weights for index in sorted(out)]
    ensemble = _write(old.url, content | {"members": left}, trust_code=False)
    if delete:
        for weights in sorted(set(gone) - {entry["weights"] for entry in left}):
            ensemble_weights.delete(weights, old.folder)
    return Edited(ensemble, removed=tuple(gone), notes=tuple(_stale(ensemble)))


def set_sentinel(url: str, sentinel: Sentinel) -> Edited:
    """Write a sentinel into ``ensemble.yaml``, in place of one of the same name; the ensemble's hash stays the same."""
    old = read_ensemble(url)
    content = written(old.spec)
    others = [entry for entry in content.get("sentinels", []) if entry["name"] != sentinel.name]
    added = sentinel.model_dump(mode="json", exclude_none=True)
    return Edited(_write(old.url, content | {"sentinels": [*others, added]}, trust_code=False))


def set_effort(url: str, bound: EffortBound) -> Edited:
    """Write the bound of adaptive effort into ``ensemble.yaml``; the ensemble's hash stays the same."""
    old = read_ensemble(url)
    return Edited(_write(old.url, written(old.spec) | {"effort": bound.model_dump(mode="json")}, trust_code=False))


def written(spec: EnsembleSpec) -> dict[str, Any]:
    """Return the content of ``ensemble.yaml`` for `spec`: what was set, without defaults."""
    return spec.model_dump(mode="json", exclude_unset=True)


def _described(
    files: Sequence[str], kind: str | None, network: Network | None, trust_code: bool
) -> list[ModelDescription]:
    # A name in a collection, such as BioImage.IO's, is no path.
    urls = [url for file in files for url in ([file] if _is_id(file, kind) else members_in(file))]
    return [each for url in urls for each in describe(url, kind, network, trust_code=trust_code)]


def _name(url: str, described: Sequence[ModelDescription]) -> str:
    """Return the name of a single package, or else that of the ensemble's folder."""
    first = described[0]
    says = first.name and not storage.basename(first.entry.weights).startswith(first.name)
    return first.name if says and len(described) == 1 else storage.basename(_folder(url))


def _is_id(file: str, kind: str | None) -> bool:
    return may_be_name(kind) and "://" not in file and not storage.exists(file)


def _refuse_repeated(url: str, old: Ensemble | None, described: Sequence[ModelDescription]) -> None:
    seen = {_identity(entry) for entry in old.spec.members} if old else set()
    for each in described:
        identity = _identity(each.entry)
        if identity in seen:
            raise RefusedError(
                f"{each.entry.weights}: is a member of {url} already (sha256 {identity[0][:12]}); twice the same "
                f"network adds nothing: leave it out"
            )
        seen.add(identity)


def _identity(entry: MemberEntry) -> tuple[str, int | None]:
    """Return the hash of a member's weights, and the index of the network in a file that holds several."""
    return (entry.sha256 or entry.weights).lower(), getattr(entry, "model", None)


def _entry(described: ModelDescription, activation: str) -> dict[str, Any]:
    """Return the member's entry in ``ensemble.yaml``, with an activation where it differs from the ensemble's."""
    entry = described.entry.model_dump(mode="json", exclude_defaults=True)
    own = described.activation
    return entry if own is None or own == activation else {"activation": own} | entry


def _spec(url: str, content: dict[str, Any]) -> EnsembleSpec:
    try:
        return EnsembleSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        reason = reason_of(first["msg"])
        raise RefusedError(f"{url} would not be valid: field {field}: {reason}; correct the options") from error


def _try(ensemble: Ensemble, members: range) -> None:
    """Load each member and run it on a tile; raise RefusedError if one does not fit."""
    device = torch.device("cpu")
    for index in members:
        check_answer(ensemble, index, ensemble.load_member(index, device), ensemble.spec.tile_size, device)


def _write(url: str, content: dict[str, Any], *, trust_code: bool) -> Ensemble:
    spec = _spec(url, content)
    storage.check_writable(url)
    try:
        storage.write_bytes(url, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100).encode())
    except OSError as error:
        raise RefusedError(f"ensemble {failure_sentence(error, url) or url}") from error
    return Ensemble(url, spec, content_hash(spec), trust_code)


def _notes(ensemble: Ensemble, described: ModelDescription) -> list[str]:
    """List what does not prevent use of a member but may be wrong."""
    weights, spec = described.entry.weights, ensemble.spec
    sizes, theirs = spec.input.pixel_sizes_um, described.pixel_size_um
    notes = list(described.notes)
    trained = of_each(theirs, len(spec.input.axes)) if theirs else ()
    if sizes and theirs and not all(math.isclose(a, b, rel_tol=0.01) for a, b in zip(sizes, trained, strict=True)):
        own = shown_size(spec.input.pixel_size_um or 0)
        notes.append(f"{weights} was trained at {shown_size(theirs)} micrometres per pixel, the ensemble takes {own}")
    licence = described.about.licence
    if licence and licence != spec.about.licence:
        notes.append(f"{weights} has the licence {licence}, the ensemble says {spec.about.licence or 'nothing of it'}")
    return notes


def _stale(ensemble: Ensemble) -> list[str]:
    """List what must be measured again after the members changed."""
    notes = []
    if ensemble.spec.effort is not None:
        notes.append(
            "the bound of adaptive effort was measured before this change, so that `--effort adaptive` is refused; "
            "measure it again with `chorus ensemble effort`"
        )
    if not ensemble.spec.sentinels:
        return notes
    names = ", ".join(sentinel.name for sentinel in ensemble.spec.sentinels)
    return [
        *notes,
        f"the Dice of sentinels was measured before this change ({names}); measure it again with `chorus ensemble "
        "sentinel`, or `chorus predict` refuses to go on where it moved",
    ]


def _position(ensemble: Ensemble, text: str) -> int:
    """Return the index of a member, given that index or the path, file name or stem of its weights."""
    members = ensemble.spec.members
    if text.isdecimal() and int(text) < len(members):
        return int(text)
    names = [{m.weights, storage.basename(m.weights), PurePosixPath(m.weights).stem} for m in members]
    matching = [index for index, known in enumerate(names) if text in known]
    if len(matching) == 1:
        return matching[0]
    listed = ", ".join(f"{index} ({member.weights})" for index, member in enumerate(members))
    what = f"several members are called {text}" if matching else f"no member {text}"
    raise RefusedError(f"{ensemble.url}: {what}; name one of {listed}")


def _exists(url: str) -> bool:
    try:
        return storage.exists(url)
    except OSError as error:
        raise RefusedError(f"ensemble {failure_sentence(error, url) or url}") from error


def _folder(url: str) -> str:
    return url.rsplit("/", 1)[0]
