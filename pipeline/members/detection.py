"""What a file of weights is, and what it says of itself, whatever kind of network it holds.

A kind is recognised by the name of the file, or by names within it; nothing of it runs, and no weights are loaded.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.members import cellpose_network, deepflash2, smp
from chorus.pipeline.members.bioimageio import description as bioimageio_description
from chorus.pipeline.members.contract import MemberEntry
from chorus.pipeline.members.described import Described
from chorus.pipeline.members.exported import ExportedMember
from chorus.pipeline.members.onnx_file import OnnxMember
from chorus.pipeline.members.torchscript import TorchScriptMember

Kind = Literal["bioimageio", "cellpose", "deepflash2", "exported", "onnx", "smp", "torchscript"]
SUFFIXES = (".onnx", ".pt", ".pt2", ".pth", ".safetensors", ".zip")
"""Of the files that are taken from a folder."""
_BY_SUFFIX: dict[str, Kind] = {
    ".yaml": "bioimageio", ".yml": "bioimageio", ".zip": "bioimageio", ".onnx": "onnx", ".pt2": "exported",
    ".safetensors": "smp",
}  # fmt: skip
# As bioimageio.spec names the description within a package.
_DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
# Names in the pickle of a file; of Cellpose 4 and of deepflash2's `save_smp_model`.
_CELLPOSE = {"W2", "encoder.patch_embed.proj.weight"}
_DEEPFLASH2 = {"model", "arch"}
_INFERENCE_ENSEMBLE = ("models", "norm", "num_classes", "tile_shape")


@dataclass(frozen=True)
class Network:
    """What a plain state dict does not say of its network, for segmentation-models-pytorch."""

    architecture: str | None = None
    encoder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def members_in(url: str) -> list[str]:
    """URLs of the files and packages of weights in a folder, by name; of a file or a package, itself.

    Raises
    ------
    RefusedError
        Where there is nothing at `url`, or no weights in the folder.
    """
    url = storage.normalise(url)
    try:
        names = _listing(url)
        if names is None or _is_package(names):
            return [url]
        found = [storage.join(url, name) for name in sorted(names)]
        weights = [file for file in found if file.endswith(SUFFIXES) or _is_package(_listing(file) or [])]
    except OSError as error:
        raise RefusedError(f"weights {storage.explain(error, url) or url}") from error
    if not weights:
        raise RefusedError(
            f"{url}: no weights in this folder; it needs files that end with {', '.join(SUFFIXES)}, or BioImage.IO "
            f"packages"
        )
    return weights


def describe(url: str, kind: Kind | None = None, network: Network | None = None) -> tuple[Described, ...]:
    """What the networks in one file or package say of themselves; several of an inference ensemble of deepflash2.

    Parameters
    ----------
    kind : of the network; None recognises it from the file
    network : for a plain state dict

    Raises
    ------
    RefusedError
        In one sentence: missing, of no known kind, damaged, or a plain state dict without its architecture.
    """
    network = network or Network()
    kind = kind or ("smp" if network.architecture else recognise(url))
    if kind == "deepflash2":
        return deepflash2.describe(url)
    others: dict[str, Callable[[str], Described]] = {
        "bioimageio": bioimageio_description.describe,
        "cellpose": cellpose_network.describe,
        "smp": lambda file: _smp(file, network),
    }
    return (others[kind](url) if kind in others else _graph(url, kind),)


def recognise(url: str) -> Kind:
    """The kind of network at `url`; raises RefusedError where it is missing or of no known kind."""
    suffix = re.search(r"\.\w+$", storage.basename(url))
    by_name = _BY_SUFFIX.get(suffix[0].lower()) if suffix else None
    if by_name:
        return by_name
    try:
        if _is_package(_listing(url) or []):
            return "bioimageio"
    except OSError as error:
        raise RefusedError(f"weights {storage.explain(error, url) or url}") from error
    data = _read(url)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _of_archive(url, archive)
    return _of_names(set(_strings(data))) or _unknown(url)


def _of_archive(url: str, archive: zipfile.ZipFile) -> Kind:
    """Of what `torch.save` or `torch.jit.save` wrote, or of a package whose name does not end with .zip."""
    files = archive.namelist()
    if _is_package([name.rsplit("/", 1)[-1] for name in files]):
        return "bioimageio"
    code = [name for name in files if re.match(r"[^/]+/code/.*\.py$", name)]
    if code:
        classes = [c for name in code for c in archive.read(name).decode(errors="replace").split("\nclass ")]
        several = any(all(f"\n  {name} : " in text for name in _INFERENCE_ENSEMBLE) for text in classes)
        return "deepflash2" if several else "torchscript"
    pickled = next((name for name in files if name.endswith("data.pkl")), None)
    kind = None if pickled is None else _of_names(set(_strings(archive.read(pickled))))
    return kind or _unknown(url)


def _of_names(names: set[str]) -> Kind | None:
    """Of a state dict or a checkpoint, by the strings in its pickle; None where it is neither."""
    if {name.removeprefix("module.") for name in names} >= _CELLPOSE:
        return "cellpose"
    if names >= _DEEPFLASH2:
        return "deepflash2"
    # A reference to torch's rebuilding of tensors, under names with dots.
    return "smp" if any(name.endswith((".weight", ".bias")) for name in names) else None


def _strings(data: bytes) -> Iterator[str]:
    """The strings in the pickles that `data` begins with; they are read as a listing, not run."""
    file = io.BytesIO(data)
    try:
        while file.tell() < len(data):
            yield from (argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, str))
    except ValueError:
        return  # where the pickles end and, in files of old, the numbers begin


def _unknown(url: str) -> Kind:
    raise RefusedError(
        f"{url}: no file of a network that Chorus knows ({', '.join(get_args(Kind))}); give its state dict, an export "
        f"or a package, or name its kind with --kind"
    )


def _graph(url: str, kind: str) -> Described:
    """Of an exported network, which says nothing that an ensemble needs to know."""
    entries: dict[str, type[MemberEntry]] = {
        "exported": ExportedMember, "onnx": OnnxMember, "torchscript": TorchScriptMember,
    }  # fmt: skip
    entry = entries[kind](kind=kind, weights=url, sha256=hashlib.sha256(_read(url)).hexdigest())
    return Described(entry=entry, name=_stem(url))


def _smp(url: str, network: Network) -> Described:
    if network.architecture is None or network.encoder is None:
        raise RefusedError(
            f"{url}: a plain state dict does not say which network it is of; add --architecture and --encoder of "
            f"segmentation-models-pytorch, and --option where it has others than usual"
        )
    data = _read(url)
    state = smp.state_dict(url, data)
    entry = smp.SmpMember(
        kind="smp",
        architecture=network.architecture,
        encoder=network.encoder,
        options=dict(network.options),
        weights=url,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return Described(entry=entry, name=_stem(url), channels=_input_channels(url, state, entry))


def _input_channels(url: str, state: Mapping[str, torch.Tensor], entry: smp.SmpMember) -> list[str]:
    """Made-up names, as many as the first layer takes: it alone changes with them; none where nothing tells."""
    usual = 3
    like = smp.network(url, entry.architecture, entry.encoder, usual, 1, entry.options).state_dict()
    same = {name: tensor for name, tensor in like.items() if name in state and tensor.ndim == state[name].ndim > 1}
    widths = {state[name].shape[1] for name, tensor in same.items() if tensor.shape[1] == usual}
    return [f"channel-{c}" for c in range(widths.pop())] if len(widths) == 1 else []


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"weights {storage.explain(error, url) or url}") from error


def _listing(url: str) -> list[str] | None:
    """Names in a folder; None of a file, and on the web, where nothing is listed."""
    if storage.is_web(url):
        return None
    fs, path = storage.filesystem(url)
    if not fs.exists(path):
        raise FileNotFoundError(url)
    return [storage.basename(found) for found in fs.ls(path, detail=False)] if fs.isdir(path) else None


def _is_package(names: list[str]) -> bool:
    return any(name.endswith(_DESCRIPTIONS) for name in names)


def _stem(url: str) -> str:
    return storage.basename(url).rsplit(".", 1)[0]
