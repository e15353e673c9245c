"""Validation of a network on images that it is not trained on: whole images, one forward pass each.

Images are padded to the network's stride by mirroring. Larger ones are processed in blocks that overlap by a margin,
of which only the inside counts. That is several times faster than the blended tiles of ``chorus predict``, and accurate
enough to choose weights by; the final scores of an ensemble come from `chorus.pipeline.training.evaluation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.tiling import mirror
from chorus.pipeline.inference.members import AUTOCAST
from chorus.pipeline.preprocessing.normalisation import normalised
from chorus.pipeline.training.data.pairs import TrainingPair, class_image, load_pair
from chorus.pipeline.training.settings import STRIDE, TrainSettings

_BLOCK, _MARGIN = 1024, 96


@dataclass(frozen=True)
class ValidationImage:
    """A plane to validate on.

    Attributes
    ----------
    image : (channels, y, x) float32, normalised; `label` : (y, x) integer as stored; `classes` : (y, x) uint8
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
    image : (channels, y, x) float32, normalised
    settings : of the training
    device : that computes

    Returns
    -------
    NDArray[np.float32]
        (classes + flows, y, x): logits, then flows.
    """
    height, width = image.shape[1:]
    result = np.empty((settings.outputs, height, width), np.float32)
    dtype = AUTOCAST.get(settings.precision)
    for y in range(0, height, _BLOCK):
        for x in range(0, width, _BLOCK):
            (ys, inner_y), (xs, inner_x) = _span(y, height), _span(x, width)
            block = torch.from_numpy(image[:, ys][:, :, xs])[None].to(device)
            with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                outputs = network(block.contiguous(memory_format=torch.channels_last))[0]
            result[:, y : y + _BLOCK, x : x + _BLOCK] = outputs[:, inner_y, inner_x].float().cpu().numpy()
    return result


def _span(start: int, length: int) -> tuple[NDArray[np.int64], slice]:
    """Return the indices of a block with its margins, mirrored and padded to the stride, and the inside among them."""
    first = max(0, start - _MARGIN)
    stop = min(start + _BLOCK, length)
    last = min(stop + _MARGIN, length)
    size = -(-(last - first) // STRIDE) * STRIDE
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
    """Return the mean over images of TP / (TP + FP + FN) of objects at an intersection over union of 0.5, with flows.

    Raises
    ------
    RefusedError
        If Cellpose is not installed.
    """
    from chorus.pipeline.instances.whole_image import label_image
    from chorus.pipeline.metrics.objects import average_precision

    values = []
    with evaluating(network):
        for one in images:
            outputs = predicted(network, one.image, settings, device)
            probability = torch.from_numpy(outputs[:-2]).softmax(0)[1:].sum(0).numpy()
            values.append(average_precision(one.label, label_image(probability, outputs[-2:]))[0])
    return float(np.mean(values))


class evaluating:  # noqa: N801 - read as a verb, as torch.no_grad
    """Context in which the network is in evaluation mode."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    def __enter__(self) -> None:
        self._network.eval()

    def __exit__(self, *_: object) -> None:
        self._network.train()
