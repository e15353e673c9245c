"""One session of a run: stream the unfinished regions, finish complete images, and write the scores."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from chorus.cluster.planning.dataset_statistics import survey_dataset
from chorus.cluster.planning.image_statistics import measure_image, measures_of
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.requests import PlanReporter, PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.regions.executor import Executor, ended
from chorus.cluster.runs.finish_image import failed_row, finish_image
from chorus.cluster.runs.finished_results import keep_finished
from chorus.cluster.runs.image_diameters import measure_diameter, with_known_diameters
from chorus.cluster.runs.run_metrics import RunMetrics
from chorus.cluster.runtime.started_tasks import Ending, interruptible
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.documents import ImageRow, PredictOutcome
from chorus.cluster.state.ledger import Finished, Ledger, clear_attempts
from chorus.cluster.state.outcome import state_of
from chorus.cluster.state.run_record import RunRecord
from chorus.cluster.state.scores import write_features, write_scores
from chorus.cluster.telemetry.logs import about, log_of_regions
from chorus.cluster.telemetry.metrics import run_label
from chorus.cluster.telemetry.timeline import TimelineWriter, span, unpacked
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import ChorusError, OutputError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import FailedImage
from chorus.pipeline.io.outputs.groups import prepare_collection, prepare_plate
from chorus.pipeline.io.sources.ngff import collection_series, plate_metadata, well_metadata
from chorus.pipeline.reference.storage import NOT_LOOKED_FOR, FoundReference

log = logging.getLogger("chorus")


@dataclass
class PlannedRun:
    """A run whose plan is made.

    Attributes
    ----------
    found : the reference set of the ensemble, which judges the images when all are done; parts of a run have none
    """

    request: PredictRequest
    ensemble: Ensemble
    settings: ResolvedSettings
    table: ImageTable
    failures: list[FailedImage]
    found: FoundReference = NOT_LOOKED_FOR


class Run:
    """A planned run whose output is ready: call `carry_out` once."""

    def __init__(
        self, job: PlannedRun, context: RunContext, executor: Executor, reporter: PlanReporter, record: RunRecord
    ) -> None:
        self._job, self._context, self._executor = job, context, executor
        self._reporter, self._record = reporter, record
        self._table = job.table
        self._ledger = Ledger(context.out)
        self._finished: Finished = self._ledger.scan(self._table)
        if self._finished.images.any() or self._finished.regions.any():
            reporter.phase("checking what is finished")
        verify, done = job.request.run.verify, self._finished.images.copy()
        self._rows = keep_finished(context, self._table, job.ensemble, self._finished, executor, verify=verify)
        self._anew: list[int] = np.flatnonzero(done & ~self._finished.images).tolist()
        self._remaining = self._finished.remaining(self._table)
        self._errors: dict[int, tuple[int, str]] = {}
        members, augmentations = len(job.ensemble.spec.members), len(context.settings.augmentations)
        self._metrics = RunMetrics(context, members * augmentations)
        self._metrics.image("failed", len(job.failures))
        self._timeline = TimelineWriter(context.out, context.session)

    def carry_out(self) -> PredictOutcome:
        """Run all steps from containers to scores; return how the run ended."""
        with interruptible() as ending:
            with span("containers"):
                self._containers()
            with span("statistics"):
                self._statistics()
            with span("diameters"):
                self._diameters()
            with span("stream"):
                self._stream()
        self._timeline.write()
        with span("scores"):
            return self._conclude(ending)

    def _conclude(self, ending: Ending) -> PredictOutcome:
        """Write the scores of all images that have any."""
        rows = self._collect()
        state = state_of(ending.state, rows)
        summary = self._record.close(state, rows)
        if state != "interrupted":
            write_features(self._context.out, rows)
            write_scores(self._context.out, rows)
            clear_attempts(self._context.out)
            self._record.write(self._context.out)
        return PredictOutcome(self._context.out, state, ending.message, rows, summary)

    def _containers(self) -> None:
        """Create the plates and collections of the sources in the output, or what is missing or damaged of them."""
        for root, index in self._table.containers(np.arange(len(self._table))).items():
            image = self._table.image(index)
            url = storage.join(self._context.out, "images", image.name.removesuffix(image.path).rstrip("/"))
            _prepare_container(root, image.kind, url)

    def _statistics(self) -> None:
        ensemble, tile = self._job.ensemble, self._context.settings.tile
        if measures_of(ensemble, tile, "dataset") and not self._finished.images.all():
            self._reporter.phase("measuring the data set")
            for result in survey_dataset(self._executor, self._context, self._table, ensemble):
                self._fail(result)
        if not measures_of(ensemble, tile, "image"):
            return
        self._reporter.phase("measuring the images")
        for index in np.flatnonzero(~self._finished.images).tolist():
            self._executor.submit(index, measure_image, self._context, self._table.image(index), ensemble)
        for result in self._executor.results(wait=True):
            if result.error is not None:
                self._fail(result)

    def _diameters(self) -> None:
        """Estimate the diameter of each image's objects where none was given, and scale the images by it."""
        if self._context.settings.diameter != "auto":
            return
        self._reporter.phase("estimating the diameter of objects")
        for index in np.flatnonzero(~self._finished.images).tolist():
            if index not in self._errors:
                self._executor.submit(index, measure_diameter, self._context, self._table.image(index))
        for result in self._executor.results(wait=True):
            if result.error is not None:
                self._fail(result)
        self._table = with_known_diameters(self._context, self._table, self._job.ensemble)
        self._table.write(self._context.table_url)

    def _stream(self) -> None:
        todo = self._finished.todo(self._table)
        broken = np.zeros(len(self._table), bool)
        broken[list(self._errors)] = True
        todo = todo[~np.repeat(broken, self._table.region_counts)[todo]]
        self._reporter.begin(len(todo), self._pixels(todo), self._executor.actors)
        try:
            with self._metrics.active(len(todo), self._executor.actors):
                for index in np.flatnonzero((self._remaining == 0) & ~self._finished.images).tolist():
                    self._finish(index, prepare=True)
                with ended(self._executor.regions(self._context, todo)) as statuses:
                    for status in statuses:
                        self._reporter.region(status)
                        self._metrics.region(status)
                        self._take(status)
                        self._take_results(wait=False)
                self._take_results(wait=True)
        finally:
            self._reporter.end()

    def _take(self, status: RegionStatus) -> None:
        self._timeline.add(unpacked(status.spans), region=status.region, image=status.image)
        if status.state == "unwritable":
            raise OutputError(status.message)
        self._record.repeat(status.attempts - 1)
        if 0 < status.tiles_per_call < self._context.settings.batch:
            self._record.divide_batch()
        self._remaining[status.image] -= 1
        if status.state != "done":
            self._note(status.image, status.region_in_image, status.message)
        elif self._remaining[status.image] == 0 and status.image not in self._errors:
            self._finish(status.image)

    def _finish(self, index: int, *, prepare: bool = False) -> None:
        self._metrics.finishing(1)
        finish = partial(finish_image, prepare=prepare)
        self._executor.submit(index, finish, self._context, self._table.image(index), self._job.ensemble)

    def _take_results(self, *, wait: bool) -> None:
        for result in self._executor.results(wait=wait):
            self._metrics.finishing(-1)
            if self._context.profile:
                self._timeline.add(result.spans, image=result.key)
            if result.error is None:
                self._rows[result.key] = result.value
                self._metrics.image(result.value.status)
            else:
                self._fail(result)

    def _fail(self, result: TaskResult) -> None:
        if result.unwritable:
            raise OutputError(result.error or "")
        self._note(result.key, -1, result.error or "")

    def _note(self, image: int, region_in_image: int, message: str) -> None:
        """Record that an image failed; the reason kept is that of its first region that has one."""
        known = self._errors.get(image)
        if known is None:
            self._metrics.image("failed")
            with about(run=run_label(self._context.out), image=self._table.image(image).name):
                log_of_regions.warning("image failed: %s", message)
        if known is None or region_in_image < known[0]:
            self._errors[image] = (region_in_image, message)

    def _pixels(self, todo: np.ndarray) -> int:
        """Estimate the pixels of the unfinished regions, for the rate that is shown, with equal regions per image."""
        images = np.searchsorted(np.cumsum(self._table.region_counts), todo, side="right")
        return int((self._table.pixels / self._table.region_counts)[images].sum())

    def _collect(self) -> list[ImageRow]:
        """Return a row per image in the order of the plan, then those that could not be planned."""
        rows, ensemble = dict(self._rows), self._job.ensemble
        for index, (_, message) in self._errors.items():
            image = self._table.image(index)
            rows[index] = failed_row(image.path, image.root, image.name, ensemble, message)
        planned = [rows[index] for index in sorted(rows)]
        unplanned = (failed_row(one.path, one.root, one.name, ensemble, one.message) for one in self._job.failures)
        return [*planned, *unplanned]


def _prepare_container(root: str, kind: str, url: str) -> None:
    """Write the groups around the images of a plate or of a collection, as in the source."""
    if kind == "plate":
        plate, wells = plate_metadata(root), {}
        for well in plate.wells:
            # The images of one that cannot be read have failed in the plan; results have no such well.
            with suppress(ChorusError):
                wells[well.path] = well_metadata(root, well.path)
        there = [well for well in plate.wells if well.path in wells]
        prepare_plate(url, plate.model_copy(update={"wells": there}), wells)
    else:
        prepare_collection(url, collection_series(root))
