"""Sentinels of an ensemble: labelled images that show, before a run begins, that its results have not changed.

They are a small run of their own in ``OUT/sentinels``, with the settings, the devices and the processes of the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from chorus.cluster.evaluation.image import evaluate_image
from chorus.cluster.evaluation.job import EvaluationJob, EvaluationSettings
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.results import planned_images
from chorus.cluster.telemetry.metrics import SENTINEL_DICE, SENTINELS_MOVED, driver_recorder
from chorus.pipeline.consensus.annotations import Drawing
from chorus.pipeline.consensus.truths import TRUTH
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.ensembles.entries import Sentinel, SentinelSettings
from chorus.pipeline.errors import CutShortError, ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors

FOLDER, TABLE = "sentinels", "sentinels.json"
log = logging.getLogger("chorus")


class SentinelDice(BaseModel):
    """A row of ``sentinels.json``.

    Attributes
    ----------
    name, class_name : of the sentinel and of the class; ``class`` in the file
    stored, found : Dice in the ensemble and now; `found` is None if the sentinel could not be processed
    moved : whether they differ by more than `tolerance`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    class_name: str = Field(validation_alias=AliasChoices("class", "class_name"), serialization_alias="class")
    stored: float
    found: float | None
    tolerance: float
    moved: bool


def check_sentinels(
    request: PredictRequest,
    ensemble: Ensemble,
    settings: ResolvedSettings,
    reporter: Reporter,
    carry_out: Callable[[PredictRequest], PredictOutcome],
) -> None:
    """Process the sentinels of `ensemble`, if it has any, and write ``sentinels.json``; skip those already checked.

    Parameters
    ----------
    request, settings : of the run that is about to begin
    carry_out : processes images as the run will do

    Raises
    ------
    RefusedError
        If the Dice of one moved, it was measured with the same tiles and augmentations, and the run asks for the check.
    CutShortError
        If the process is told to stop.
    """
    sentinels, mode = ensemble.spec.sentinels, request.run.sentinels
    if not sentinels or mode == "skip":
        return
    strict = {sentinel.name for sentinel in sentinels if mode == "check" and comparable(sentinel, ensemble, settings)}
    url = storage.join(request.out, TABLE)
    rows = _read(url, sentinels)
    reasons: dict[str, str] = {}
    # The fault may have been fixed since.
    if rows is None or any(row.moved and row.name in strict for row in rows):
        reporter.phase("checking the sentinels")
        rows, reasons = _measured(request, ensemble, carry_out)
        with storage_errors(url):
            storage.write_bytes(url, json.dumps([row.model_dump(by_alias=True) for row in rows], indent=2).encode())
    moved = [row for row in rows if row.moved]
    _count(request, ensemble, rows)
    for row in moved:
        if row.name not in strict:
            why = "" if mode == "warn" else "; it was measured with other tiles or augmentations: no proof of a fault"
            log.warning("%s%s", _sentence(row, reasons), why)
    if refused := [row for row in moved if row.name in strict]:
        raise moved_error(ensemble, refused, reasons)


def _count(request: PredictRequest, ensemble: Ensemble, rows: Sequence[SentinelDice]) -> None:
    recorder = driver_recorder(request.out, ensemble.spec.name)
    for row in rows:
        for source, dice in (("stored", row.stored), ("found", row.found)):
            if dice is not None:
                labels = {"sentinel": row.name, "class": row.class_name, "source": source}
                recorder.set(SENTINEL_DICE, dice, **labels)
    recorder.set(SENTINELS_MOVED, sum(row.moved for row in rows))


def moved_error(ensemble: Ensemble, moved: Sequence[SentinelDice], reasons: Mapping[str, str]) -> RefusedError:
    """Return the error for sentinels whose Dice moved; `reasons` by name say why one could not be processed."""
    return RefusedError(
        f"{ensemble.url}: {'; '.join(_sentence(row, reasons) for row in moved)}; the ensemble does not give what it "
        f"gave: look at its weights, its normalisation, the driver of the device and --precision; if it was changed on "
        f"purpose run `chorus ensemble sentinel` again, or predict with --sentinels warn"
    )


def comparable(sentinel: Sentinel, ensemble: Ensemble, settings: ResolvedSettings) -> bool:
    """Return whether a run uses the same tiles and augmentations as the measurement of a sentinel's Dice did."""
    spec = ensemble.spec
    known = sentinel.measured or SentinelSettings(
        tile=spec.edge, overlap=spec.plane_overlap, augmentations=spec.augmentations
    )
    same = (known.tile, known.overlap) == (settings.tile, settings.overlap)
    return same and set(known.augmentations) == set(settings.augmentations)


def sentinel_url(sentinel: Sentinel, ensemble: Ensemble) -> str:
    """Return the URL of a sentinel's image."""
    return storage.normalise(inside(ensemble.folder, sentinel.image, what=f"the image of sentinel {sentinel.name}"))


def dice_of(out: str, image_url: str, label: str, ensemble: Ensemble) -> dict[str, float]:
    """Return Dice by foreground class of an image of the run in `out`, against a label image inside the source.

    Raises
    ------
    ImageError
        If the run has no result for it, or the label image is missing or does not fit.
    """
    table = planned_images(out)
    images = [image for image in map(table.image, range(len(table))) if storage.normalise(image.url) == image_url]
    if not images:
        raise ImageError(f"{image_url}: could not be read")
    job = EvaluationJob(
        image=images[0],
        labels_url=storage.join(out, "images", images[0].name),
        maps_url="",
        truth=Drawing(TRUTH, inside(storage.join(image_url, "labels"), label, what="the label"), "zarr"),
        experts=(),
        classes=tuple(entry.name for entry in ensemble.spec.classes),
        settings=EvaluationSettings(baseline=False),
    )
    values = evaluate_image(job).values
    return {name: cast("float", values[f"dice:{name}"]) for name in job.classes[1:]}


def _measured(
    request: PredictRequest, ensemble: Ensemble, carry_out: Callable[[PredictRequest], PredictOutcome]
) -> tuple[list[SentinelDice], dict[str, str]]:
    """Return the rows of all sentinels, and by name why one could not be processed."""
    sentinels = ensemble.spec.sentinels
    inner = _inner(request, [sentinel_url(sentinel, ensemble) for sentinel in sentinels])
    if storage.exists(storage.join(request.out, TABLE)):  # an earlier check, of other sentinels or with a fault
        remove_folder(inner.out)
    outcome = carry_out(inner)
    if outcome.state == "interrupted":
        raise CutShortError(outcome.message)
    failed = {row.source: row.message for row in outcome.rows if row.status == "failed"}
    rows, reasons = [], {}
    for sentinel in sentinels:
        url = sentinel_url(sentinel, ensemble)
        dice: dict[str, float] = {}
        try:
            if url in failed:
                raise ImageError(failed[url])
            dice = dice_of(inner.out, url, sentinel.label, ensemble)
        except ImageError as error:
            reasons[sentinel.name] = str(error)
        rows += rows_of(sentinel, dice)
    return rows, reasons


def _inner(request: PredictRequest, urls: list[str]) -> PredictRequest:
    """Return the run over the sentinels: the run's settings without those for its own images and for viewers."""
    own: dict[str, Any] = {"channel": [], "level": None, "diameter": None, "save": [], "in_place": False}
    return PredictRequest(
        sources=urls,
        ensemble=request.ensemble,
        out=storage.join(request.out, FOLDER),
        settings=request.settings.model_copy(update=own),
        run=request.run.model_copy(update={"thumbnails": False, "profile": False}),
        overwrite=True,
    )


def rows_of(sentinel: Sentinel, dice: Mapping[str, float]) -> list[SentinelDice]:
    """Return a row per class of a sentinel with the Dice found now; `dice` is empty if it could not be processed."""
    return [
        SentinelDice(
            name=sentinel.name,
            class_name=name,
            stored=stored,
            found=dice.get(name),
            tolerance=sentinel.tolerance,
            moved=name not in dice or abs(dice[name] - stored) > sentinel.tolerance,
        )
        for name, stored in sentinel.dice.items()
    ]


def _read(url: str, sentinels: Sequence[Sentinel]) -> list[SentinelDice] | None:
    """Return the rows that an earlier session measured of the same sentinels; None if there are none."""
    with storage_errors(url):
        data = storage.read_bytes(url) if storage.exists(url) else b"[]"
    try:
        rows = [SentinelDice.model_validate(row) for row in json.loads(data)]
    except (ValueError, ValidationError):  # of another version: as if there were none
        return None
    wanted = [(one.name, name, dice, one.tolerance) for one in sentinels for name, dice in one.dice.items()]
    return rows if [(row.name, row.class_name, row.stored, row.tolerance) for row in rows] == wanted else None


def _sentence(row: SentinelDice, reasons: Mapping[str, str]) -> str:
    if row.found is None:
        return f"sentinel {row.name} could not be processed ({reasons.get(row.name, 'as before')})"
    return (
        f"sentinel {row.name}: Dice of {row.class_name} is {row.found:.4f} and was {row.stored:.4f}, tolerance "
        f"{row.tolerance:g}"
    )
