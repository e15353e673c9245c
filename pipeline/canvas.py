"""What inference is told, and where its blended rows become a posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.effort import EffortBound
from pipeline.geometry import Span, Window
from pipeline.members.contract import FLOWS, Activation
from pipeline.posterior import Posterior, class_masks, predicted_labels

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """What defines the numbers: the same settings on the same kind of device give the same bits.

    Attributes
    ----------
    activation, multilabel, classes : how outputs become probability maps; `classes` counts the maps
    tile : edge of a tile in pixels
    augmentations : names, see `pipeline.augmentation`
    batch : tiles per call of a member (each with all augmentations)
    precision : fp32, or autocast to bf16 or fp16 within the members; sums are always float32
    flows : whether members give flows (dy, dx) after what they say of the classes
    effort : which tiles are done after the first round; None gives all of them every augmentation
    """

    activation: Activation
    multilabel: bool
    classes: int
    tile: int
    augmentations: tuple[str, ...]
    batch: int
    precision: Precision = "fp32"
    flows: bool = False
    effort: EffortBound | None = None

    @property
    def maps(self) -> int:
        """Quantities that are blended: probabilities, two variances, flows and the variance of their direction; how
        many samples there were, where that differs."""
        return self.classes + 2 + (FLOWS + 1) * self.flows + (self.effort is not None)


# Pixels that one call of a member sees on a GPU, all augmentations counted: enough to fill it.
_GPU_CALL_PIXELS = 1 << 22


def tiles_per_call(device: str, tile: int, augmentations: int) -> int:
    """How many tiles a call of a member gets where nobody says it.

    On a CPU larger batches are no faster (measured: 112 to 128 ms a tile of 256 with 1 to 8 in a batch).
    """
    return max(1, _GPU_CALL_PIXELS // (augmentations * tile**2)) if device == "cuda" else 1


class PosteriorCanvas:
    """Receives blended rows and becomes a Posterior of the target."""

    def __init__(self, target: Window, settings: InferenceSettings, members: int) -> None:
        self._settings = settings
        self._top = target.y.start
        height, width = target.shape
        labels = np.uint8 if settings.classes <= 256 else np.uint16
        masks = np.uint16 if settings.multilabel and settings.classes > 8 else labels
        self._probability = np.empty((settings.classes, height, width), np.float32)
        self._variances = np.empty((2, height, width), np.float32)
        self._flows = np.empty((FLOWS * settings.flows, height, width), np.float32)
        self._flow_variance = np.empty((int(settings.flows), height, width), np.float32)
        self._samples = np.empty((int(settings.effort is not None), height, width), np.float32)
        self._labels = np.empty((height, width), labels)
        self._masks = np.empty((height, width), masks)
        self._member_masks = np.empty((members, height, width), masks)

    def take_ensemble(self, rows: Span, maps: torch.Tensor) -> None:
        """Rows of what `pipeline.posterior.SampleSums.maps` gives, then the number of samples where that differs,
        (maps, rows, x)."""
        inside = slice(rows.start - self._top, rows.stop - self._top)
        classes, flows = self._settings.classes, self._settings.classes + 2 + len(self._flows)
        probability = maps[:classes]
        multilabel = self._settings.multilabel
        self._probability[:, inside] = probability.cpu().numpy()
        self._variances[:, inside] = maps[classes : classes + 2].cpu().numpy()
        self._flows[:, inside] = maps[classes + 2 : flows].cpu().numpy()
        self._flow_variance[:, inside] = maps[flows : flows + len(self._flow_variance)].cpu().numpy()
        self._samples[:, inside] = maps[flows + len(self._flow_variance) :].cpu().numpy()
        self._labels[inside] = predicted_labels(probability, multilabel=multilabel).cpu().numpy()
        self._masks[inside] = class_masks(probability, multilabel=multilabel).cpu().numpy()

    def take_member(self, member: int, rows: Span, maps: torch.Tensor) -> None:
        """Rows of (classes, rows, x): the member's own mean probability."""
        inside = slice(rows.start - self._top, rows.stop - self._top)
        masks = class_masks(maps, multilabel=self._settings.multilabel)
        self._member_masks[member, inside] = masks.cpu().numpy()

    @property
    def member_masks(self) -> NDArray[np.unsignedinteger]:
        return self._member_masks

    def posterior(self, member_masks: NDArray[np.unsignedinteger] | None = None) -> Posterior:
        return Posterior(
            probability=self._probability,
            epistemic=self._variances[0],
            aleatoric=self._variances[1],
            labels=self._labels,
            masks=self._masks,
            member_masks=self._member_masks if member_masks is None else member_masks,
            flows=self._flows,
            flow_variance=self._flow_variance,
            samples=self._samples,
        )
