"""Tensors of a BioImage.IO package: inputs and outputs, the ensemble's normalisation, samples and the cover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.bioimageio.export_weights import IMAGE, PREDICTION
from chorus.pipeline.core.fields import FLOW
from chorus.pipeline.core.outputs import Activation
from chorus.pipeline.ensembles.spec import EnsembleSpec
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.preprocessing.normalisation import MeanStd, Percentile, dtype_divisor

EPS = 1e-12
"""Added to a range or a standard deviation; Chorus adds none, but 0 is not allowed in a package."""
_PLANE = ("y", "x")


def _v0_5() -> Any:
    """Return `bioimageio.spec.model.v0_5`, untyped: its validators accept plain strings and dicts, its types do not."""
    from bioimageio.spec.model import v0_5

    return v0_5


def sample_image(spec: EnsembleSpec, seed: int = 0) -> NDArray[Any]:
    """Return blurred noise at intensities that fit the ensemble's normalisation.

    Returns
    -------
    NDArray
        (channels, tile, tile); uint8 if integers are divided by the maximum of their dtype, float32 if the smallest
        standard deviation is below 1, else uint16.
    """
    from scipy.ndimage import gaussian_filter

    normalisation, channels = spec.input.normalisation, len(spec.input.channels)
    noise = np.random.default_rng(seed).normal(size=(channels, spec.edge, spec.edge))
    smooth = gaussian_filter(noise, (0, 3, 3))
    smooth /= smooth.std(axis=(1, 2), keepdims=True)
    mean, std = np.full(channels, 500.0), np.full(channels, 150.0)
    divisor = 255.0 if spec.input.scale == "dtype" else 1.0
    if isinstance(normalisation, MeanStd) and normalisation.mean is not None and normalisation.std is not None:
        mean, std = np.array(normalisation.mean) * divisor, np.array(normalisation.std) * divisor
    elif spec.input.scale == "dtype":
        mean, std = np.full(channels, 90.0), np.full(channels, 30.0)
    pixels: NDArray[np.float64] = mean[:, None, None] + std[:, None, None] * smooth
    if spec.input.scale == "dtype":
        return np.clip(pixels, 0, 255).astype(np.uint8)
    if std.min() < 1:
        return pixels.astype(np.float32)
    return np.clip(pixels, 0, 65535).astype(np.uint16)


def preprocessing(url: str, spec: EnsembleSpec, dtype: np.dtype[Any]) -> list[Any]:
    """Return the ensemble's normalisation as BioImage.IO's processing steps, for pixels of `dtype`.

    Raises
    ------
    RefusedError
        If BioImage.IO has no such step.
    """
    io = _v0_5()
    normalisation = spec.input.normalisation
    divisor = dtype_divisor(dtype) if spec.input.scale == "dtype" else 1.0
    as_float = io.EnsureDtypeDescr(kwargs=io.EnsureDtypeKwargs(dtype="float32"))
    steps: list[Any] = [as_float]
    if isinstance(normalisation, Percentile):
        if normalisation.high <= 1 or normalisation.low >= 100:
            raise RefusedError(
                f"{url}: BioImage.IO has no scale_range from percentile {normalisation.low:g} to "
                f"{normalisation.high:g} (the upper one must be more than 1); such an ensemble cannot be packed"
            )
        ends = {"min_percentile": normalisation.low, "max_percentile": normalisation.high}
        steps.append(io.ScaleRangeDescr(kwargs=io.ScaleRangeKwargs(axes=_PLANE, eps=EPS, **ends)))
    elif not isinstance(normalisation, MeanStd):
        if divisor != 1:
            steps.append(io.ScaleLinearDescr(kwargs=io.ScaleLinearKwargs(gain=1 / divisor)))
    elif normalisation.mean is None or normalisation.std is None:
        steps.append(io.ZeroMeanUnitVarianceDescr(kwargs=io.ZeroMeanUnitVarianceKwargs(axes=_PLANE, eps=EPS)))
    else:
        kwargs = io.FixedZeroMeanUnitVarianceAlongAxisKwargs(
            mean=[m * divisor for m in normalisation.mean], std=[s * divisor for s in normalisation.std], axis="channel"
        )
        steps.append(io.FixedZeroMeanUnitVarianceDescr(kwargs=kwargs))
    # Without it as the last step, bioimageio.spec adds a conversion back to the dtype of the stored pixels.
    return [*steps, as_float]


def output_names(spec: EnsembleSpec, count: int, activation: Activation, *, flows: bool) -> list[str]:
    """Return the names of the `count` outputs for the classes, then of the flows.

    With flows there is no postprocessing, which would act on all channels: outputs for classes that are not
    probabilities yet are called logits.
    """
    names = [entry.name for entry in spec.classes][-count:]
    if flows and activation != "none":
        names = [f"logit:{name}" for name in names]
    return [*names, *map(FLOW.channel, _PLANE)] if flows else names


def postprocessing(activation: Activation, *, flows: bool) -> list[Any]:
    """Return the steps that turn the last layer into probabilities; none if flows are among its channels."""
    io = _v0_5()
    if flows or activation == "none":
        return []
    return [io.SoftmaxDescr() if activation == "softmax" else io.SigmoidDescr()]


def tensors(
    url: str,
    spec: EnsembleSpec,
    names: list[str],
    activation: Activation,
    image: NDArray[Any],
    prediction: NDArray[np.float32],
    folder: Path,
    *,
    any_batch: bool,
) -> tuple[Any, Any]:
    """Describe the input and output of a package; write their test tensors and samples to `folder`.

    Parameters
    ----------
    url : of the ensemble, for messages
    spec : of the ensemble
    names : of the output's channels
    activation : of the last layer
    image : (channels, y, x), stored values of any real dtype
    prediction : (channels, y, x) float32, the output that the package must give
    folder : for the files
    any_batch : whether several tiles may be given at once

    Returns
    -------
    given : `v0_5.InputTensorDescr`
    taken : `v0_5.OutputTensorDescr`
    """
    from bioimageio.spec.common import FileDescr

    io = _v0_5()
    edge, size = spec.edge, spec.input.plane_pixel_um
    scale = {} if size is None else {"scale": size, "unit": "micrometer"}
    batch = io.BatchAxis() if any_batch else io.BatchAxis(size=1)
    samples = {IMAGE: image, PREDICTION: prediction}
    files = {name: _files(name, array, folder) for name, array in samples.items()}
    space = [io.SpaceInputAxis(id=axis, size=edge, **scale) for axis in _PLANE]
    given = io.InputTensorDescr(
        id=IMAGE,
        description="Pixels as they are stored.",
        axes=[batch, io.ChannelAxis(channel_names=list(spec.input.channels)), *space],
        data=io.IntervalOrRatioDataDescr(type=str(image.dtype)),
        preprocessing=preprocessing(url, spec, image.dtype),
        test_tensor=FileDescr(source=files[IMAGE][0]),
        sample_tensor=FileDescr(source=files[IMAGE][1]),
    )
    flows = FLOW.channel("y") in names
    taken = io.OutputTensorDescr(
        id=PREDICTION,
        description="Classes, then flows: 5 times the unit vector to the object's centre." if flows else "Classes.",
        axes=[batch, io.ChannelAxis(channel_names=names), *_output_axes(spec, scale)],
        data=io.IntervalOrRatioDataDescr(type="float32"),
        postprocessing=postprocessing(activation, flows=flows),
        test_tensor=FileDescr(source=files[PREDICTION][0]),
        sample_tensor=FileDescr(source=files[PREDICTION][1]),
    )
    return given, taken


def _output_axes(spec: EnsembleSpec, scale: dict[str, Any]) -> list[Any]:
    """Return the axes, with a halo of half the overlap of an ensemble's neighbouring tiles."""
    io = _v0_5()
    halo = round(spec.edge * spec.plane_overlap / 2)
    halo = min(halo, (spec.edge - 1) // 2)
    sizes = {axis: io.SizeReference(tensor_id=IMAGE, axis_id=axis) for axis in _PLANE}
    if not halo:
        return [io.SpaceOutputAxis(id=axis, size=size, **scale) for axis, size in sizes.items()]
    return [io.SpaceOutputAxisWithHalo(id=axis, size=size, halo=halo, **scale) for axis, size in sizes.items()]


def _files(name: str, array: NDArray[Any], folder: Path) -> tuple[Path, Path]:
    """Write the test tensor and the sample image of the same pixels."""
    import tifffile

    test, sample = folder / f"test-{name}.npy", folder / f"sample-{name}.tif"
    np.save(test, array[np.newaxis])
    # A page per channel: a single page of three channels would be interpreted as RGB.
    tifffile.imwrite(sample, array, photometric="minisblack", metadata={"axes": "CYX"})
    return test, sample


def write_cover(image: NDArray[Any], labels: NDArray[np.integer], colors: list[str], path: Path) -> None:
    """Write a picture of the first channel beside the prediction, two squares (2:1, as the collection requires).

    Parameters
    ----------
    image : (channels, y, x) of any real dtype
    labels : (y, x) integer, index into `colors`
    colors : per class, ``#RRGGBB``
    path : of the PNG file
    """
    from PIL import Image, ImageColor

    low, high = np.percentile(image[0], (0.5, 99.5))
    grey = np.clip((image[0] - low) / max(high - low, 1e-9), 0, 1) * 255
    palette = np.array([ImageColor.getrgb(color) for color in colors], np.uint8)
    left = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    picture = Image.fromarray(np.concatenate([left, palette[labels]], axis=1))
    picture.resize((1024, 512), Image.Resampling.NEAREST).save(path, optimize=True)
