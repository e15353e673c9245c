"""Evaluation of an ensemble on images with a ground truth: each member and all together, with and without augmentation.

The numbers are those of ``chorus predict``: the same tiles, statistics, blending and labels. Members are evaluated once
and the ensemble is the sum of their samples, as if members were on several devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.fields import BOUNDARIES
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.outputs import BOUNDARY, FLOWS
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import ImageError
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import InferenceSettings, tiles_per_call
from chorus.pipeline.inference.stages import StageState
from chorus.pipeline.inference.tile_stream import PlaneWindow
from chorus.pipeline.instances.whole_image import boundary_label_image, label_image
from chorus.pipeline.metrics.objects import average_precision
from chorus.pipeline.metrics.segmentation import dice
from chorus.pipeline.preprocessing.preparation import surveyed

ENSEMBLE = "ensemble"
# Bounds the memory of the sums; any value gives the same scores.
_REGION = {"yx": (1024, 1024), "zyx": (64, 256, 256)}


@dataclass(frozen=True, slots=True)
class FoldScore:
    """Scores of one predictor on one image.

    Attributes
    ----------
    image : its name
    predictor : ``member-<i>``, or ``ensemble``
    augmented : with the ensemble's augmentations, or with none
    dice : mean over the foreground classes, 0 to 1; 1 if neither truth nor prediction has any
    ap50, mean_ap : average precision TP / (TP + FP + FN) of objects at an intersection over union of 0.5, and its mean
        over 0.5 to 0.95; 1 if neither has an object; None if there are no objects to compare
    """

    image: str
    predictor: str
    augmented: bool
    dice: float
    ap50: float | None = None
    mean_ap: float | None = None


class Evaluator:
    """Hold an ensemble on a device and score it image by image."""

    def __init__(self, ensemble: Ensemble, device: torch.device) -> None:
        count = range(len(ensemble.spec.members))
        self._ensemble = ensemble
        self._device = device
        self._inputs = ensemble.inputs(count)
        self._members = [ensemble.load_member(index, device) for index in count]

    def scores(self, name: str, image: NDArray[np.generic], truth: NDArray[np.integer]) -> list[FoldScore]:
        """Return the scores of every member and of all together, with augmentations and without.

        Parameters
        ----------
        name : of the image
        image : (channels, y, x) or (channels, z, y, x) raw pixels of any real dtype
        truth : integer classes, 0 is background; objects 1 to n if the ensemble gives flows or boundaries

        Raises
        ------
        ImageError
            If a pixel is NaN or infinite, or truth and image differ in size.
        """
        if image.shape[1:] != truth.shape:
            raise ImageError(f"{name}: image {image.shape[1:]} and label {truth.shape} differ in size; give a pair")
        statistics = surveyed(self._inputs.measures, [image])
        pixels = np.concatenate([one.apply(image, statistics) for one in self._inputs.preparations])
        scores = []
        for augmented in (True, False):
            for predictor, answer in self._answers(pixels, augmented=augmented):
                scores.append(self._score(name, predictor, answer, truth, augmented=augmented))
        return scores

    def _answers(self, pixels: NDArray[np.float32], *, augmented: bool) -> list[tuple[str, _Answer]]:
        """Return the prediction of each predictor for the whole plane or volume."""
        settings = self._settings(augmented=augmented)
        shape = pixels.shape[1:]
        grid = settings.answer.tiles(shape, settings.tile, self._ensemble.spec.overlap)
        engines = [
            Engine([member], settings, self._device, [channels])
            for member, channels in zip(self._members, self._inputs.channels, strict=True)
        ]
        names = [*(f"member-{index}" for index in range(len(engines))), ENSEMBLE]
        answers = [_Answer.empty(shape, settings) for _ in names]
        regions = RegionGrid.make(shape, _REGION[self._ensemble.spec.input.axes])
        for index in range(regions.count):
            target = regions.window(index)
            needed = grid.needed(target)
            read = np.ascontiguousarray(pixels[:, *needed.slices])
            plane = PlaneWindow(read, needed, grid, self._inputs.padding)
            together: StageState | None = None
            for engine, answer in zip(engines, answers, strict=False):
                maps = engine.stage(plane, target, None)
                answer.take(target, engine.conclude(plane, target, maps))
                together = maps if together is None else together.plus(maps)
            if together is not None:
                answers[-1].take(target, engines[0].conclude(plane, target, together))
        return list(zip(names, answers, strict=True))

    def _settings(self, *, augmented: bool) -> InferenceSettings:
        spec = self._ensemble.spec
        augmentations = tuple(spec.augmentations) if augmented else ("identity",)
        return InferenceSettings(
            outputs=self._ensemble.outputs,
            multilabel=self._ensemble.multilabel,
            tile=spec.tile_shape,
            augmentations=augmentations,
            batch=tiles_per_call(self._device.type, spec.tile_shape, len(augmentations)),
            answer=spec.answer_shape,
        )

    def _score(
        self, name: str, predictor: str, answer: _Answer, truth: NDArray[np.integer], *, augmented: bool
    ) -> FoldScore:
        objects = answer.objects()
        if objects is None:
            classes = range(1, len(self._ensemble.spec.classes))
            dices = [dice(answer.labels == k, truth == k) for k in classes]
            return FoldScore(name, predictor, augmented, float(np.mean(dices)))
        precision = average_precision(truth, objects)
        overlap = dice(answer.labels > 0, truth > 0)
        return FoldScore(name, predictor, augmented, overlap, precision[0], float(np.mean(precision)))


@dataclass(frozen=True)
class _Answer:
    """A predictor's prediction of a plane or a volume: its classes, and the maps that objects are made from."""

    labels: NDArray[np.int32]
    foreground: NDArray[np.float32]
    flows: NDArray[np.float32] | None
    boundaries: NDArray[np.float32] | None

    @classmethod
    def empty(cls, shape: Sequence[int], settings: InferenceSettings) -> _Answer:
        vectors = np.empty((2, *shape), np.float32) if FLOWS in settings.outputs else None
        ridges = np.empty(shape, np.float32) if BOUNDARY in settings.outputs else None
        return cls(np.empty(shape, np.int32), np.empty(shape, np.float32), vectors, ridges)

    def take(self, target: Window, posterior: Posterior) -> None:
        inside = target.slices
        self.labels[inside] = posterior.labels
        self.foreground[inside] = posterior.probability[1:].sum(axis=0)
        if self.flows is not None:
            self.flows[:, *inside] = posterior.flows
        if self.boundaries is not None:
            self.boundaries[inside] = posterior.maps(BOUNDARIES)[0]

    def objects(self) -> NDArray[np.integer] | None:
        """Return the objects that its flows or boundaries give; None if it has neither."""
        if self.flows is not None:
            return label_image(self.foreground, self.flows)
        if self.boundaries is not None:
            return boundary_label_image(self.foreground, self.boundaries)
        return None


def summarise(scores: Sequence[FoldScore]) -> dict[str, float]:
    """Return means over images by predictor, for `chorus.pipeline.core.provenance.About.scores`.

    ``dice:ensemble`` is with the ensemble's augmentations, ``dice:ensemble:no-augmentation`` without; likewise ``ap50``
    and ``map`` (objects), and those of ``member-0`` and so on.
    """
    values: dict[str, list[float]] = {}
    for score in scores:
        name = score.predictor + ("" if score.augmented else ":no-augmentation")
        for metric, value in (("dice", score.dice), ("ap50", score.ap50), ("map", score.mean_ap)):
            if value is not None:
                values.setdefault(f"{metric}:{name}", []).append(value)
    means = {name: math.fsum(known) / len(known) for name, known in values.items()}
    return means | {"images": float(len({score.image for score in scores}))}


def verdict(summary: dict[str, float]) -> str:
    """Return a sentence on whether the ensemble is at least as good as its best member.

    They are compared by AP at 0.5, or by Dice if there are no objects.
    """
    metric, words = ("ap50", "AP at 0.5") if f"ap50:{ENSEMBLE}" in summary else ("dice", "Dice")
    members = {
        name.removeprefix(f"{metric}:"): value
        for name, value in summary.items()
        if name.startswith(f"{metric}:member-") and not name.endswith(":no-augmentation")
    }
    best = max(members, key=lambda name: members[name])
    ensemble = summary[f"{metric}:{ENSEMBLE}"]
    least = "at least" if ensemble >= members[best] else "not at least"
    return f"the ensemble is {least} as good as its best member ({words} {ensemble:.4f}; {best} {members[best]:.4f})"
