"""How far a run of ``chorus predict`` has come, from what it wrote down: for those who did not see it run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from chorus.cluster.state.ledger import Ledger
from chorus.cluster.state.results import planned_images
from chorus.cluster.state.run_record import read_run
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import storage_errors


@dataclass(frozen=True, slots=True)
class RunState:
    """How far a run has come.

    Attributes
    ----------
    outcome : ``open``, as it goes on or was cut short; ``complete``; ``failures``, done but for images that failed
    images, regions : planned, and how many of them are recorded; None where nobody counted them
    failed : images that could not be planned or, at the end, done
    """

    outcome: Literal["open", "complete", "failures"]
    images: int
    regions: int
    images_done: int | None
    regions_done: int | None
    failed: int


def run_state(out: str, *, count: bool) -> RunState | None:
    """The state of the run in `out`, None where there is none (yet) or it is of another command.

    Parameters
    ----------
    count : whether to count the records of a run that is open: a listing of its ledger, a second per 10^4 regions or so
        in a bucket

    Raises
    ------
    OutputError
        If `out` cannot be read.
    """
    with storage_errors(out):
        if not storage.exists(storage.join(out, "run.json")):
            return None
        run = read_run(out)
        if "inputs" not in run or "ensemble" not in run:
            return None
        return _state(run, out, count=count)


def _state(run: dict[str, Any], out: str, *, count: bool) -> RunState:
    inputs, summary = run["inputs"], run.get("summary")
    images, failed = inputs["images"] + len(inputs["failed"]), len(inputs["failed"])
    if run["outcome"] in ("complete", "failures") and summary:
        done = summary["done"] + summary["empty"]
        return RunState(run["outcome"], images, inputs["regions"], done, None, summary["failed"])
    if not count:
        return RunState("open", images, inputs["regions"], None, None, failed)
    table = planned_images(out)
    finished = Ledger(out).scan(table)
    # Of a finished image every region is.
    regions = finished.regions | np.repeat(finished.images, table.region_counts)
    return RunState("open", images, inputs["regions"], int(finished.images.sum()), int(regions.sum()), failed)
