"""Trials of `chorus objects --tune`: objects of one image with some options, compared with its truth."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.cluster.objects.job import ObjectJob, VolumeJob, VolumePiecesJob
from chorus.cluster.objects.stream import functions_of
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.consensus.annotations import Drawing
from chorus.pipeline.consensus.truths import Sizes, open_truth, truth_classes
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io import storage
from chorus.pipeline.io.durable import passing
from chorus.pipeline.io.outputs.arrays import LABEL_NAME
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.metrics.objects import ObjectCounts, components, count_objects, objects_of


class Tried(BaseModel):
    """Detection of the objects of an image with some options; means over classes.

    Attributes
    ----------
    mean_precision, precision_50 : mAP (IoU 0.5 to 0.95), and AP at an IoU of 0.5
    objects : number of predicted ones
    truths : number of true ones
    """

    model_config = ConfigDict(frozen=True)

    mean_precision: float
    precision_50: float
    objects: int
    truths: int


@dataclass(frozen=True)
class Trial:
    """A trial as a worker receives it.

    Attributes
    ----------
    job : of the image's objects, with the options of the trial
    truth : labels of the image
    name : of its record
    """

    job: ObjectJob
    truth: Drawing
    name: str


def try_and_record(trial: Trial, ledger: ItemLedger[Tried]) -> Tried:
    """Do what `try_options` does, and record it."""
    tried = try_options(trial)
    ledger.record(trial.name, tried)
    return tried


def try_options(trial: Trial) -> Tried:
    """Make the objects of an image in a temporary folder, by the tasks of `chorus objects`, and compare them.

    Raises
    ------
    ImageError
        If results or truth cannot be read, differ in size, or the truth has values that no class has.
    """
    image, classes = trial.job.image, len(trial.job.classes) + 1
    whole_volumes = isinstance(trial.job, VolumeJob | VolumePiecesJob)
    counts = {value: ObjectCounts(0, 0) for value, _ in trial.job.classes}
    with tempfile.TemporaryDirectory(prefix="chorus-tune-") as folder, passing(folder):
        job = _inside(trial.job, folder)
        functions_of(job)["all"](job)
        with open_truth(trial.truth, Sizes.of(image.output_axes, image.output_shape)) as read_truth:
            for part in _parts(image, whole_volumes=whole_volumes):
                labels = np.stack([read_truth(t, z, window) for t, z, window in part])
                truth = truth_classes(labels, classes, trial.truth.url)
                for value, name in job.classes:
                    wanted = objects_of(labels) if classes == 2 else components(truth == value)
                    counts[value] += count_objects(wanted, _found(job, name, part))
    return _tried([*counts.values()])


def _inside(job: ObjectJob, folder: str) -> ObjectJob:
    """Return the job with all that it writes in a folder of this machine, and the labels that it reads there."""
    layout, work = replace(job.layout, labels_url=f"{folder}/image"), f"{folder}/work"
    with storage_errors(job.layout.labels_url):
        fs, path = storage.filesystem(storage.join(job.layout.labels_url, "labels", LABEL_NAME))
        fs.get(path, f"{layout.labels_url}/labels/{LABEL_NAME}", recursive=True)
    return replace(job, layout=layout, work=work, scratch=work, record=f"{folder}/record.json")


def _parts(image: PlannedImage, *, whole_volumes: bool) -> list[list[tuple[int, int, Window]]]:
    """Return what objects do not go beyond: planes, or volumes at their time points, plane by plane."""
    times, depths = image.planes
    window = Window.whole((image.height, image.width))
    if whole_volumes:
        return [[(t, z, window) for z in range(depths)] for t in range(times)]
    return [[(t, z, window)] for t in range(times) for z in range(depths)]


def _found(job: ObjectJob, name: str, part: list[tuple[int, int, Window]]) -> NDArray[Any]:
    """Return the label image of a class, (z, y, x)."""
    array, axes = open_level(job.layout.labels_url, f"labels/{name}/s0"), job.image.output_axes
    return np.stack([read_window(array, axes, t, z, (0,), window)[0] for t, z, window in part])


def _tried(counts: list[ObjectCounts]) -> Tried:
    return Tried(
        mean_precision=math.fsum(one.mean_average_precision for one in counts) / len(counts),
        precision_50=math.fsum(one.average_precision[0] for one in counts) / len(counts),
        objects=sum(one.predicted for one in counts),
        truths=sum(one.truths for one in counts),
    )
