"""The stream of the tasks that make the objects of a run, image by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.job import ObjectJob, VolumeJob, VolumePiecesJob
from chorus.cluster.objects.records import ImageObjects
from chorus.cluster.objects.tasks.finding import find_in_region
from chorus.cluster.objects.tasks.numbering import label_pixels, number_objects
from chorus.cluster.objects.tasks.stages import find_all, find_all_pieces, find_all_stars, finish_objects, timed
from chorus.cluster.objects.tasks.stars import StarJob, find_longest, find_reach
from chorus.cluster.objects.tasks.volume_components import find_pieces_of_block
from chorus.cluster.objects.tasks.volumes import find_all_in_volume, find_in_block, label_voxels, number_volume
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult, Tasks

# An image of at most this many regions is one task.
_AT_ONCE = 4
_STAGES = ("regions", "numbers", "labels", "end")
# Stages with a task per part, which they are told; the others have one task.
_OF_PARTS = ("reach", "regions", "labels")


def functions_of(job: ObjectJob) -> dict[str, Callable[..., Any]]:
    """Return the worker's function of each stage: ``all`` for small images, and the stages of the others in order."""
    stages = ("all", *_STAGES)
    if isinstance(job, StarJob):
        of_stars = (find_all_stars, find_reach, find_longest, find_in_region, number_objects, label_pixels)
        return dict(zip(("all", "reach", "longest", *_STAGES), (*of_stars, finish_objects), strict=True))
    if isinstance(job, VolumeJob):
        of_volumes = (find_all_in_volume, find_in_block, number_volume, label_voxels, finish_objects)
        return dict(zip(stages, of_volumes, strict=True))
    if isinstance(job, VolumePiecesJob):
        of_pieces = (find_all_pieces, find_pieces_of_block, number_objects, label_pixels, finish_objects)
        return dict(zip(stages, of_pieces, strict=True))
    of_planes = (find_all, find_in_region, number_objects, label_pixels, finish_objects)
    return dict(zip(stages, of_planes, strict=True))


@dataclass
class _Progress:
    """Progress of an image: the number of unfinished tasks of its stage, and the stages that follow."""

    job: ObjectJob
    stages: list[str]
    running: int = 0


class ObjectStream:
    """Submits tasks image by image: first the regions of an image, then the stages that need all of them.

    Parameters
    ----------
    todo : indices of the images to process
    finished, errors : receive the result of each image; of several errors, that of the first region
    """

    _tasks: Tasks
    _cores: int

    def __init__(
        self,
        results: Results,
        todo: list[int],
        finished: dict[int, ImageObjects],
        errors: dict[int, tuple[int, str]],
    ) -> None:
        self._results, self._todo, self._waiting = results, todo, iter(todo)
        self._finished, self._errors = finished, errors
        self._images: dict[int, _Progress] = {}
        self._running: dict[int, tuple[int, str, int]] = {}
        self._submitted = 0

    def steps(self) -> int:
        """Count the tasks of all images; for regions of planes arithmetically, since there may be very many."""
        if self._results.of_volumes or self._results.map_method is not None:
            counts = [[job.tasks(stage) for stage in _STAGES] for job in map(self._results.job, self._todo)]
            return sum(1 if count[0] <= _AT_ONCE else sum(count) for count in counts)
        regions = self._results.table.region_counts[self._todo]
        more = regions + 1 if self._results.method == "stars" else 0
        return int(np.where(regions <= _AT_ONCE, 1, 2 * regions + 2 + more).sum())

    def begin(self, tasks: Tasks, cores: int) -> None:
        """Begin the first images."""
        self._tasks, self._cores = tasks, cores
        self._fill()

    def take(self, result: TaskResult) -> RegionStatus:
        """Record the result of a task, and submit what follows."""
        status = self._taken(result)
        self._fill()
        return status

    def _fill(self) -> None:
        """Begin images until all cores have enough to do; the jobs of the others are not created yet."""
        while len(self._running) < 4 * self._cores and (index := next(self._waiting, None)) is not None:
            job = self._results.job(index)
            small = job.tasks("regions") <= _AT_ONCE
            self._images[index] = _Progress(job, ["all"] if small else list(functions_of(job))[1:])
            self._proceed(index)

    def _proceed(self, index: int) -> None:
        """Submit the next stage of an image."""
        image = self._images[index]
        stage = image.stages.pop(0)
        function = functions_of(image.job)[stage]
        image.running = image.job.tasks(stage)
        for part in range(image.running):
            self._running[self._submitted] = index, stage, part
            arguments = (image.job, part) if stage in _OF_PARTS else (image.job,)
            self._tasks.submit(self._submitted, timed, function, *arguments)
            self._submitted += 1

    def _taken(self, result: TaskResult) -> RegionStatus:
        """Record the result of a task, and submit the next stage of its image if it was the last task of one."""
        index, stage, part = self._running.pop(result.key)
        image = self._images[index]
        image.running -= 1
        if result.error is not None:
            self._errors[index] = min(self._errors.get(index, (part, result.error)), (part, result.error))
        elif result.value.objects is not None:
            self._finished[index] = result.value.objects
        if not image.running:
            if image.stages and index not in self._errors:
                self._proceed(index)
            else:
                del self._images[index]
        if result.error is not None:
            return RegionStatus(result.key, index, part, "failed", result.error)
        seconds, pixels = result.value.seconds, image.job.pixels(stage, part)
        return RegionStatus(result.key, index, part, "done", pixels=pixels, device_seconds=seconds, seconds=seconds)
