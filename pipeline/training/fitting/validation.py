"""Validation of a network on images that it is not trained on: whole images, one forward pass each.

Images are padded by mirroring to the network's stride. Larger ones, and volumes, are processed in blocks that overlap
by a margin, of which only the inside counts. That is several times faster than the blended tiles of ``chorus predict``,
and accurate enough to choose weights by; the final scores of an ensemble come from
`chorus.pipeline.training.evaluation`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.tiling import mirror
from chorus.pipeline.inference.members import AUTOCAST
from chorus.pipeline.members.contract import channels_last
from chorus.pipeline.preprocessing.normalisation import normalised
from chorus.pipeline.training.data.pairs import TrainingPair, class_image, load_pair
from chorus.pipeline.training.settings import TrainSettings

_BLOCK, _MARGIN = 1024, 96


@dataclass(frozen=True)
class ValidationImage:
    """A plane (y, x) or a volume (z, y, x) to validate on.

    Attributes
    ----------
    image : (channels, *shape) float32, normalised; `label` : integer as stored; `classes` : uint8
    """

    image: NDArray[np.float32]
    label: NDArray[np.integer]
    classes: NDArray[np.uint8]


def prepare_validation(pair: TrainingPair, settings: TrainSettings) -> ValidationImage:
    """Read and normalise one pair.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    raw, label = load_pair(pair)
    return ValidationImage(normalised(raw, settings.normalisation), label, class_image(label, settings, pair.label))


def predicted(
    network: torch.nn.Module, image: NDArray[np.float32], settings: TrainSettings, device: torch.device
) -> NDArray[np.float32]:
    """Return the outputs of a network for a whole image.

    Parameters
    ----------
    network : in evaluation mode, on `device`
    image : (channels, y, x) or (channels, z, y, x) float32, normalised
    settings : of the training
    device : that computes

    Returns
    -------
    NDArray[np.float32]
        Of the shape of `image`, its channels logits of the classes, then flows, then logits of boundaries.
    """
    shape = image.shape[1:]
    blocks, margins, steps = _cuts(settings)
    result = np.empty((settings.outputs, *shape), np.float32)
    dtype = AUTOCAST.get(settings.precision)
    for starts in itertools.product(*(range(0, length, size) for length, size in zip(shape, blocks, strict=True))):
        axes = zip(starts, blocks, margins, shape, steps, strict=True)
        seen, inside = zip(*(_span(*axis) for axis in axes), strict=True)
        block = torch.from_numpy(_taken(image, seen))[None].to(device)
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = network(block.contiguous(memory_format=channels_last(len(shape))))[0]
        part = tuple(slice(start, start + size) for start, size in zip(starts, blocks, strict=True))
        result[:, *part] = outputs[:, *inside].float().cpu().numpy()
    return result


def _cuts(settings: TrainSettings) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Return edges and margins of blocks on each axis, and of what their sizes with margins are multiples.

    Networks of volumes normalise by the statistics of what they see, and so they see blocks of the size of a patch.
    """
    if settings.axes == "yx":
        return (_BLOCK, _BLOCK), (_MARGIN, _MARGIN), settings.strides
    patch = settings.patch_shape
    margins = [edge // 8 for edge in patch]
    return [edge - 2 * margin for edge, margin in zip(patch, margins, strict=True)], margins, patch


def _taken(image: NDArray[np.float32], indices: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
    for axis, index in enumerate(indices, start=1):
        image = image.take(index, axis=axis)
    return image


def _span(start: int, block: int, margin: int, length: int, step: int) -> tuple[NDArray[np.int64], slice]:
    """Return the indices of a block with its margins, mirrored and padded to the step, and the inside among them."""
    first = max(0, start - margin)
    stop = min(start + block, length)
    last = min(stop + margin, length)
    size = -(-(last - first) // step) * step
    return mirror(np.arange(first, first + size), length), slice(start - first, stop - first)


def dice_scores(
    network: torch.nn.Module, images: Sequence[ValidationImage], settings: TrainSettings, device: torch.device
) -> dict[str, float]:
    """Return the Dice of each foreground class, pooled over the pixels of all images; 1 if no image has any of it."""
    classes = len(settings.classes)
    both, total = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    with evaluating(network):
        for one in images:
            prediction = predicted(network, one.image, settings, device)[:classes].argmax(0)
            for k in range(1, classes):
                mine, truth = prediction == k, one.classes == k
                both[k] += np.count_nonzero(mine & truth)
                total[k] += np.count_nonzero(mine) + np.count_nonzero(truth)
    return {settings.classes[k]: float(2 * both[k] / total[k]) if total[k] else 1.0 for k in range(1, classes)}


def average_precision_50(
    network: torch.nn.Module, images: Sequence[ValidationImage], settings: TrainSettings, device: torch.device
) -> float:
    """Return the mean over images of TP / (TP + FP + FN) of objects at an intersection over union of 0.5.

    Objects are made of flows, or of boundaries where there are none.

    Raises
    ------
    RefusedError
        If there are flows, and Cellpose is not installed.
    """
    from chorus.pipeline.instances.whole_image import boundary_label_image, label_image
    from chorus.pipeline.metrics.objects import average_precision

    values, classes = [], len(settings.classes)
    found: NDArray[np.integer]
    with evaluating(network):
        for one in images:
            outputs = predicted(network, one.image, settings, device)
            probability = torch.from_numpy(outputs[:classes]).softmax(0)[1:].sum(0).numpy()
            if settings.flows:
                found = label_image(probability, outputs[classes : classes + 2])
            else:
                found = boundary_label_image(probability, torch.from_numpy(outputs[-1]).sigmoid().numpy())
            values.append(average_precision(one.label, found)[0])
    return float(np.mean(values))


class evaluating:  # noqa: N801 - read as a verb, as torch.no_grad
    """Context in which the network is in evaluation mode."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    def __enter__(self) -> None:
        self._network.eval()

    def __exit__(self, *_: object) -> None:
        self._network.train()
