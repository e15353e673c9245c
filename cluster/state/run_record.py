"""``run.json``: settings, inputs and outcome of a run; and the list of what Chorus owns in an output."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TypeVar

import psutil
from pydantic import JsonValue

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import PLAN, ResolvedSettings
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.state.documents import Calibration, ImageRow, PredictRecord, UsedEnsemble
from chorus.pipeline.core.run_document import (
    Machine,
    PredictDocument,
    PredictSettings,
    PredictSummary,
    RunDocument,
    SavedClass,
    SavedEnsemble,
    SavedInputs,
    SavedSettings,
    Surroundings,
)
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import DamagedError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.storage import remove_folder, storage_errors
from chorus.pipeline.members.registry import plug_in_versions

RUN = "run.json"
Kind = TypeVar("Kind", bound=RunDocument)
# Results of a run below its output; --overwrite removes these and nothing else.
# The ledger goes first: what it names must exist, even if removal is interrupted.
ENTRIES = (
    "ledger",
    "images",
    "attempts",
    "plan",
    "report",
    "scores.parquet",
    "features.parquet",
    "evaluation.parquet",
    "evaluation.json",
    "reliability.svg",
    "flags.parquet",
    "shift.json",
    "sentinels",
    "sentinels.json",
    "work",
    "objects.parquet",
    "objects.json",
    "profile",
    RUN,
)
_LIBRARIES = ("chorus-bioimage", "torch", "ray", "zarr", "numpy", "segmentation-models-pytorch")


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
    ) -> RunRecord:
        """Create the record of a run that begins."""
        document = PredictRecord(
            started=datetime.fromtimestamp(started, UTC).isoformat(),
            outcome="running",
            repeated=0,
            smaller_batch=0,
            settings=PredictSettings.model_validate(settings.model_dump(mode="json")),
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
        _write(storage.join(out, RUN), self.document.written())

    def _change(self, **fields: object) -> None:
        self.document = self.document.model_copy(update=fields)


def surroundings() -> Surroundings:
    """Return the versions and the machine of this process."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return Surroundings(
        chorus=version("chorus-bioimage"),
        versions={"python": platform.python_version()} | libraries | plug_in_versions(),
        machine=Machine(system=platform.platform(), cores=psutil.cpu_count()),
    )


def write_run(content: Mapping[str, JsonValue], out: str) -> None:
    """Write ``run.json`` of an output; raise OutputError if it cannot be written."""
    _write(storage.join(out, RUN), json.dumps(content, indent=2).encode())


def read_run(out: str, kind: type[Kind]) -> Kind:
    """Return ``run.json`` of an output.

    Parameters
    ----------
    kind : what is needed of it: `RunDocument` of any command, `PredictDocument` of `chorus predict`

    Raises
    ------
    DamagedError
        If it is cut, or does not hold what it should.
    RefusedError
        If there is none.
    """
    url = storage.join(storage.normalise(out), RUN)
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"{out}: no results of Chorus ({storage.explain(error, url)})") from error
    return parsed(data, kind, url, "run the command that made it again, with --overwrite")


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


def earlier_run(
    out: str, kind: type[Kind], differences: Callable[[Kind], list[str]], *, overwrite: bool
) -> Kind | None:
    """Return ``run.json`` of the run to resume in `out`; None if `out` is new or to be cleared.

    Parameters
    ----------
    kind : see `read_run`
    differences : takes an earlier ``run.json`` and describes what defines its results and differs now

    Raises
    ------
    RefusedError
        If it holds other results; the message says what differs, and the two ways out.
    """
    with storage_errors(out):
        present = set(storage.entries(out)) - {"run.lock"}
    if RUN in present:
        try:
            known = read_run(out, kind)
        except DamagedError:
            # It does not say whose the output is: only its names do.
            if overwrite and present.issubset(ENTRIES):
                return None
            raise
        found = differences(known)
        if not found:
            return known
        if not overwrite:
            raise RefusedError(
                f"{out}: holds results of another run ({'; '.join(found)}); use --overwrite to replace them, or "
                f"another --out"
            )
    elif present:  # --overwrite never removes files of others
        raise RefusedError(f"{out}: is not empty and holds no run of Chorus; choose another --out")
    return None


def clear_output(out: str) -> None:
    """Remove what an earlier run made in `out`, and nothing else."""
    with storage_errors(out):
        present = storage.entries(out)
        for entry in ENTRIES:
            if entry in present:
                remove_folder(storage.join(out, entry))
        storage.remove_partial_files(out)


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
    found = setting_differences(now.settings, known.settings)
    if ensemble.hash != now.ensemble.hash:
        found.append(f"ensemble was {ensemble.name or None}, now another or changed")
    if known.sources != now.sources:
        found.append(f"sources were {' '.join(known.sources)}, now {' '.join(now.sources)}")
    elif not _same_images(record, known.inputs, out):
        found.append("the images of the sources changed (their number, shapes or types)")
    return found


def setting_differences(settings: SavedSettings, earlier: SavedSettings) -> list[str]:
    """Describe the settings that differ from those of an earlier ``run.json``."""
    known = earlier.content
    return [f"{k} was {known.get(k)}, now {value}" for k, value in settings.content.items() if known.get(k) != value]


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


def _write(url: str, data: bytes) -> None:
    with storage_errors(url):
        storage.write_bytes(url, data)
