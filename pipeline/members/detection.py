"""Detect the kind of a weight file and describe the networks in it.

A kind is recognised by the name of the file, or by names within it; nothing of it runs, and no weights are loaded.
"""

from __future__ import annotations

from dataclasses import replace

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import Network
from chorus.pipeline.members.registry import registry
from chorus.pipeline.members.weight_file import WeightFile, listing

_BY_ARCHITECTURE, _BY_FACTORY = "smp", "python"


def members_in(url: str) -> list[str]:
    """List the URLs of weight files and packages in a folder, by name; for a file or a package, itself.

    Raises
    ------
    RefusedError
        Where there is nothing at `url`, or no weights in the folder.
    """
    url = storage.normalise(url)
    suffixes = tuple(sorted({suffix for kind in registry().kinds.values() for suffix in kind.suffixes}))
    try:
        names = listing(url)
        if names is None or _is_package(names):
            return [url]
        members = [storage.join(url, name) for name in sorted(names)]
        weights = [file for file in members if file.endswith(suffixes) or _is_package(listing(file) or [])]
    except OSError as error:
        raise RefusedError(f"weights {failure_sentence(error, url) or url}") from error
    if not weights:
        raise RefusedError(
            f"{url}: no weights in this folder; it needs files that end with {', '.join(suffixes)}, or BioImage.IO "
            f"packages"
        )
    return weights


def describe(
    url: str, kind: str | None = None, network: Network | None = None, *, trust_code: bool = False
) -> tuple[ModelDescription, ...]:
    """Describe the networks in one file or package; several for an inference ensemble of deepflash2.

    Parameters
    ----------
    kind : of the network; None recognises it from the file
    network : for a plain state dict
    trust_code : whether a program that does more than compute may be read, see `deepflash2.describe`

    Raises
    ------
    RefusedError
        In one sentence: missing, of no known kind, damaged, or a plain state dict without its architecture.
    """
    network = network or Network()
    name = kind or (_BY_FACTORY if network.factory else _BY_ARCHITECTURE if network.architecture else recognise(url))
    declared = registry().kinds.get(name)
    if declared is None:
        raise RefusedError(f"--kind {name}: {registry().unknown}")
    return declared.describe(url, replace(network, trust_code=trust_code))


def recognise(url: str) -> str:
    """Recognise the kind of network at `url`; raise RefusedError if it is missing or of no known kind.

    Plug-ins are asked first: they know their own files, and a built-in kind may take them for a more general one.
    """
    known = registry()
    file = WeightFile(url)
    for name, kind in known.plug_ins.items():
        if kind.recognised(file):
            return name
    for name, kind in known.built_in.items():
        if file.suffix in kind.own_suffixes:
            return name
    for name, kind in known.built_in.items():
        if kind.recognises and kind.recognises(file):
            return name
    raise RefusedError(
        f"{url}: no file of a network that Chorus knows ({', '.join(known.kinds)}); give its state dict, an export "
        f"or a package, or name its kind with --kind"
    )


def may_be_name(kind: str | None) -> bool:
    """Return whether weights of this kind may be a name in a collection instead of a path."""
    return kind is not None and kind in registry().kinds and registry().kinds[kind].names


def _is_package(names: list[str]) -> bool:
    return any(kind.is_package(names) for kind in registry().kinds.values() if kind.is_package)
