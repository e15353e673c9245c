"""``run.json``: settings, inputs and outcome of a run; and the list of what Chorus owns in an output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import PLAN
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.state.documents import Calibration, ImageRow, PredictRecord, UsedEnsemble
from chorus.cluster.state.output import RUN, earlier_run, read_run, setting_differences, surroundings
from chorus.pipeline.core.run_document import (
    PredictDocument,
    PredictSettings,
    PredictSummary,
    SavedClass,
    SavedEnsemble,
    SavedInputs,
    SavedReference,
)
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import DamagedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.reference.storage import NOT_LOOKED_FOR, FoundReference


@dataclass
class RunRecord:
    """``run.json`` of a run that goes on. Its `settings`, `ensemble` and `sources`, and the table define the result.

    Attributes
    ----------
    document : as it is to be written; `inputs.failed` names images that could not be planned: in a rerun they may be
        repaired, or others may fail
    table : images that could be planned
    """

    document: PredictRecord
    table: ImageTable

    @classmethod
    def of(
        cls,
        request: PredictRequest,
        ensemble: Ensemble,
        settings: ResolvedSettings,
        table: ImageTable,
        failed: Sequence[str],
        started: float,
        found: FoundReference = NOT_LOOKED_FOR,
    ) -> RunRecord:
        """Create the record of a run that begins."""
        saved, known, by = PredictSettings.model_validate(settings.model_dump(mode="json")), found.reference, None
        if known is not None:
            differs = known.differs(saved.content)
            by = SavedReference(images=known.images, tau=known.tau, alpha=known.bound.alpha, differs=differs)
        document = PredictRecord(
            started=datetime.fromtimestamp(started, UTC).isoformat(),
            outcome="running",
            repeated=0,
            smaller_batch=0,
            settings=saved,
            run=request.run.model_dump(mode="json"),
            sources=tuple(request.sources),
            inputs=SavedInputs(sha256=table.digest, images=len(table), regions=table.regions, failed=tuple(failed)),
            ensemble=UsedEnsemble(
                name=ensemble.spec.name,
                url=ensemble.url,
                hash=ensemble.hash,
                members=len(ensemble.spec.members),
                classes=tuple(SavedClass(name=c.name, color=c.color) for c in ensemble.classes),
            ),
            reference=by,
            unjudged=found.absent,
            **dict(surroundings()),
        )
        return cls(document, table)

    def repeat(self, times: int) -> None:
        """Add to the number of times that regions were retried and their unfinished work was lost."""
        self._change(repeated=(self.document.repeated or 0) + times)

    def divide_batch(self) -> None:
        """Count a region for which a batch had to be divided."""
        self._change(smaller_batch=(self.document.smaller_batch or 0) + 1)

    def execute(self, executor: str, calibration: Calibration) -> None:
        """Record what executes the run, and what was measured there."""
        self._change(run=self.document.run | {"executor": executor}, calibration=calibration)

    def resume(self, known: PredictDocument) -> None:
        """Take over start and counts of the run that is resumed."""
        counted = known if known.summary is None else known.summary
        started = known.started or self.document.started
        self._change(started=started, repeated=counted.repeated or 0, smaller_batch=counted.smaller_batch or 0)

    def close(self, state: str, rows: Sequence[ImageRow]) -> PredictSummary:
        """Fill in how the run ended; return the summary."""
        finished, document = datetime.now(UTC), self.document
        counts = Counter(row.status for row in rows)
        summary = PredictSummary(
            images=len(rows),
            done=counts["done"],
            empty=counts["empty"],
            failed=counts["failed"],
            regions=self.table.regions,
            repeated=document.repeated or 0,
            smaller_batch=document.smaller_batch or 0,
            tiles=sum(row.tiles for row in rows),
            passes_saved=_saved(rows, document),
            seconds=round((finished - datetime.fromisoformat(document.started)).total_seconds(), 1),
        )
        self._change(finished=finished.isoformat(), repeated=None, smaller_batch=None)
        self.end(state, summary)
        return summary

    def end(self, state: str, summary: PredictSummary) -> None:
        """Record an outcome."""
        self._change(outcome=state, summary=summary)

    def write(self, out: str) -> None:
        """Write ``run.json``; raise OutputError if it cannot be written."""
        url = storage.join(out, RUN)
        with storage_errors(url):
            storage.write_record(url, self.document.written())

    def _change(self, **fields: object) -> None:
        self.document = self.document.model_copy(update=fields)


def earlier_choice(out: str) -> tuple[str, int | None] | None:
    """Return the backend and the tiles per call of the run that is in `out`; None if there is none."""
    if not storage.exists(storage.join(out, RUN)):
        return None
    settings = read_run(out, PredictDocument).settings
    return settings.backend, settings.batch


def open_output(record: RunRecord, out: str, *, overwrite: bool) -> bool:
    """Check that `out` is new, or holds a run of the same settings; return whether it is new.

    Raises
    ------
    RefusedError
        If it holds other results; the message says what differs, and the two ways out.
    """
    known = earlier_run(out, PredictDocument, lambda known: _differences(record, known, out), overwrite=overwrite)
    if known is not None:
        record.resume(known)
    return known is None


def _saved(rows: Sequence[ImageRow], document: PredictRecord) -> float | None:
    """Return the share of forward passes that adaptive effort saved, by tiles; None with full effort."""
    drawn = [(row.samples, row.tiles) for row in rows if row.samples is not None]
    if document.settings.effort != "adaptive" or not drawn:
        return None
    everything = document.ensemble.members * len(document.settings.augmentations)
    tiles = sum(count for _, count in drawn)
    return round(1 - math.fsum(samples * count for samples, count in drawn) / (tiles * everything), 4)


def _differences(record: RunRecord, known: PredictDocument, out: str) -> list[str]:
    """Describe what defines the result and differs."""
    if known.command is not None:
        return [f"it is of `chorus {known.command}`"]
    now, ensemble = record.document, known.ensemble or SavedEnsemble()
    differences = setting_differences(now.settings, known.settings)
    if ensemble.hash != now.ensemble.hash:
        differences.append(f"ensemble was {ensemble.name or None}, now another or changed")
    if known.sources != now.sources:
        differences.append(f"sources were {' '.join(known.sources)}, now {' '.join(now.sources)}")
    elif not _same_images(record, known.inputs, out):
        differences.append("the images of the sources changed (their number, shapes or types)")
    return differences


def _same_images(record: RunRecord, inputs: SavedInputs, out: str) -> bool:
    """Return whether the images are those of the earlier run, apart from those that could not be planned."""
    now = record.document.inputs
    if inputs.sha256 == now.sha256:
        return True
    try:
        earlier = ImageTable.read(storage.join(out, *PLAN))
    except (OSError, DamagedError):
        return False
    return earlier.without(now.failed).same_images(record.table.without(inputs.failed))
