"""The setup of planned runs: their executor, their output, and a sequence of several runs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import psutil

from chorus.cluster.planning.cost import Cost, cost, tile_counts
from chorus.cluster.planning.devices.device_probe import DeviceProbe, probe_device
from chorus.cluster.planning.devices.placement import estimate_memory, may_grow, place, require_devices
from chorus.cluster.planning.plan import RunContext, layout_of
from chorus.cluster.planning.requests import Forecast, PlanReporter
from chorus.cluster.regions.executor import Executor
from chorus.cluster.regions.serial_executor import SerialExecutor
from chorus.cluster.runs.image_diameters import with_known_diameters
from chorus.cluster.runs.run import PlannedRun, Run
from chorus.cluster.runtime.break_even import IMAGE_SECONDS, SERIAL_SECONDS, TRIED_TILES, ray_is_up
from chorus.cluster.runtime.resources import Resources
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.ledger import clear_attempts, unended_regions
from chorus.cluster.state.output import clear_output
from chorus.cluster.state.run_record import RunRecord, open_output
from chorus.cluster.telemetry.timeline import span
from chorus.pipeline.backends.choice import usable
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.allocation import keep_freed_memory
from chorus.pipeline.io import storage
from chorus.pipeline.io.fences import cover
from chorus.pipeline.io.outputs.writer import labels_present, remove_labels
from chorus.pipeline.io.storage_failures import storage_errors

# Runs longer than this (seconds) are advised to measure what makes them fast.
_LONG = 600.0
# Shares of the tiles that may be seen again by a neighbouring region, and that larger regions must save; and how many
# of those an actor must get, so that none is without work at the end.
_AGAIN, _WORTHWHILE, _ENOUGH = 0.15, 0.05, 4


def open_record(job: PlannedRun, started: float) -> tuple[RunRecord, bool]:
    """Return the record of a run, and whether its output is new; raise RefusedError where that holds other results."""
    failed = [image.name for image in job.failures]
    record = RunRecord.of(job.request, job.ensemble, job.settings, job.table, failed, started, job.found)
    return record, open_output(record, job.request.out, overwrite=job.request.overwrite)


def make_ready(job: PlannedRun, record: RunRecord, name: str, *, fresh: bool) -> RunContext:
    """Prepare the output for this run, in the session `name`."""
    out = job.request.out
    if fresh:
        clear_output(out)
    _check_in_place(job, fresh=fresh)
    context = _context(job, name)
    if not fresh:
        unended = unended_regions(out)
        record.repeat(len(unended))
        _remove_partial_files(job, unended)
    # The record first: it marks an output with anything in it as ours, however early the run ends.
    record.write(out)
    job.table = with_known_diameters(context, job.table, job.ensemble)
    job.table.write(context.table_url)
    clear_attempts(out)
    return context


def _remove_partial_files(job: PlannedRun, unended: Collection[int]) -> None:
    """Remove what was being written of regions that earlier sessions began and did not end; nobody writes now."""
    with storage_errors(job.request.out):
        for index in {job.table.find(region)[0] for region in unended if region < job.table.regions}:
            layout = layout_of(job.table.image(index), job.ensemble, job.settings, job.request.out)
            for url in {layout.url, storage.join(layout.labels_url, "labels")}:
                storage.remove_partial_files(url)


def _context(job: PlannedRun, name: str) -> RunContext:
    return RunContext(
        out=job.request.out,
        ensemble=job.ensemble.url,
        ensemble_hash=job.ensemble.hash,
        ensemble_name=job.ensemble.spec.name,
        settings=job.settings,
        session=name,
        trust_code=job.ensemble.trust_code,
        thumbnails=job.request.run.thumbnails,
        profile=job.request.run.profile,
    )


def predict_jobs(jobs: Sequence[PlannedRun], reporter: PlanReporter) -> list[PredictOutcome]:
    """Run planned runs of one ensemble over the same images, in folders of an output whose lock the caller holds.

    They run one after the other, until one is interrupted.
    """
    outcomes: list[PredictOutcome] = []
    with executor_of(jobs[0], reporter) as (executor, _):
        for job in jobs:
            record, fresh = open_record(job, time.time())
            context = make_ready(job, record, uuid.uuid4().hex[:12], fresh=fresh)
            outcomes.append(Run(job, context, executor, reporter, record).carry_out())
            if outcomes[-1].state == "interrupted":
                break
    return outcomes


@contextmanager
def executor_of(job: PlannedRun, reporter: PlanReporter) -> Iterator[tuple[Executor, Forecast]]:
    """Yield the executor of the run and its forecast, once the ensemble was tried and a placement found that fits."""
    run = job.request.run
    measured = _small(job, reporter) if run.executor == "auto" else None
    if run.executor == "serial" or measured is not None:
        stages = run.stages if run.placement == "staged" else 1
        keep_freed_memory()
        device_of(job.settings.device).require()
        # One placement per stage, although they run one after the other.
        resources = Resources(stages * job.settings.threads, 0, 1, psutil.virtual_memory().total)
        measured = measured or probe_device(job.ensemble, job.settings)
        yield SerialExecutor(stages), _forecast(job, resources, measured, reporter, "serial")
        return
    from chorus.cluster.regions.ray_executor import RayExecutor, calibrate_on_ray
    from chorus.cluster.runtime import session
    from chorus.cluster.runtime.nodes import with_gpu_memory

    reporter.phase("starting Ray" if run.address is None else f"connecting to Ray at {run.address}")
    own_port = None if run.metrics_port is None else run.metrics_port + 1
    with span("start Ray"):
        resources = session.start(run.address, staged=run.placement == "staged", metrics_port=own_port)
    try:
        reporter.phase("trying the ensemble")
        device = device_of(job.settings.device)
        require_devices(job.settings, run, resources)
        if not device.slots(resources.cpus, resources.gpus):
            reporter.phase("waiting for a machine with a GPU")
        patience = RETRIES.machine_seconds if may_grow(run) else RETRIES.device_seconds
        with span("try the ensemble"):
            measured = calibrate_on_ray(job.ensemble, job.settings, patience)
        resources = session.found(resources.logs)
        if device.accelerated:
            resources = replace(resources, machines=with_gpu_memory(resources.machines, device.kind))
        made = _forecast(job, resources, measured, reporter)
        longest = made.cost.most_tiles * measured.seconds_per_tile
        yield RayExecutor(made.placement, longest, resources.logs), made
    finally:
        with span("stop Ray"):
            session.stop()


def _small(job: PlannedRun, reporter: PlanReporter) -> DeviceProbe | None:
    """Return the probe of an ensemble whose run is small enough for this process; None: the run belongs on Ray.

    See `chorus.cluster.runtime.break_even`.
    """
    run, settings = job.request.run, job.settings
    if run.address is not None or (run.actors or 1) > 1 or run.placement == "staged" or ray_is_up():
        return None
    device = device_of(settings.device)
    if device.accelerated and device.count() != 1:
        return None
    work = cost(job.table, job.ensemble, settings)
    beside = IMAGE_SECONDS * work.images
    if work.tiles > TRIED_TILES or beside > SERIAL_SECONDS:
        return None
    reporter.phase("trying the ensemble")
    with span("try the ensemble"):
        measured = probe_device(job.ensemble, settings, once=work.tiles <= settings.batch)
    # After a trial on a GPU the run stays here: this process would keep some of the GPU memory from the actors.
    if device.accelerated or beside + work.tiles * measured.seconds_per_tile <= SERIAL_SECONDS:
        return measured
    return None


def _forecast(
    job: PlannedRun,
    resources: Resources,
    measured: DeviceProbe,
    reporter: PlanReporter,
    executor: Literal["ray", "serial"] = "ray",
) -> Forecast:
    expected = cost(job.table, job.ensemble, job.settings)
    memory = estimate_memory(job.table, job.ensemble, job.settings, measured)
    there, of_a_tile = measured.device_memory, measured.seconds_per_tile
    placement = place(job.ensemble, job.settings, job.request.run, resources, memory, expected, there, of_a_tile)
    seconds = expected.tiles * of_a_tile / placement.actors
    failures = [(failed.name, failed.message) for failed in job.failures]
    advice = [*_faster_networks(job), *larger_regions(job, expected, placement.actors)] if seconds > _LONG else []
    words = "\n".join(advice)
    made = Forecast(
        expected, measured, memory, placement, seconds, failures, words, executor, job.table.notes, job.found.absent
    )
    reporter.forecast(made)
    return made


def _faster_networks(job: PlannedRun) -> list[str]:
    """List what would make a run faster, where no network runtime was chosen and nothing was measured."""
    if (
        job.request.settings.backend != "auto"
        or job.settings.backend != "eager"
        or device_of(job.settings.device).accelerated
    ):
        return []
    if len(usable(job.settings.precision, "cpu")) < 3:  # PyTorch alone, whole or compiled
        return ["`pip install 'chorus-bioimage[openvino]'` and `chorus bench engine` may make this run twice as fast"]
    return ["`chorus bench engine` with this ensemble may make this run twice as fast: it finds the best backend"]


def larger_regions(job: PlannedRun, expected: Cost, actors: int) -> list[str]:
    """List what regions of twice the edge would save a run of this cost, where many tiles are seen by two of them."""
    if expected.regions < 4 * _ENOUGH * actors or expected.tiles < (1 + _AGAIN) * expected.unique_tiles:
        return []
    fewer, _, _ = tile_counts(job.table, job.settings, region := 2 * job.settings.region)
    if fewer > (1 - _WORTHWHILE) * expected.tiles:
        return []
    again, saved = expected.tiles / expected.unique_tiles - 1, 1 - fewer / expected.tiles
    return [
        f"{again:.0%} of the tiles are seen twice, at the borders of regions: a new run with --region {region} has "
        f"{saved:.0%} fewer passes, for four times the memory of a region"
    ]


def _check_in_place(job: PlannedRun, *, fresh: bool) -> None:
    """Refuse to write over labels in a source that are not this run's, unless asked."""
    if not job.settings.in_place or not fresh:
        return
    for index in range(len(job.table)):
        layout = layout_of(job.table.image(index), job.ensemble, job.settings, job.request.out)
        if labels_present(layout):
            if not job.request.overwrite:
                raise RefusedError(
                    f"{layout.labels_url}: has labels/semantic already; use --overwrite to replace them, or leave "
                    f"--in-place out"
                )
            cover(layout.labels_url, job.request.out)
            remove_labels(layout)
