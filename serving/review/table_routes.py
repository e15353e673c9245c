"""Routes of tables: the run, pages of images, distributions of scores, plates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi import Query as Parameter

from chorus.pipeline.core.run_document import PredictSummary
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.report.plates import plates_of
from chorus.pipeline.scores.flag_registry import FLAG_NAMES, REVIEW, flag_label
from chorus.serving.review.gallery import RANK, Gallery, Query
from chorus.serving.review.run import ReviewedRun, Snapshot
from chorus.serving.review.schemas import (
    ClassEntry,
    Distribution,
    EnsembleEntry,
    ImagePage,
    PlateView,
    QuantityEntry,
    RunView,
    Threshold,
    Well,
)

if TYPE_CHECKING:
    from chorus.pipeline.reference.reference import Reference

PAGE = 200
"""At most so many images in an answer."""
_FEWEST_BINS, _MOST_BINS = 20, 80

_Many = Annotated[list[str], Parameter()]
_Limits = Annotated[list[str], Parameter(alias="beyond")]
_Name = Annotated[str | None, Parameter()]


def table_routes(run: ReviewedRun, *, writable: bool) -> APIRouter:
    """Return the routes ``api/run``, ``api/images``, ``api/distribution`` and ``api/plate``."""
    router = APIRouter(prefix="/api")

    @router.get("/run")
    def about(request: Request) -> RunView:
        snapshot = run.snapshot()
        run.log.refresh()
        return _about(run, snapshot, writable=writable, reviewer=getattr(request.state, "reviewer", None))

    @router.get("/images", response_model_exclude_unset=True)
    def images(
        sort: str = RANK,
        order: Literal["worst", "best"] = "worst",
        flag: _Many = [],  # noqa: B006 - FastAPI copies defaults
        status: _Many = [],  # noqa: B006
        reason: _Name = None,
        plate: _Name = None,
        well: _Name = None,
        class_name: Annotated[str | None, Parameter(alias="class")] = None,
        decision: Literal["accept", "reject", "correct-later", "any", "none", "conflict"] | None = None,
        search: Annotated[str, Parameter(max_length=200)] = "",
        limits: _Limits = [],  # noqa: B006
        offset: Annotated[int, Parameter(ge=0)] = 0,
        limit: Annotated[int, Parameter(ge=0, le=PAGE)] = 50,
        known: Annotated[int | None, Parameter(alias="log", description="Of the first page of the list.")] = None,
        at: Annotated[str | None, Parameter(description="Where this image is in the list.")] = None,
    ) -> ImagePage:
        snapshot = run.snapshot()
        run.log.refresh()
        gallery, states = snapshot.gallery, run.log.states()
        query = Query(
            sort=sort,
            order=order,
            flags=tuple(flag),
            statuses=tuple(status),
            reason=reason,
            plate=plate,
            well=well,
            class_name=class_name,
            decision=decision,
            search=search,
            beyond=tuple(_limit(text) for text in limits),
        )
        version = run.log.version if known is None else known
        matching = gallery.find(query, states, version)
        rows = [
            row.model_copy(update={"decision": states.get(row.name), "message": run.said(row.message, row.name)})
            for row in gallery.rows(matching[offset : offset + limit])
        ]
        page = ImagePage(version=snapshot.version, log=version, total=len(matching), offset=offset, rows=rows)
        return page if at is None else page.model_copy(update={"position": _position(gallery, matching, at)})

    @router.get("/distribution")
    def distribution(score: str) -> Distribution:
        snapshot = run.snapshot()
        return snapshot.once(f"distribution {score}", lambda: _distribution(snapshot, score))

    @router.get("/plate")
    def plate_map(plate: str, score: str) -> PlateView:
        snapshot = run.snapshot()
        plates = snapshot.once("plates", lambda: plates_of(snapshot.gallery.images))
        keys = [quantity.key for quantity in plates.quantities]
        if plate not in plates.names:
            raise HTTPException(404, f"no plate {plate!r}; choose out of {', '.join(plates.names) or 'none'}")
        if score not in keys:
            raise HTTPException(404, f"no score {score!r} of plates; choose out of {', '.join(keys)}")
        content, index = plates.maps[plates.names.index(plate)], keys.index(score)
        wells = [
            Well(row=row, column=column, images=images, value=value)
            for (row, column, images), value in zip(content.wells, content.values[index], strict=True)
        ]
        return PlateView(
            plate=plate,
            score=score,
            limits=plates.limits[index],
            rows=content.rows,
            columns=content.columns,
            wells=wells,
        )

    return router


def _about(run: ReviewedRun, snapshot: Snapshot, *, writable: bool, reviewer: str | None) -> RunView:
    document, gallery, log = snapshot.document.run, snapshot.gallery, run.log
    ensemble = snapshot.document.ensemble
    notes = [*snapshot.notes, *log.notes]
    if ensemble.url:  # reviewers know it by its name
        notes = [note.replace(ensemble.url.removesuffix("/ensemble.yaml"), ensemble.name) for note in notes]
    return RunView(
        version=snapshot.version,
        results=snapshot.out if run.places else "OUT",
        name=storage.basename(snapshot.out),
        chorus=document.chorus,
        started=document.started,
        finished=document.finished,
        outcome=document.outcome,
        summary=document.summary or PredictSummary(),
        ensemble=EnsembleEntry(name=ensemble.name, hash=ensemble.hash, members=ensemble.members),
        images=len(gallery),
        statuses=gallery.statuses,
        judged=gallery.images.judged,
        flags=gallery.flags,
        flag_labels={name: flag_label(name) for name in (*FLAG_NAMES, REVIEW)},
        reasons=gallery.reasons,
        classes=[ClassEntry(name=info.name, color=info.color) for info in snapshot.classes],
        quantities=[
            QuantityEntry(key=q.key, label=q.label, digits=q.digits, low_is_bad=q.low_is_bad, first=q.listed)
            for q in gallery.quantities
        ],
        plates=gallery.plates,
        decisions=gallery.counts(log.states()),
        log=log.version,
        objects=snapshot.has_objects,
        notes=[run.said(note) for note in notes],
        writable=writable,
        reviewer=reviewer,
    )


def _limit(text: str) -> tuple[str, float]:
    """Parse ``score:value``, where a score's name may contain colons."""
    key, colon, value = text.rpartition(":")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not colon or number != number:
        raise RefusedError(f"beyond {text!r}: give a score, a colon and a number, such as uncertainty:0.1")
    return key, number


def _position(gallery: Gallery, matching: np.ndarray, name: str) -> int | None:
    position = gallery.places.get(name)
    where = np.flatnonzero(matching == position) if position is not None else np.empty(0)
    return int(where[0]) if len(where) else None


def _distribution(snapshot: Snapshot, score: str) -> Distribution:
    """Return the histogram of a score, that of the reference set with the same bins, and the reference's thresholds."""
    quantity, values = snapshot.gallery.quantity(score), snapshot.gallery.values(score)
    own = values[np.isfinite(values)]
    reference = snapshot.once("reference", lambda: _reference(snapshot))
    theirs = np.empty(0)
    thresholds: list[Threshold] = []
    if reference is not None:
        frame, key = reference.frame(), quantity.in_reference
        if key in frame:
            theirs = frame[key].to_numpy(np.float64, na_value=np.nan)
            theirs = theirs[np.isfinite(theirs)]
        if quantity.score.is_dice:
            thresholds.append(Threshold(value=reference.tau, name="Dice that is asked for"))
        if (known := reference.thresholds.get(quantity.key)) is not None:
            named = [
                ("U_min, the most certain reference image below the wanted Dice", known.minimum),
                ("most doubtful in the reference", known.worst_seen),
                (f"{100 * known.false_positive_rate:g} % of good images are beyond", known.at_rate),
            ]
            thresholds += [Threshold(value=value, name=name) for name, value in named if value is not None]
    both = np.concatenate([own, theirs])
    bins = int(np.clip(2 * np.sqrt(own.size), _FEWEST_BINS, _MOST_BINS))
    edges = np.histogram_bin_edges(both, bins) if both.size else np.linspace(0, 1, bins + 1)
    return Distribution(
        score=score,
        label=quantity.label,
        digits=quantity.digits,
        low_is_bad=quantity.low_is_bad,
        edges=edges.tolist(),
        counts=np.histogram(own, edges)[0].tolist(),
        reference=np.histogram(theirs, edges)[0].tolist() if theirs.size else None,
        median=float(np.median(own)) if own.size else None,
        missing=int(len(values) - own.size),
        thresholds=thresholds,
    )


def _reference(snapshot: Snapshot) -> Reference | None:
    """Return the reference set of the run's ensemble, if there is one.

    Its import takes seconds, so it is done on request.
    """
    from chorus.pipeline.report.sections import known_of

    ensemble = snapshot.document.ensemble
    return known_of(ensemble.url, ensemble.hash, snapshot.notes).reference
