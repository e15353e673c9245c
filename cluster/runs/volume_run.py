"""A run over volumes: three runs over their planes, one per direction, and the means of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from chorus.cluster.planning.plan import RunContext, layout_of
from chorus.cluster.planning.requests import PlanReporter, PredictRequest
from chorus.cluster.planning.volume_views import VIEWS, turned
from chorus.cluster.regions.executor import Executor
from chorus.cluster.runs.run import PlannedRun, Run
from chorus.cluster.runs.volume_merging import WORK, MergeJob, finish_volume, merge_slab, slab_grid, view_url
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.run_record import RunRecord
from chorus.pipeline.core.fields import FLOW, PROBABILITY, in_order
from chorus.pipeline.errors import CutShortError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder


def view_request(request: PredictRequest, view: str) -> PredictRequest:
    """Return the request for the planes of one view, as a part of a run over volumes."""
    kept = {*request.settings.save, PROBABILITY.name, FLOW.name}
    settings = {"volumes": view, "save": in_order(kept)}
    run = {"thumbnails": False, "sentinels": "skip", "metrics_port": None}
    return request.model_copy(
        update={
            "out": view_url(request.out, view),
            "objects": "none",
            "overwrite": False,
            "settings": request.settings.model_copy(update=settings),
            "run": request.run.model_copy(update=run),
        }
    )


def planes_only(request: PredictRequest) -> PredictRequest:
    """Return the request without `volumes`: sentinels are planes, so settings of volumes do not apply to them."""
    return request.model_copy(update={"settings": request.settings.model_copy(update={"volumes": None})})


class VolumeRun(Run):
    """A planned run over volumes whose output is ready: call `carry_out` once.

    Parameters
    ----------
    of_view : runs or resumes the run over the planes of a view
    """

    def __init__(
        self,
        job: PlannedRun,
        context: RunContext,
        executor: Executor,
        reporter: PlanReporter,
        record: RunRecord,
        of_view: Callable[[PredictRequest], PredictOutcome],
    ) -> None:
        super().__init__(job, context, executor, reporter, record)
        self._of_view = of_view
        self._working: dict[int, tuple[int, int]] = {}
        self._merging: dict[int, MergeJob] = {}
        self._left: dict[int, int] = {}
        self._submitted = 0
        for index in self._anew:
            remove_folder(storage.join(context.out, *WORK, "merged", self._table.names[index]))

    def carry_out(self) -> PredictOutcome:
        """Run all steps, then remove the work files if the run is complete; return how the run ended."""
        outcome = super().carry_out()
        if outcome.state == "complete":  # or else images that are open need them
            remove_folder(storage.join(self._context.out, *WORK))
        return outcome

    def _statistics(self) -> None:
        """Do nothing: each view measures its own statistics."""

    def _stream(self) -> None:
        todo = np.flatnonzero(~self._finished.images).tolist()
        if not todo:
            return
        index_of = {name: index for index, name in enumerate(self._table.names)}
        for number, view in enumerate(VIEWS, 1):
            self._reporter.phase(f"planes {view} ({number} of {len(VIEWS)} directions)")
            outcome = self._of_view(view_request(self._job.request, view))
            if outcome.state == "interrupted":
                raise CutShortError(outcome.message)
            for row in outcome.rows:
                if row.status == "failed" and row.name in index_of:
                    self._note(index_of[row.name], -1, row.message)
        self._reporter.phase("taking the means of the three directions")
        self._merge([index for index in todo if index not in self._errors])

    def _merge(self, todo: list[int]) -> None:
        images = (self._table.image(index) for index in todo)
        count = sum(image.planes[0] * slab_grid(image).count for image in images)
        self._reporter.begin(count, int(self._table.pixels[todo].sum()), self._executor.actors)
        waiting = self._slabs(todo)
        try:
            self._fill(waiting)
            for result in self._executor.results(wait=True):
                self._take_slab(result)
                self._fill(waiting)
        finally:
            self._reporter.end()

    def _slabs(self, todo: list[int]) -> Iterator[tuple[int, int, MergeJob]]:
        for index in todo:
            job = self._merging[index] = self._merge_job(index)
            self._left[index] = job.count
            for slab in range(job.count):
                yield index, slab, job

    def _merge_job(self, index: int) -> MergeJob:
        image, ensemble, settings = self._table.image(index), self._job.ensemble, self._context.settings
        views = {}
        for view in VIEWS:
            request = view_request(self._job.request, view)
            of_view = settings.model_copy(update={"volumes": view, "save": request.settings.save})
            views[view] = layout_of(turned(image, view), ensemble, of_view, request.out)
        return MergeJob(
            out=self._context.out,
            image=image,
            layout=layout_of(image, ensemble, settings, self._context.out),
            views=views,
            probabilities=tuple(map(PROBABILITY.channel, ensemble.probability_names)),
            multilabel=ensemble.multilabel,
            thumbnails=self._context.thumbnails,
        )

    def _fill(self, waiting: Iterator[tuple[int, int, MergeJob]]) -> None:
        """Submit slabs until all cores have enough to do."""
        while len(self._working) < 4 * self._executor.actors and (slab := next(waiting, None)) is not None:
            index, slab_index, job = slab
            self._submit(index, slab_index, merge_slab, job, slab_index)

    def _submit(self, index: int, slab_index: int, function: Callable[..., Any], *arguments: Any) -> None:
        self._working[self._submitted] = index, slab_index
        self._executor.submit(self._submitted, function, *arguments)
        self._submitted += 1

    def _take_slab(self, result: TaskResult) -> None:
        index, slab_index = self._working.pop(result.key)
        if result.error is not None:
            self._fail(TaskResult(index, None, result.error, result.unwritable))
            if slab_index >= 0:
                self._reporter.region(RegionStatus(result.key, index, slab_index, "failed", result.error))
        elif slab_index < 0:
            self._rows[index] = result.value
            self._metrics.image(result.value.status)
        else:
            pixels = self._merging[index].slab(slab_index)[1].voxels
            self._reporter.region(
                RegionStatus(result.key, index, slab_index, "done", "", 0, pixels, result.value, result.value)
            )
        if slab_index >= 0:
            self._left[index] -= 1
            if not self._left[index]:
                job = self._merging.pop(index)
                if index not in self._errors:
                    self._submit(index, -1, finish_volume, job)
