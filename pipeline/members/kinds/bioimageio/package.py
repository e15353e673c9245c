"""BioImage.IO packages: opened wherever they lie, their format checked, their files read and named by a hash.

A package is a folder, a zip archive, or the URL of either or of an rdf, or an id of the collection. Archives are read
in place: nothing of them is written anywhere.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import fault, shown
from chorus.pipeline.io.storage_failures import failure_sentence

WeightFormat: TypeAlias = Literal["pytorch_state_dict", "torchscript", "onnx"]
RUNNABLE: tuple[WeightFormat, ...] = ("pytorch_state_dict", "torchscript", "onnx")
_CONVERSIONS = {
    "keras_hdf5": "convert them, where TensorFlow is installed, with `python -m tf2onnx.convert --keras WEIGHTS.h5 "
    "--output weights.onnx --opset 17`, and add weights.onnx to the package as `onnx`",
    "keras_v3": "convert them, where Keras is installed, with `keras.saving.load_model(WEIGHTS).export(FOLDER)` and "
    "`python -m tf2onnx.convert --saved-model FOLDER --output weights.onnx --opset 17`, and add weights.onnx to the "
    "package as `onnx`",
    "tensorflow_saved_model_bundle": "unzip them and convert them, where TensorFlow is installed, with `python -m "
    "tf2onnx.convert --saved-model FOLDER --output weights.onnx --opset 17`, and add weights.onnx to the package as "
    "`onnx`",
}
_NO_CONVERSION = "ask its author for one of these"
NEWEST_FORMAT = (0, 5)
EXTRA = "pip install 'chorus-bioimage[bioimageio]'"
# "affable-shark", "affable-shark/1.1", "huggingface/owner/name", "10.5281/zenodo.5764892"
_ID = re.compile(r"[a-z]+-[a-z]+(/[\w.]+)?|huggingface/[\w.-]+/[\w.-]+(/[\w.]+)?|10\.5281/zenodo\.\d+(/\d+)?")


@dataclass(frozen=True)
class Package:
    """A package that was opened.

    Attributes
    ----------
    url : where it was found, or its id
    description : `bioimageio.spec.model.v0_5.ModelDescr`; older formats are converted
    rdf : as it is written
    halo : of the first output in pixels, of either end of y and x; 0 where none is given
    """

    url: str
    description: Any
    rdf: str
    halo: int

    def read(self, file: Any) -> bytes:
        """Read a file of the package (`bioimageio.spec.common.FileDescr`); raise RefusedError if it is missing."""
        name = str(file.source)
        if "://" not in name and fault(name):
            raise RefusedError(f"{self.url}: {shown(name)} lies outside of the package; correct its rdf")
        try:
            data: bytes = file.get_reader(progressbar=False).read()
        except _library_errors() as error:
            missing = isinstance(error, FileNotFoundError | KeyError)
            reason = "is missing from the package" if missing else f"cannot be read ({first_line(error)})"
            raise RefusedError(f"{self.url}: {name} {reason}; get the package anew") from error
        return data


@dataclass(frozen=True)
class WeightFiles:
    """The files that make a network, as bytes by name.

    Attributes
    ----------
    format : of the weights
    weights : the main file
    others : source code of its architecture, data beside an ONNX graph
    entry : `v0_5.PytorchStateDictWeightsDescr`, `TorchscriptWeightsDescr` or `OnnxWeightsDescr`
    """

    format: WeightFormat
    weights: bytes
    others: Mapping[str, bytes]
    entry: Any

    def sha256(self, package: Package) -> str:
        """Hash of all that defines the result: the rdf, the weights, and code or data beside them."""
        parts = [package.rdf.encode(), self.weights, *(data for _, data in sorted(self.others.items()))]
        digests = [hashlib.sha256(part).hexdigest() for part in parts]
        return hashlib.sha256("\n".join([self.format, *digests]).encode()).hexdigest()


def open_package(url: str, written: str | None = None) -> Package:
    """Open and check the package at `url`; nothing that it brings along runs.

    Parameters
    ----------
    written : as ensemble.yaml has it, which may be an id of the collection

    Raises
    ------
    RefusedError
        In one sentence: it is missing, no package, broken, of an unknown format, or no model.
    """
    try:
        from bioimageio.spec import ValidationContext, build_description
        from bioimageio.spec.utils import open_bioimageio_yaml
    except ImportError as error:
        raise RefusedError(f"{url}: BioImage.IO packages need bioimageio.core; {EXTRA}") from error
    source = _source(url, url if written is None else written)
    quiet = ValidationContext(perform_io_checks=False, log_warnings=False, progressbar=False)
    try:
        with quiet:
            opened = open_bioimageio_yaml(source)
    except _library_errors() as error:
        raise RefusedError(
            f"{url}: no BioImage.IO package ({first_line(error)}); give a folder, zip or URL with an rdf.yaml or "
            "bioimageio.yaml"
        ) from error
    content = dict(opened.content)
    halo = _check(url, content)
    context = quiet.replace(
        root=opened.original_root, file_name=opened.original_file_name, perform_io_checks=False, log_warnings=False
    )
    description = build_description(content, context=context, format_version="latest")
    if type(description).__name__ != "ModelDescr":
        summary = description.validation_summary
        first = summary.errors[0] if summary is not None and summary.errors else None
        reason = "" if first is None else f"{'.'.join(map(str, first.loc))}: {first_line(first.msg)}"
        raise RefusedError(
            f"{url}: this bioimageio.spec cannot read it ({reason}); mend the package or update bioimageio.core"
        )
    return Package(url, description, opened.unparsed_content, halo)


def _source(url: str, written: str) -> Any:
    """Return what bioimageio.spec opens: a folder, an archive, a web address or an id."""
    if storage.is_web(url) and not url.endswith(".zip"):
        return url
    fs, path = storage.filesystem(url)
    try:
        if fs.isdir(path):
            return Path(path) if storage.scheme(url) == "file" else _archived(fs, path)
        if fs.exists(path):
            if path.endswith((".yaml", ".yml")):
                return Path(path) if storage.scheme(url) == "file" else _archived(fs, path.rsplit("/", 1)[0])
            return zipfile.ZipFile(path if storage.scheme(url) == "file" else io.BytesIO(storage.read_bytes(url)))
    except zipfile.BadZipFile as error:
        raise RefusedError(
            f"{url}: neither a folder nor a zip archive nor an rdf ({first_line(error)}); get the package anew"
        ) from error
    except OSError as error:
        raise RefusedError(f"package {failure_sentence(error, url) or url}") from error
    if _ID.fullmatch(written):
        return written
    raise RefusedError(
        f"package {url}: not found; a member's `weights` is a folder or zip relative to ensemble.yaml, a URL, or an "
        "id of the BioImage.IO collection such as affable-shark"
    )


def _archived(fs: Any, folder: str) -> zipfile.ZipFile:
    """Pack a folder of a bucket into an archive in memory, which bioimageio.spec can read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(fs.find(folder)):
            archive.writestr(path.removeprefix(folder).lstrip("/"), fs.cat_file(path))
    return zipfile.ZipFile(buffer)


def _check(url: str, content: dict[str, Any]) -> int:
    """Refuse what is no model or of an unknown format; make format 0.4 ready for conversion; return the halo."""
    version = re.match(r"(\d+)\.(\d+)", str(content.get("format_version", "")))
    if version is None:
        raise RefusedError(f"{url}: no BioImage.IO package (its rdf has no format_version); correct the rdf")
    number = int(version[1]), int(version[2])
    if number > NEWEST_FORMAT or number < (0, 3):
        raise RefusedError(
            f"{url}: format_version {content['format_version']} is unknown, 0.3 to "
            f"{'.'.join(map(str, NEWEST_FORMAT))} are known; update Chorus or save the package in format 0.5"
        )
    if content.get("type", "model") != "model":
        raise RefusedError(f"{url}: describes a {content['type']}, not a model; give a model")
    outputs, inputs = content.get("outputs"), content.get("inputs")
    if not isinstance(outputs, list) or not isinstance(inputs, list):
        return 0  # the library says what is wrong
    if number == (0, 5):
        axes = outputs[0].get("axes", []) if outputs else []
        return max((int(axis.get("halo", 0)) for axis in axes if isinstance(axis, dict)), default=0)
    # Conversion to 0.5 refuses a halo beside a fixed size, and loses two settings of scale_range.
    halo = max((int(n) for n in outputs[0].get("halo") or []), default=0) if outputs else 0
    content["outputs"] = [{key: value for key, value in output.items() if key != "halo"} for output in outputs]
    for step in (step for tensor in inputs for step in tensor.get("preprocessing") or []):
        kwargs = step.get("kwargs") or {}
        if step.get("name") == "scale_range" and ("reference_tensor" in kwargs or kwargs.get("mode") == "per_dataset"):
            raise RefusedError(
                f"{url}: scale_range per dataset or by another tensor is lost between format 0.4 and 0.5; save the "
                "package in format 0.5"
            )
    return halo


def choose_format(package: Package, wanted: WeightFormat | None) -> WeightFormat:
    """Choose the format that runs best: a known library's network, TorchScript, ONNX, the package's own code.

    The choice depends on the package alone, so that an ensemble means the same everywhere.
    """
    weights = package.description.weights
    formats = [name for name in type(weights).model_fields if getattr(weights, name) is not None]
    runnable = [name for name in RUNNABLE if name in formats]
    if wanted is not None and wanted not in formats:
        raise RefusedError(f"{package.url}: has no {wanted} weights; it has {', '.join(formats)}: correct `format`")
    if wanted is not None:
        return wanted
    if not runnable:
        raise RefusedError(
            f"{package.url}: has only {', '.join(formats) or 'no'} weights, and Chorus runs {', '.join(RUNNABLE)}; "
            + next((how for name, how in _CONVERSIONS.items() if name in formats), _NO_CONVERSION)
        )
    state = weights.pytorch_state_dict
    own_code = state is not None and hasattr(state.architecture, "source")
    return next((name for name in runnable if not (own_code and name == "pytorch_state_dict")), runnable[0])


def weight_files(package: Package, format: WeightFormat) -> WeightFiles:
    """Find the files of one format; raise RefusedError if one is missing or differs from the rdf."""
    entry = getattr(package.description.weights, format)
    others = [file for file in (getattr(entry, "external_data", None),) if file is not None]
    if hasattr(getattr(entry, "architecture", None), "source"):
        others.append(entry.architecture)
    read = {Path(str(file.source)).name: package.read(file) for file in others}
    return WeightFiles(format, package.read(entry), read, entry)


def check_files(package: Package, files: WeightFiles, sha256: str | None, *, beside: bool = True) -> None:
    """Refuse a package that is not the one that was meant, as `contract.fetch_weights` does a file."""
    hashes = files.sha256(package)
    if not beside and hashes != (sha256 or "").lower():
        raise RefusedError(
            f"{package.url}: is not the package that ensemble.yaml names, whose sha256 it gives; correct the path or "
            "the hash"
        )
    if sha256 is None:
        raise RefusedError(f"{package.url}: its member has no sha256 in ensemble.yaml; add `sha256: {hashes}`")
    if hashes != sha256.lower():
        raise RefusedError(
            f"{package.url}: sha256 of its rdf and {files.format} weights is {hashes}, ensemble.yaml says {sha256}; "
            "restore the package, or correct the hash or `format`"
        )


def _library_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of libraries that bioimageio.spec does not catch: YAML, zip archives and the web."""
    import httpx
    from ruyaml.error import YAMLError

    return (OSError, ValueError, KeyError, AssertionError, zipfile.BadZipFile, YAMLError, httpx.HTTPError)
