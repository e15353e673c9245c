"""Export of ensembles as BioImage.IO packages: each member, or all of them as one network."""

from __future__ import annotations

import re
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from chorus.pipeline.bioimageio import export_weights as packing_weights
from chorus.pipeline.bioimageio.export_documents import provenance, readme
from chorus.pipeline.bioimageio.export_tensors import output_names, sample_image, tensors, write_cover
from chorus.pipeline.core.outputs import CLASSES, FLOWS, Activation
from chorus.pipeline.core.provenance import About
from chorus.pipeline.ensembles.ensemble import Ensemble, require_planes
from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.contract import Member, ModuleMember
from chorus.pipeline.members.kind import PackedModule, PackedPackage
from chorus.pipeline.members.kinds.bioimageio.package import EXTRA
from chorus.pipeline.members.registry import kind_of, registry
from chorus.pipeline.members.selection import ExportEntry
from chorus.pipeline.preprocessing.preparation import Preparation, surveyed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Packed:
    """A network to be written as a package.

    Attributes
    ----------
    title : of the package
    weights : by format, `bioimageio.spec.model.v0_5` descriptions of files
    member : computes the outputs of prepared tiles, as Chorus runs it
    preparation : of its tiles
    activation : that turns its outputs for the classes into probabilities
    any_batch : whether it accepts several tiles at once
    """

    title: str
    weights: dict[str, Any]
    member: Member
    preparation: Preparation
    activation: Activation
    any_batch: bool = True


def pack_members(ensemble: Ensemble, about: About, out: Path, members: Sequence[int]) -> list[Path]:
    """Write a package of each of `members` into `out`; members that are packages already are copied.

    Raises
    ------
    RefusedError
        If a member cannot be a package, `about` lacks what BioImage.IO requires, or a file exists already.
    """
    _check(ensemble, about)
    for index in members:
        _check_member(ensemble, index)
    return [_pack_member(ensemble, about, out, index) for index in members]


def pack_whole(ensemble: Ensemble, about: About, out: Path) -> Path:
    """Write the ensemble into `out` as one network, which gives the mean of its members' probabilities.

    Test-time augmentation and uncertainty are not part of it.

    Raises
    ------
    RefusedError
        As `pack_members`; and if a member is no network that can be exported.
    """
    _check(ensemble, about)
    path = _target(ensemble, out, "")
    asked = ensemble.asked(0)
    loaded = [ensemble.load_member(index, CPU) for index in range(len(ensemble.spec.members))]
    activations = [member.activation or ensemble.spec.activation for member in loaded]
    module = packing_weights.AveragedMembers(
        [_module(ensemble, index, member) for index, member in enumerate(loaded)],
        activations,
        len(ensemble.probability_names),
        flows=FLOWS in ensemble.outputs,
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        weights = {"onnx": packing_weights.onnx(ensemble.url, module, asked, Path(folder))}
        packed = Packed(
            ensemble.spec.name, weights, ModuleMember(module, CPU), ensemble.inputs([0]).preparations[0], "none"
        )
        _save(ensemble, about, packed, Path(folder), path)
    return path


def _check(ensemble: Ensemble, about: About) -> None:
    """Raise RefusedError if bioimageio.spec is missing or `about` lacks what a package must have."""
    require_planes(ensemble, "a BioImage.IO package of Chorus")
    try:
        import bioimageio.spec  # noqa: F401
    except ImportError as error:
        raise RefusedError(f"{ensemble.url}: packing needs bioimageio.core; {EXTRA}") from error
    if ensemble.outputs.roles not in ((CLASSES,), (CLASSES, FLOWS)):
        raise RefusedError(
            f"{ensemble.url}: gives {', '.join(role.name for role in ensemble.outputs.roles)}; only classes, or "
            "classes and flows, can be written as packages"
        )
    if not ensemble.spec.answer.plain:
        raise RefusedError(f"{ensemble.url}: members that answer in another shape than the tile's cannot be packages")
    cited = about.cite and all(citation.doi or citation.url for citation in about.cite)
    given = {
        "description": about.description,
        "licence": about.licence,
        "authors": about.authors,
        "cite (each with doi or url)": cited,
    }
    lacking = [name for name, value in given.items() if not value]
    if lacking:
        raise RefusedError(
            f"{ensemble.url}: about lacks {', '.join(lacking)}, which BioImage.IO demands; add it to ensemble.yaml or "
            "give --description, --licence, --author, --cite-text with --cite-doi"
        )


def _check_member(ensemble: Ensemble, index: int) -> None:
    entry = ensemble.spec.members[index]
    where = f"{ensemble.url}: member {index} ({entry.weights})"
    if kind_of(entry).pack is None:
        packed = ", ".join(name for name, kind in registry().kinds.items() if kind.pack is not None)
        raise RefusedError(
            f"{where} is of kind {entry.kind}, which cannot be a BioImage.IO package; members of kind {packed} can"
        )
    if isinstance(entry, ExportEntry) and (entry.output != 0 or entry.channels or entry.layout != "nchw"):
        raise RefusedError(
            f"{where} chooses an output, its channels or a layout, which a package cannot; export the network so that "
            "it gives just that"
        )


def _pack_member(ensemble: Ensemble, about: About, out: Path, index: int) -> Path:
    entry = ensemble.spec.members[index]
    path = _target(ensemble, out, f"-member-{index}")
    asked = ensemble.asked(index)
    pack = kind_of(entry).pack
    assert pack is not None  # `_check_member`
    member = ensemble.load_member(index, CPU)
    taken = pack(entry, member, asked)
    if isinstance(taken, PackedPackage):
        _copy(taken.url, path)
        return path
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        activation = member.activation or ensemble.spec.activation
        weights, any_batch = packing_weights.weights(taken, asked, folder)
        preparation = ensemble.inputs([index]).preparations[0]
        packed = Packed(f"{ensemble.spec.name} member {index}", weights, member, preparation, activation, any_batch)
        _save(ensemble, about, packed, folder, path)
    return path


def _module(ensemble: Ensemble, index: int, member: Member) -> torch.nn.Module:
    """Return a member's network; raise RefusedError if it has none that can be exported."""
    entry = ensemble.spec.members[index]
    pack = kind_of(entry).pack
    packed = pack(entry, member, ensemble.asked(index)) if pack else None
    if not isinstance(packed, PackedModule):
        raise RefusedError(
            f"{ensemble.url}: member {index} is of kind {entry.kind}, and only networks that are built by a library, "
            "such as segmentation-models-pytorch, can be joined in one; pack the members one by one"
        )
    return packed.module


def _target(ensemble: Ensemble, out: Path, suffix: str) -> Path:
    path = out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', ensemble.spec.name)}{suffix}.zip"
    if path.exists():
        raise RefusedError(f"{path}: is there already; remove it or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"--out {out}: cannot be made ({error}); choose another place") from error
    return path


def _copy(url: str, path: Path) -> None:
    """Copy a package: an archive unchanged, a folder as an archive."""
    try:
        fs, source = storage.filesystem(url)
        if not fs.isdir(source):
            path.write_bytes(storage.read_bytes(url))
            return
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(fs.find(source)):
                archive.writestr(file.removeprefix(source).lstrip("/"), fs.cat_file(file))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise RefusedError(f"package {failure_sentence(error, url) or url}") from error


def _save(ensemble: Ensemble, about: About, packed: Packed, folder: Path, path: Path) -> None:
    """Describe, check and write the package."""
    from bioimageio.spec import ValidationContext, save_bioimageio_package
    from bioimageio.spec.model.v0_5 import ModelDescr

    image = sample_image(ensemble.spec)
    answer = _answer(ensemble, packed, image)
    prediction = answer.numpy()
    flows = FLOWS in ensemble.outputs
    split = ensemble.outputs.slices(len(prediction))[CLASSES].stop
    names = output_names(ensemble.spec, split, packed.activation, flows=flows)
    labels = prediction[:split].argmax(axis=0) if split > 1 else (prediction[0] > 0.5).astype(np.uint8)
    colors = [one.color for one in ensemble.classes][-split:] if split > 1 else [c.color for c in ensemble.classes]
    write_cover(image, labels, colors, folder / "cover.png")
    (folder / "README.md").write_text(readme(ensemble, about, packed.title))
    try:
        with ValidationContext(perform_io_checks=False, log_warnings=False):
            given, taken = tensors(
                ensemble.url, ensemble.spec, names, packed.activation, image, prediction, folder,
                any_batch=packed.any_batch,
            )  # fmt: skip
            fields: dict[str, Any] = provenance(about) | {
                "name": re.sub(r"[^A-Za-z0-9_+\- ()]", " ", packed.title)[:128].ljust(5, "_"),
                "description": about.description[:1024],
                "covers": [{"source": folder / "cover.png"}],
                "documentation": {"source": folder / "README.md"},
                "tags": ["chorus", "segmentation", "2d", *(one.name for one in ensemble.spec.classes[1:])],
                "inputs": [given],
                "outputs": [taken],
                "weights": packed.weights,
                "config": {"chorus": {"ensemble": ensemble.hash, "overlap": ensemble.spec.overlap}},
            }
            description = ModelDescr(**fields)
        with _quiet(), warnings.catch_warnings():
            # bioimageio.spec tries each format of weights in turn, and warns about those that do not match.
            warnings.filterwarnings("ignore", "Found mapping with 'source'")
            save_bioimageio_package(description, output_path=path)
    except (ValidationError, ValueError) as error:
        path.unlink(missing_ok=True)
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        field = ".".join(str(part) for part in first["loc"][:2])
        raise RefusedError(
            f"{ensemble.url}: BioImage.IO does not take its {field} ({first_line(first['msg'])}); correct about in "
            "ensemble.yaml, or the option"
        ) from error


def _quiet() -> Any:
    """Return a validation context that checks files, without a log of recommendations."""
    from bioimageio.spec import ValidationContext

    return ValidationContext(file_name="bioimageio.yaml", perform_io_checks=True, log_warnings=False, progressbar=False)


def _answer(ensemble: Ensemble, packed: Packed, image: NDArray[Any]) -> torch.Tensor:
    """Return the output that the package must give for `image`, as Chorus computes it, (channels, y, x) float32."""
    preparation = packed.preparation
    prepared = preparation.apply(image, surveyed(preparation.measures, [image]))
    with torch.inference_mode():
        answer = packed.member(torch.from_numpy(prepared)[None])[0].float()
        if FLOWS in ensemble.outputs or packed.activation == "none":
            return answer
        return answer.softmax(dim=0) if packed.activation == "softmax" else answer.sigmoid()
