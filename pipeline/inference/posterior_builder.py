"""Inference settings, and the assembly of blended rows into a posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.answers import AnswerShape
from chorus.pipeline.core.class_labels import class_masks, predicted_labels
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.fields import PROBABILITY, FieldLayout
from chorus.pipeline.core.geometry import Span, Window
from chorus.pipeline.core.outputs import CLASSES, Outputs
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.inference.device_transfer import host_array, to_host

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """All settings that define the numbers: the same settings on the same kind of device give the same bits.

    Attributes
    ----------
    outputs : of the members; classes have a probability map each
    multilabel : whether classes are independent of each other
    tile : pixels of a tile on each axis, (y, x) or (z, y, x)
    augmentations : names, see `chorus.pipeline.core.augmentation`
    batch : tiles per call of a member (each with all augmentations)
    precision : fp32, or autocast to bf16 or fp16 within the members; sums are always float32
    effort : stopping rule of adaptive effort; None gives every tile all augmentations
    answer : shape of a member's answer for a tile
    """

    outputs: Outputs
    multilabel: bool
    tile: tuple[int, ...]
    augmentations: tuple[str, ...]
    batch: int
    precision: Precision = "fp32"
    effort: EffortBound | None = None
    answer: AnswerShape = field(default_factory=AnswerShape)

    @property
    def covered(self) -> tuple[int, ...]:
        """Pixels of a tile on each axis that members answer for."""
        return self.answer.covered(self.tile)

    @property
    def layout(self) -> FieldLayout:
        """Positions of the fields among the maps that are blended."""
        return FieldLayout.blended(self.outputs if self.effort is None else self.outputs.sampled(1))

    @property
    def classes(self) -> int:
        """Number of probability maps."""
        return len(self.outputs[CLASSES].names)

    @property
    def maps(self) -> int:
        """Number of blended maps: all channels of `layout`."""
        return self.layout.channels


def tiles_per_call(device: str, tile: tuple[int, ...], augmentations: int) -> int:
    """Return the default number of tiles per call of a member, for a kind of device."""
    return max(1, device_of(device).call_pixels // (augmentations * math.prod(tile)))


class PosteriorBuilder:
    """Receive blended rows on `device` and build the posterior of the target, after they were copied to the host."""

    def __init__(self, target: Window, settings: InferenceSettings, members: int, device: torch.device) -> None:
        self._settings = settings
        self._top = target.spans[0].start
        labels = torch.uint8 if settings.classes <= 256 else torch.uint16
        masks = torch.uint16 if settings.multilabel and settings.classes > 8 else labels

        def maps(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return host_array((count, *target.shape), dtype, device)

        self._layout = settings.layout
        self._maps = {name: maps(part.stop - part.start) for name, part in self._layout.slices.items()}
        self._labels, self._masks = maps(1, labels), maps(1, masks)
        self._member_masks = maps(members, masks)

    def take(self, rows: Span, maps: torch.Tensor) -> None:
        """Store rows of the ensemble's fields, followed by those of the members' means.

        Parameters
        ----------
        rows : of the plane
        maps : (maps + members x classes, rows, x) float32, see `take_ensemble` and `take_members`
        """
        self.take_ensemble(rows, maps[: self._layout.channels])
        self.take_members(rows, maps[self._layout.channels :])

    def take_ensemble(self, rows: Span, maps: torch.Tensor) -> None:
        """Store rows of the blended fields, and their labels and masks.

        Parameters
        ----------
        rows : of the plane
        maps : (maps, rows, x) float32, channels in the order of `InferenceSettings.layout`
        """
        inside = self._inside(rows)
        for name, values in self._layout.split(maps).items():
            to_host(self._maps[name][:, inside], values)
        probability, multilabel = maps[self._layout[PROBABILITY]], self._settings.multilabel
        to_host(self._labels[:, inside], predicted_labels(probability, multilabel=multilabel)[None])
        to_host(self._masks[:, inside], class_masks(probability, multilabel=multilabel)[None])

    def take_members(self, rows: Span, maps: torch.Tensor) -> None:
        """Store the class masks of rows of each member's mean probability.

        Parameters
        ----------
        rows : of the plane
        maps : (members x classes, rows, x) float32
        """
        by_class = maps.reshape(-1, self._settings.classes, *maps.shape[1:]).transpose(0, 1)
        masks = class_masks(by_class, multilabel=self._settings.multilabel)
        to_host(self._member_masks[:, self._inside(rows)], masks)

    @property
    def member_masks(self) -> NDArray[np.unsignedinteger]:
        """(members, y, x) unsigned, class masks of each member's mean; see `class_masks`."""
        return self._member_masks.numpy()

    def posterior(self, member_masks: NDArray[np.unsignedinteger] | None = None) -> Posterior:
        """Return the posterior of the target.

        Parameters
        ----------
        member_masks : (members, y, x) unsigned; by default those that were stored here
        """
        return Posterior(
            fields={name: maps.numpy() for name, maps in self._maps.items()},
            labels=self._labels[0].numpy(),
            masks=self._masks[0].numpy(),
            member_masks=self.member_masks if member_masks is None else member_masks,
        )

    def _inside(self, rows: Span) -> slice:
        return slice(rows.start - self._top, rows.stop - self._top)
