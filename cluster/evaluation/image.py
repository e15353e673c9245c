"""Evaluation of one image: prediction against the truth, with annotators and a simple baseline for comparison."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.evaluation.job import Evaluated, EvaluationJob, Value
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.consensus.annotations import Drawing
from chorus.pipeline.consensus.truths import ReadLabels, Sizes, open_truth, truth_classes
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.outputs.arrays import LABEL_NAME
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.sources.saved_probability import ReadProbability, open_probability
from chorus.pipeline.metrics.baseline import otsu_mask, watershed_objects
from chorus.pipeline.metrics.calibration_error import PixelHistogram, expected_calibration_error, pixel_histogram
from chorus.pipeline.metrics.objects import ObjectCounts, components, count_objects, objects_of
from chorus.pipeline.metrics.segmentation import (
    agreements,
    boundary_distance,
    boundary_distances,
    confusion,
    macro_dice,
)

LARGEST_PLANE = 4096 * 4096
"""Maximum of pixels of a plane whose boundaries and objects are measured, and of an image that gets a baseline.
Both need the plane or image in memory as a whole.
"""

# Edge of the blocks in which larger planes are counted; any value gives the same counts.
_BLOCK = 2048


@dataclass
class _Tally:
    """Sums over the planes of an image.

    Attributes
    ----------
    counts, baseline_counts : (classes, classes) int64, confusion matrices, see `confusion`
    boundaries : by class, for each plane the boundary distances in pixels, float64, or None
    """

    counts: NDArray[np.int64]
    baseline_counts: NDArray[np.int64]
    pixels: PixelHistogram | None = None
    boundaries: dict[int, list[NDArray[np.float64] | None]] = field(default_factory=dict)
    objects: dict[int, ObjectCounts] = field(default_factory=dict)
    baseline_objects: list[ObjectCounts] = field(default_factory=list)


def evaluate_image(job: EvaluationJob) -> Evaluated:
    """Measure one image.

    Raises
    ------
    ImageError
        If prediction or truth cannot be read, differ in size, or the truth has values that no class has.
    """
    started = time.perf_counter()
    notes: list[str] = []
    baseline = _baseline_mask(job, notes) if job.settings.baseline else None
    probability = _probability(job, notes)
    with open_truth(job.truth, _sizes(job.image)) as read_truth:
        _check_no_copy(job, read_truth)
        tally = _tally(job, read_truth, baseline, probability)
    values = _class_values(job, tally) | _object_values([*tally.objects.values()])
    if baseline is not None:
        values["baseline_dice"] = macro_dice(agreements(tally.baseline_counts))
        baseline_values = _object_values([sum(tally.baseline_objects, ObjectCounts(0, 0))] if tally.objects else [])
        values |= {f"baseline_{name}": baseline_values[name] for name in ("ap50", "map") if name in baseline_values}
    values |= _expert_values(job, notes)
    if tally.pixels is not None:
        values["calibration_error"] = expected_calibration_error(tally.pixels)["predicted"]
    return Evaluated(
        drawings=job.drawings, values=values, pixels=tally.pixels, notes=notes, seconds=time.perf_counter() - started
    )


def evaluate_and_record(job: EvaluationJob, ledger: ItemLedger[Evaluated]) -> Evaluated:
    """Measure one image and record it; errors as of `evaluate_image`, and OutputError if it cannot be recorded."""
    evaluated = evaluate_image(job)
    ledger.record(job.image.name, evaluated)
    return evaluated


def _check_no_copy(job: EvaluationJob, read_truth: ReadLabels) -> None:
    """Raise ImageError where the truth is the image itself, as of a folder of images that is given for the truth."""
    image = job.image
    if len(image.channels) > 1:
        return
    t, z, window = next(_windows(image))
    label = read_truth(t, z, window)
    if len(np.unique(label)) <= 2:  # a mask may be an image, too
        return
    array = open_level(image.url, image.level_path)
    if np.array_equal(read_window(array, image.axes, t, z, image.channels, window)[0], label):
        raise ImageError(f"{job.truth.url}: is a copy of the image; give its labels")


def _sizes(image: PlannedImage) -> Sizes:
    return Sizes.of(image.output_axes, image.output_shape)


def _whole(image: PlannedImage) -> bool:
    return image.height * image.width <= LARGEST_PLANE


def _windows(image: PlannedImage) -> Iterator[tuple[int, int, Window]]:
    """Yield t, z and window of all parts of an image: its planes, or blocks of planes that are large."""
    times, depths = image.planes
    grid = RegionGrid.make((image.height, image.width), max(image.height, image.width) if _whole(image) else _BLOCK)
    for t in range(times):
        for z in range(depths):
            for index in range(grid.count):
                yield t, z, grid.window(index)


def _stored_labels(job: EvaluationJob, name: str) -> ReadLabels:
    array, axes = open_level(job.labels_url, f"labels/{name}/s0"), job.image.output_axes
    return lambda t, z, window: read_window(array, axes, t, z, (0,), window)[0]


def _stored_objects(job: EvaluationJob) -> dict[int, ReadLabels]:
    """Return readers of the label images of objects that the run has, by class."""
    readers = {}
    for k, name in enumerate(job.classes):
        group = inside(storage.join(job.labels_url, "labels"), name)
        if k and any(storage.exists(storage.join(group, file)) for file in ("zarr.json", ".zattrs")):
            readers[k] = _stored_labels(job, name)
    return readers


def _baseline_mask(job: EvaluationJob, notes: list[str]) -> NDArray[np.bool_] | None:
    """Return the foreground by Otsu's threshold of the first channel; None if there is no baseline.

    It knows only foreground and background, so it cannot be compared with an ensemble of several classes.

    Returns
    -------
    (planes, y, x) bool
    """
    image = job.image
    if len(job.classes) != 2 or image.pixels > LARGEST_PLANE:
        return None
    try:
        array = open_level(image.url, image.level_path)
        planes = [read_window(array, image.axes, t, z, image.channels[:1], w)[0] for t, z, w in _windows(image)]
    except ImageError as error:
        notes.append(f"no baseline: {error}")
        return None
    return otsu_mask(np.stack(planes))


def _probability(job: EvaluationJob, notes: list[str]) -> ReadProbability | None:
    if not job.maps_url:
        return None
    try:
        return open_probability(job.maps_url, job.classes)
    except ImageError as error:
        notes.append(f"no calibration of pixels: {error}")
        return None


def _tally(
    job: EvaluationJob,
    read_truth: ReadLabels,
    baseline: NDArray[np.bool_] | None,
    read_probability: ReadProbability | None,
) -> _Tally:
    classes, whole = len(job.classes), _whole(job.image)
    tally = _Tally(np.zeros((classes, classes), np.int64), np.zeros((classes, classes), np.int64))
    read = _stored_labels(job, LABEL_NAME)
    stored = _stored_objects(job) if job.settings.objects == "labels" and whole else {}
    for plane, (t, z, window) in enumerate(_windows(job.image)):
        label, predicted = read_truth(t, z, window), read(t, z, window)
        truth = truth_classes(label, classes, job.truth.url)
        tally.counts += confusion(predicted, truth, classes)
        if read_probability is not None:
            counted = pixel_histogram(read_probability(t, z, window), truth, list(job.classes))
            tally.pixels = counted if tally.pixels is None else tally.pixels + counted
        mask = None if baseline is None else baseline[plane]
        if mask is not None:
            tally.baseline_counts += confusion(mask.astype(np.uint8), truth, classes)
        for k in range(1, classes if whole else 1):
            distances = boundary_distances(predicted == k, truth == k)
            tally.boundaries.setdefault(k, []).append(distances)
            if k in stored or job.settings.objects == "components":
                objects = stored[k](t, z, window) if k in stored else components(predicted == k)
                wanted = objects_of(label) if classes == 2 else components(truth == k)
                _add_objects(job, tally, k, wanted, objects, mask)
    return tally


def _add_objects(
    job: EvaluationJob,
    tally: _Tally,
    k: int,
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    mask: NDArray[np.bool_] | None,
) -> None:
    """Count a plane's objects of class `k`, and those of a watershed of the baseline's mask.

    Parameters
    ----------
    truth, predicted : (y, x) integer, 0 is background, every other value an object
    mask : (y, x) bool, the baseline's foreground
    """
    least = job.settings.minimum_size
    counts = count_objects(truth, predicted, minimum_size=least)
    tally.objects[k] = tally.objects.get(k, ObjectCounts(0, 0)) + counts
    if mask is not None:
        tally.baseline_objects.append(count_objects(truth, watershed_objects(mask), minimum_size=least))


def _class_values(job: EvaluationJob, tally: _Tally) -> dict[str, Value]:
    class_agreements = agreements(tally.counts)
    values: dict[str, Value] = {"dice": macro_dice(class_agreements)}
    for name, one in zip(job.classes[1:], class_agreements, strict=True):
        values |= {f"{metric}:{name}": value for metric, value in asdict(one).items()}
    for k, planes in tally.boundaries.items():
        distance = asdict(boundary_distance(planes))
        values |= {f"boundary_{metric}:{job.classes[k]}": value for metric, value in distance.items()}
    return values


def _object_values(counts: list[ObjectCounts]) -> dict[str, Value]:
    """Average rates over classes and sum counts; return nothing if no objects were measured."""
    if not counts:
        return {}
    return {
        "ap50": math.fsum(one.average_precision[0] for one in counts) / len(counts),
        "map": math.fsum(one.mean_average_precision for one in counts) / len(counts),
        "panoptic_quality": math.fsum(one.panoptic_quality for one in counts) / len(counts),
        "objects_truth": sum(one.truths for one in counts),
        "objects_predicted": sum(one.predicted for one in counts),
        "splits": sum(one.splits for one in counts),
        "merges": sum(one.merges for one in counts),
    }


def _expert_values(job: EvaluationJob, notes: list[str]) -> dict[str, Value]:
    """Return the range of the annotators' own Dice against the truth."""
    dices = []
    for drawing in job.experts:
        try:
            dices.append(_expert_dice(job, drawing))
        except ImageError as error:
            notes.append(f"expert {drawing.expert} is left out: {error}")
    if not dices:
        return {}
    mean = math.fsum(dices) / len(dices)
    return {"expert_dice_min": min(dices), "expert_dice_mean": mean, "expert_dice_max": max(dices)}


def _expert_dice(job: EvaluationJob, drawing: Drawing) -> float:
    sizes, classes = _sizes(job.image), len(job.classes)
    counts = np.zeros((classes, classes), np.int64)
    with open_truth(job.truth, sizes) as read_truth, open_truth(drawing, sizes) as read:
        for position in _windows(job.image):
            truth = truth_classes(read_truth(*position), classes, job.truth.url)
            counts += confusion(truth_classes(read(*position), classes, drawing.url), truth, classes)
    return macro_dice(agreements(counts))
