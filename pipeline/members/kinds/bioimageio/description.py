"""Describe a BioImage.IO package as the entry of an ensemble."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.outputs import FLOWS, RAYS, Activation, Role
from chorus.pipeline.core.provenance import About, Citation, DataReference, Person
from chorus.pipeline.core.units import micrometers
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kinds.bioimageio.member import BioimageioMember
from chorus.pipeline.members.kinds.bioimageio.package import (
    Package,
    WeightFormat,
    choose_format,
    open_package,
    weight_files,
)
from chorus.pipeline.members.kinds.bioimageio.processing import preparation, raw_output
from chorus.pipeline.members.kinds.bioimageio.shapes import check_output, nearest_tile, port, tile_fits
from chorus.pipeline.members.outputs import ClassesOutput, FlowsOutput, OutputEntry, RaysOutput, StarThresholds

DEFAULT_TILE = 256
# StarDist's network ends with a sigmoid, Cellpose's with the logit of a cell.
_RAW_ACTIVATIONS: dict[Role, Activation] = {FLOWS: "sigmoid", RAYS: "none"}


def describe(url: str, format: WeightFormat | None = None) -> ModelDescription:
    """Describe the package at `url` (or of this id) as a member, with the hash of its weights; run nothing of it.

    Its tile is that of its test input, or else the nearest size to 256 that it accepts. Whether its outputs are
    probabilities is inferred from its postprocessing and its test output.

    Raises
    ------
    RefusedError
        If it is no package, or none that can be a member.
    """
    package = open_package(url)
    description = package.description
    files = weight_files(package, choose_format(package, format))
    preparation(package.url, description.inputs)
    for tensor in [*description.inputs, description.outputs[0]]:
        port(package.url, tensor)
    tile = _tile(package)
    if tile is not None:
        check_output(package.url, description.inputs, description.outputs[0], tile)
    raw = raw_output(description.outputs[0])
    names = _names(description.outputs[0])
    test = _test_array(package, description.outputs[0])
    activation = _RAW_ACTIVATIONS[raw] if raw else _activation(description.outputs[0], test)
    entry = BioimageioMember(
        kind="bioimageio",
        weights=url,
        sha256=files.sha256(package),
        format=files.format,
        # Cellpose's order is dy, dx, probability of a cell.
        channels=(2, 0, 1) if raw == FLOWS else None,
        activation=None if activation == "none" else activation,
    )
    return ModelDescription(
        entry=entry,
        name=str(description.name),
        channels=_channels(description.inputs),
        classes=["background", "cell"] if raw else _classes(names, activation, test),
        activation=activation,
        outputs=_outputs(description.outputs[0], raw),
        tile=tile,
        pixel_size_um=_pixel_size(description.inputs[0]),
        about=_about(package),
    )


def _outputs(output: Any, raw: Role | None) -> tuple[OutputEntry, ...]:
    if raw == FLOWS:
        return ClassesOutput(), FlowsOutput()
    if raw != RAYS:
        return (ClassesOutput(),)
    stars = next(step.kwargs for step in output.postprocessing if str(step.id) == "stardist_postprocessing")
    objects = StarThresholds(prob_threshold=stars.prob_threshold, nms_threshold=stars.nms_threshold)
    y, x = stars.grid
    return ClassesOutput(), RaysOutput(role="rays", channels=stars.n_rays, grid=(y, x), objects=objects)


def _tile(package: Package) -> int | None:
    inputs = package.description.inputs
    test, axes = _test_array(package, inputs[0]), [str(axis.id) for axis in inputs[0].axes]
    if test is not None and test.ndim == len(axes):
        y, x = test.shape[axes.index("y")], test.shape[axes.index("x")]
        if y == x and tile_fits(inputs, y):
            return int(y)
    return nearest_tile(inputs, DEFAULT_TILE)


def _test_array(package: Package, tensor: Any) -> NDArray[Any] | None:
    """Read a tensor's test array; None if the package has none."""
    if tensor.test_tensor is None:
        return None
    array: NDArray[Any] = np.load(io.BytesIO(package.read(tensor.test_tensor)), allow_pickle=False)
    return array


def _names(tensor: Any) -> list[str]:
    return next((list(axis.channel_names) for axis in tensor.axes if axis.type == "channel"), [str(tensor.id)])


def _channels(inputs: Any) -> list[str]:
    names = [(str(tensor.id), name) for tensor in inputs for name in _names(tensor)]
    plain = [name for _, name in names]
    return plain if len(set(plain)) == len(plain) else [f"{tensor}-{name}" for tensor, name in names]


def _activation(output: Any, test: NDArray[Any] | None) -> Activation:
    """Return ``none`` if the outputs are probabilities; else what the number of channels suggests."""
    known = any(str(step.id) in ("sigmoid", "softmax", "binarize") for step in output.postprocessing)
    if known or (test is not None and float(test.min()) >= 0 and float(test.max()) <= 1):
        return "none"
    return "sigmoid" if len(_names(output)) == 1 else "softmax"


def _classes(names: list[str], activation: Activation, test: NDArray[Any] | None) -> list[str]:
    """Read channels as classes; the background is one of them if they add up to one, or if its name says so."""
    softmax = activation == "softmax"
    if activation == "none" and test is not None and len(names) > 1:
        axis = next((i for i, size in enumerate(test.shape) if size == len(names)), 0)
        softmax = bool(np.allclose(test.sum(axis=axis), 1, atol=1e-3))
    return names if len(names) > 1 and (softmax or "background" in names[0].lower()) else ["background", *names]


def _pixel_size(tensor: Any) -> float | None:
    axes = {str(axis.id): axis for axis in tensor.axes if axis.type == "space"}
    sizes = {(micrometers(str(axes[name].unit)) or 0.0) * axes[name].scale for name in "yx"}
    return sizes.pop() or None if len(sizes) == 1 else None


def _about(package: Package) -> About:
    description = package.description
    data = description.training_data
    limits = f"Made for a halo of {package.halo} pixels: let tiles overlap by more." if package.halo else ""
    return About(
        description=str(description.description or ""),
        limits=limits,
        licence=None if description.license is None else str(description.license),
        authors=[Person(name=p.name, affiliation=p.affiliation, orcid=_text(p.orcid)) for p in description.authors],
        cite=[Citation(text=c.text, doi=_text(c.doi), url=_text(c.url)) for c in description.cite],
        data=[] if data is None else [DataReference(name=str(getattr(data, "name", None) or data.id))],
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
