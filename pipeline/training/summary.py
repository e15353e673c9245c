"""Documents of a training: the specification of the ensemble, and the summary that guidelines require."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.provenance import About, TrainingSummary
from chorus.pipeline.ensembles.entries import ClassEntry, InputEntry
from chorus.pipeline.ensembles.spec import FORMAT, EnsembleSpec
from chorus.pipeline.members.contract import MemberEntry
from chorus.pipeline.members.kinds.smp import SmpMember
from chorus.pipeline.members.kinds.unet import UnetMember
from chorus.pipeline.members.outputs import BoundaryOutput, ClassesOutput, FlowsOutput, OutputEntry
from chorus.pipeline.training.data.pairs import TrainingPair, class_image, load_pair
from chorus.pipeline.training.records import FoldResult
from chorus.pipeline.training.settings import TrainSettings

# Maximum number of pixels per image, evenly spaced, for the statistics of intensity.
_PIXELS = 1 << 20
_PERCENTS = (1.0, 50.0, 99.0, 99.8)
_DIAMETER_PERCENTS = (5.0, 50.0, 95.0)


def training_summary(
    pairs: Sequence[TrainingPair], settings: TrainSettings, results: Sequence[FoldResult]
) -> TrainingSummary:
    """Return recipe, statistics of the training images, and the folds' scores.

    Objects are the instances, or with class labels the connected components of each class; their number is given for
    instances alone.
    """
    samples: list[list[NDArray[np.float32]]] = [[] for _ in settings.channels]
    areas: list[NDArray[np.int64]] = []
    for pair in pairs:
        image, label = load_pair(pair)
        for channel, plane in enumerate(image):
            flat = plane.ravel()
            samples[channel].append(flat[:: max(1, flat.size // _PIXELS)].astype(np.float32))
        areas.append(_areas(label, settings, pair.label))
    sizes = np.concatenate(areas)
    diameters = 2 * np.sqrt(sizes / np.pi) if settings.axes == "yx" else np.cbrt(6 * sizes / np.pi)
    begun_with = ", ".join(sorted({result.begun_with for result in results}))
    return TrainingSummary(
        recipe=settings.model_dump(mode="json") | {"begun_with": begun_with},
        images=len({pair.group for pair in pairs}),
        objects=diameters.size if settings.labels == "instances" else None,
        intensity={
            name: _statistics(np.concatenate(values)) for name, values in zip(settings.channels, samples, strict=True)
        },
        object_diameter_px=_diameters(diameters),
        folds=[_scores(result) for result in results],
        seconds=sum(result.seconds for result in results),
    )


def ensemble_spec(name: str, settings: TrainSettings, results: Sequence[FoldResult], about: About) -> EnsembleSpec:
    """Return the ``ensemble.yaml`` of the trained members."""
    outputs: list[OutputEntry] = [ClassesOutput()]
    outputs += [FlowsOutput()] * settings.flows + [BoundaryOutput(role="boundary")] * settings.boundaries
    return EnsembleSpec(
        format=FORMAT,
        name=name,
        classes=[
            ClassEntry(name=one, color=color)
            for one, color in zip(settings.classes, settings.class_colors, strict=True)
        ],
        input=InputEntry(
            channels=settings.channels,
            axes=settings.axes,
            pixel_size_um=settings.pixel_size_um,
            normalisation=settings.normalisation,
        ),
        outputs=outputs,
        tile=settings.tile,
        members=[_member(settings, result) for result in results],
        about=about,
    )


def _member(settings: TrainSettings, result: FoldResult) -> MemberEntry:
    if settings.axes == "zyx":
        design = settings.unet.model_dump()
        return UnetMember(kind="unet", weights=result.weights, sha256=result.sha256, **design)
    architecture, encoder, options = settings.design
    return SmpMember(
        kind="smp",
        architecture=architecture,
        encoder=encoder,
        options=options,
        weights=result.weights,
        sha256=result.sha256,
    )


def _areas(label: NDArray[np.integer], settings: TrainSettings, name: str) -> NDArray[np.int64]:
    if settings.labels == "instances":
        return np.unique(label[label != 0], return_counts=True)[1]
    from skimage.measure import label as connected

    parts: NDArray[np.int64] = connected(class_image(label, settings, name), background=0)  # type: ignore[no-untyped-call]
    return np.bincount(parts.ravel())[1:]


def _statistics(values: NDArray[np.float32]) -> dict[str, float]:
    statistics = {"mean": float(values.mean(dtype=np.float64)), "std": float(values.std(dtype=np.float64))}
    percentiles = np.percentile(values, _PERCENTS)
    return statistics | {f"p{percent:g}": float(value) for percent, value in zip(_PERCENTS, percentiles, strict=True)}


def _diameters(values: NDArray[np.float64]) -> dict[str, float]:
    if not values.size:
        return {}
    low, median, high = (float(value) for value in np.percentile(values, _DIAMETER_PERCENTS))
    return {"median": median, "mean": float(values.mean()), "p5": low, "p95": high}


def _scores(result: FoldResult) -> dict[str, float]:
    scores = {
        "fold": float(result.fold),
        "dice": result.mean_dice,
        "best_step": float(result.best_step),
        "steps": float(result.steps),
        "train_images": float(len(result.train)),
        "validation_images": float(len(result.validation)),
    }
    if len(result.dice) > 1:
        scores |= {f"dice:{name}": value for name, value in result.dice.items()}
    return scores if result.ap50 is None else scores | {"ap50": result.ap50}
