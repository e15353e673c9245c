"""The progress of a run of ``chorus predict``, read from its output by others than the run itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from chorus.cluster.state.ledger import Ledger
from chorus.cluster.state.output import read_run
from chorus.cluster.state.results import planned_images
from chorus.pipeline.core.run_document import PredictDocument
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors


@dataclass(frozen=True, slots=True)
class RunState:
    """The progress of a run.

    Attributes
    ----------
    outcome : ``open``, it is running or was interrupted; ``complete``; ``failures``, done but some images failed
    images, regions : planned
    images_done, regions_done : recorded; None if not counted
    failed : images that could not be planned or, at the end, not processed
    """

    outcome: Literal["open", "complete", "failures"]
    images: int
    regions: int
    images_done: int | None
    regions_done: int | None
    failed: int


def run_state(out: str, *, count: bool) -> RunState | None:
    """Return the state of the run in `out`; None if there is none (yet) or it is of another command.

    Parameters
    ----------
    count : whether to count the records of a run that is open: a listing of its ledger, about one second per 10^4
        regions in a bucket

    Raises
    ------
    OutputError
        If `out` cannot be read.
    DamagedError
        If its ``run.json`` is cut, or does not hold what it should.
    """
    with storage_errors(out):
        if not storage.exists(storage.join(out, "run.json")):
            return None
        run = read_run(out, PredictDocument)
        if run.ensemble is None:
            return None
        return _state(run, out, count=count)


def _state(run: PredictDocument, out: str, *, count: bool) -> RunState:
    inputs, summary = run.inputs, run.summary
    images, failed = inputs.images + len(inputs.failed), len(inputs.failed)
    if run.outcome in ("complete", "failures") and summary is not None:
        outcome: Literal["complete", "failures"] = "complete" if run.outcome == "complete" else "failures"
        return RunState(outcome, images, inputs.regions, summary.done + summary.empty, None, summary.failed)
    if not count:
        return RunState("open", images, inputs.regions, None, None, failed)
    table = planned_images(out)
    finished = Ledger(out).scan(table)
    # All regions of a finished image are finished.
    regions = finished.regions | np.repeat(finished.images, table.region_counts)
    return RunState("open", images, inputs.regions, int(finished.images.sum()), int(regions.sum()), failed)
