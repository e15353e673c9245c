"""Test of a BioImage.IO package on its own test tensors: run by bioimageio.core, and run as a member of Chorus."""

from __future__ import annotations

import importlib.util
import io
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.bioimageio.comparison import ComparisonOutcome, Status, Tolerance, compare, tolerance, worst
from chorus.pipeline.core.outputs import Outputs, classes_of
from chorus.pipeline.errors import RefusedError, first_line, reason_of
from chorus.pipeline.members.contract import LoadRequest
from chorus.pipeline.members.kinds.bioimageio.member import BioimageioMember
from chorus.pipeline.members.kinds.bioimageio.networks import LIBRARIES, load_network
from chorus.pipeline.members.kinds.bioimageio.package import (
    EXTRA,
    RUNNABLE,
    Package,
    WeightFiles,
    WeightFormat,
    open_package,
    weight_files,
)
from chorus.pipeline.members.kinds.bioimageio.shapes import nearest_tile, port, tile_fits
from chorus.pipeline.members.safety.script import check_source
from chorus.pipeline.members.safety.trial import check_trial
from chorus.pipeline.preprocessing.preparation import Preparation, surveyed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FormatTest:
    """Test of one weight format: by bioimageio.core, with all of its checks, and by Chorus."""

    format: str
    tolerance: Tolerance
    core: ComparisonOutcome
    chorus: ComparisonOutcome

    @property
    def status(self) -> Status:
        """Failed if either failed; passed if either ran."""
        both = {self.core.status, self.chorus.status}
        return "failed" if "failed" in both else "passed" if "passed" in both else "skipped"


@dataclass(frozen=True)
class PackageTest:
    """Test of a whole package.

    Attributes
    ----------
    warnings : of bioimageio.spec about its description
    """

    url: str
    name: str
    format_version: str
    warnings: tuple[str, ...]
    formats: tuple[FormatTest, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; formats that could not run do not count."""
        return all(one.status != "failed" for one in self.formats)


def check_package(url: str, format: WeightFormat | None = None, *, trust_code: bool = False) -> PackageTest:
    """Run the test inputs of the package at `url` and compare the results with its test outputs.

    Code of the package, and callables of libraries that are not known to build networks, run only with `trust_code`.

    Raises
    ------
    RefusedError
        If it cannot be opened, is not valid or has no such weights.
    """
    if importlib.util.find_spec("bioimageio") is None or importlib.util.find_spec("bioimageio.core") is None:
        raise RefusedError(f"{url}: testing a package needs bioimageio.core; {EXTRA}")
    with _silence():
        package = open_package(url)
        weights = package.description.weights
        formats = [name for name in type(weights).model_fields if getattr(weights, name) is not None]
        if format is not None and format not in formats:
            raise RefusedError(f"{url}: has no {format} weights; it has {', '.join(formats)}: correct --format")
        described = _validated(package)
        tests = [_test_format(package, described, name, trust_code) for name in formats if format in (None, name)]
    summary = described.validation_summary
    spec = [w for detail in summary.details if detail.loc[:1] != ("weights",) for w in detail.warnings]
    remarks = tuple(f"{_field(w.loc)}: {first_line(w.msg)}" for w in spec)
    written = re.search(r"^format_version:\s*['\"]?([\d.]+)", package.rdf, re.MULTILINE)
    version = written[1] if written else str(described.format_version)
    return PackageTest(url, str(described.name), version, remarks, tuple(tests))


@contextmanager
def _silence() -> Iterator[None]:
    """Disable the log of bioimageio.core: its messages are in its summary too."""
    from loguru import logger

    logger.disable("bioimageio")
    try:
        with warnings.catch_warnings():
            # Deprecated for new files; packages contain it and must continue to load.
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
            yield
    finally:
        logger.enable("bioimageio")


def _validated(package: Package) -> Any:
    """Return the description after a check of all its files; raise RefusedError if it is not valid."""
    from bioimageio.spec import ValidationContext, build_description, dump_description

    description = package.description
    context = ValidationContext(
        root=description.root, file_name=description.file_name, perform_io_checks=True, log_warnings=False
    )
    try:
        described = build_description(dump_description(description), context=context)
    except (OSError, ValueError, KeyError) as error:  # a file that is named and is not there
        raise RefusedError(f"{package.url}: not a valid package ({first_line(error)}); get it anew") from error
    if type(described).__name__ != "InvalidDescr":
        return described
    errors = [entry for detail in described.validation_summary.details for entry in detail.errors]
    lacking = [entry for entry in errors if "not point to" in entry.msg or "not found" in entry.msg.lower()]
    first = (lacking or errors)[0]
    what = "lacks a file that it names" if lacking else "not a valid package"
    reason = first_line(reason_of(first.msg))
    raise RefusedError(f"{package.url}: {what} ({_field(first.loc)}: {reason}); get the package anew")


def _field(loc: Sequence[str | int]) -> str:
    """Return the name of a field without the names of pydantic's validators and of the alternatives that it tried."""
    return ".".join(str(part) for part in loc if re.fullmatch(r"[a-z0-9_]+", str(part)))


def _test_format(package: Package, described: Any, name: str, trust_code: bool) -> FormatTest:
    outputs = [str(tensor.id) for tensor in described.outputs]
    tolerances = {output: tolerance(described, name, output) for output in outputs}
    if name not in RUNNABLE:
        skipped = ComparisonOutcome("skipped", f"Chorus runs {', '.join(RUNNABLE)} weights")
        return FormatTest(name, tolerances[outputs[0]], skipped, skipped)
    format: WeightFormat = name
    held = _untrusted(package, format) if not trust_code else ""
    if held:
        skipped = ComparisonOutcome("skipped", held)
        return FormatTest(name, tolerances[outputs[0]], skipped, skipped)
    try:
        files = weight_files(package, format)
        # Before bioimageio.core builds the network, since it calls whatever the package names.
        if name == "torchscript" and not trust_code:
            where = f"{package.url}: {files.entry.source}"
            check_source(where, files.weights)
            check_trial(where, files.weights, [_array(package, tensor).shape for tensor in package.description.inputs])
        load_network(package, files, CPU, trust_code=trust_code)
    except RefusedError as error:
        failed = ComparisonOutcome("failed", str(error))
        return FormatTest(name, tolerances[outputs[0]], failed, failed)
    core = _by_core(described, format, tolerances)
    chorus = _by_chorus(package, files, tolerances, trust_code)
    return FormatTest(name, tolerances[outputs[0]], core, chorus)


def _untrusted(package: Package, format: WeightFormat) -> str:
    """Return a sentence on the package's own code that would run; empty if there is none."""
    steps = [s for tensor in package.description.inputs for s in tensor.preprocessing]
    steps += [s for tensor in package.description.outputs for s in tensor.postprocessing]
    if any(str(step.id) == "custom" for step in steps):
        return "its processing is code of its own; read it, then run with --trust-code"
    architecture = getattr(getattr(package.description.weights, format), "architecture", None)
    if architecture is None:
        return ""
    if hasattr(architecture, "source"):
        return f"its architecture is code of its own ({architecture.source}); read it, then run with --trust-code"
    if architecture.import_from.split(".")[0] not in LIBRARIES:
        return (
            f"its architecture is of {architecture.import_from}, which is none of {', '.join(LIBRARIES)}; look at what "
            "it does, then run with --trust-code"
        )
    return ""


def _by_core(described: Any, format: WeightFormat, tolerances: dict[str, Tolerance]) -> ComparisonOutcome:
    """Run bioimageio.core's own test, which also runs other sizes and batches; measure the differences besides."""
    from bioimageio.core import create_prediction_pipeline
    from bioimageio.core import test_model as tested
    from bioimageio.core.digest_spec import get_test_input_sample, get_test_output_sample

    start = time.perf_counter()
    summary = tested(described, weight_format=format)
    seconds = time.perf_counter() - start
    details = [detail for detail in summary.details if detail.loc[:2] == ("weights", format)]
    errors = [first_line(error.msg) for detail in details for error in detail.errors]
    if errors or not details:
        return ComparisonOutcome("failed", errors[0] if errors else "bioimageio.core tested nothing", seconds=seconds)
    expected = get_test_output_sample(described).members
    with create_prediction_pipeline(bioimageio_model=described, weight_format=format) as pipeline:
        given = pipeline.predict_sample_without_blocking(
            get_test_input_sample(described), skip_input_padding=True, skip_output_cropping=True
        ).members
    arrays = ((str(name), given[name].data.to_numpy(), expected[name].data.to_numpy()) for name in expected)
    return worst([compare(one, other, tolerances[name]) for name, one, other in arrays], seconds)


def _by_chorus(
    package: Package, files: WeightFiles, tolerances: dict[str, Tolerance], trust_code: bool
) -> ComparisonOutcome:
    """Run each output as a member: prepared, run and postprocessed over the whole test image at once."""
    start = time.perf_counter()
    try:
        raw = _test_pixels(package)
        outcomes = [
            _output_by_chorus(package, files, tensor, raw, tolerances[str(tensor.id)], trust_code)
            for tensor in package.description.outputs
        ]
    except RefusedError as error:
        return ComparisonOutcome("skipped", str(error), seconds=time.perf_counter() - start)
    except RuntimeError as error:  # torch's, of a network that does not take its own test input
        return ComparisonOutcome("failed", first_line(error), seconds=time.perf_counter() - start)
    return worst(outcomes, time.perf_counter() - start)


def _output_by_chorus(
    package: Package, files: WeightFiles, tensor: Any, raw: NDArray[Any], tolerance: Tolerance, trust_code: bool
) -> ComparisonOutcome:
    digest = files.sha256(package)
    entry = BioimageioMember(
        kind="bioimageio", weights=package.url, format=files.format, output=str(tensor.id), sha256=digest
    )
    inputs = package.description.inputs
    edge = raw.shape[-1] if tile_fits(inputs, raw.shape[-1]) else nearest_tile(inputs, raw.shape[-1]) or raw.shape[-1]
    taken = port(package.url, tensor)
    outputs = Outputs((classes_of(list(map(str, range(taken.channels)))),))
    asked = LoadRequest(package.url, raw.shape[1], outputs, tile=edge, trust_code=trust_code)
    prepared = _prepared(entry.preparation(asked), raw)
    with torch.inference_mode():
        given = entry.load(asked, CPU)(torch.from_numpy(prepared))
        expected = taken.take(torch.from_numpy(_array(package, tensor)).to(torch.float32))
        if expected.shape[-2:] != given.shape[-2:]:  # a member's output is resized to its tile
            expected = torch.nn.functional.interpolate(
                expected, size=given.shape[-2:], mode="bilinear", align_corners=False
            )
    return compare(given.numpy(), expected.numpy(), tolerance)


def _test_pixels(package: Package) -> NDArray[Any]:
    """Return the test inputs as (samples, channels, y, x), concatenated along the channels."""
    tensors = package.description.inputs
    parts = [_array(package, tensor) for tensor in tensors]
    laid = [_laid(package, tensor, part) for tensor, part in zip(tensors, parts, strict=True)]
    if len({(part.shape[0], *part.shape[2:]) for part in laid}) != 1:
        raise RefusedError(f"{package.url}: its inputs have different sizes; members see one image")
    return np.concatenate(laid, axis=1)


def _laid(package: Package, tensor: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Return an input as (samples, channels, y, x).

    It keeps its stored dtype, which statistics and ``ensure_dtype`` may depend on.
    """
    own = port(package.url, tensor)
    positions = own.take(torch.arange(array.size).reshape(array.shape))
    laid: NDArray[Any] = array.reshape(-1)[positions.numpy()]
    return laid


def _array(package: Package, tensor: Any) -> NDArray[Any]:
    if tensor.test_tensor is None:
        raise RefusedError(f"{package.url}: {tensor.id} has no test tensor; add one to the package")
    array: NDArray[Any] = np.load(io.BytesIO(package.read(tensor.test_tensor)), allow_pickle=False)
    return array


def _prepared(preparation: Preparation, raw: NDArray[Any]) -> NDArray[np.float32]:
    """Prepare each sample as an image of its own, all together as the data set."""
    samples = list(raw)
    shared = surveyed({m for m in preparation.measures if m.per == "dataset"}, samples)
    own = {m for m in preparation.measures if m.per == "image"}
    return np.stack([preparation.apply(one, {**shared, **surveyed(own, [one])}) for one in samples])
