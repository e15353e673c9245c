"""Routes of decisions: the current ones, deciding, undoing, and a table of all."""

from __future__ import annotations

import numpy as np
import pandas as pd
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response

from chorus.pipeline.exports.spreadsheet import csv_bytes
from chorus.serving.review.decisions import DECISIONS, DecisionLog
from chorus.serving.review.origin import require_own_page
from chorus.serving.review.run import ReviewedRun, Snapshot
from chorus.serving.review.schemas import Decided, DecideRequest, DecisionsView, UndoRequest


def decision_routes(run: ReviewedRun, *, writable: bool) -> APIRouter:
    """Return the routes ``api/decisions`` (GET, POST), ``api/undo`` and ``api/decisions.csv``."""
    router = APIRouter(prefix="/api")

    @router.get("/decisions")
    def decisions(since: int = 0) -> DecisionsView:
        run.log.refresh()
        changed, counts = run.log.since(since), run.snapshot().gallery.counts(run.log.states())
        return DecisionsView(log=run.log.version, images=changed, counts=counts)

    @router.post("/decisions", dependencies=[Depends(require_own_page)])
    def decide(request: Request, body: DecideRequest) -> Decided:
        _check_writable(writable)
        gallery = run.snapshot().gallery
        if body.image not in gallery.places:
            raise HTTPException(404, "no image of that name in this run; look for it in the gallery")
        run.log.refresh()  # so that the answer includes decisions of others
        entry = run.log.decide(_reviewer(request, body.reviewer), body.image, body.decision, body.note.strip())
        return _answer(run.log, run.snapshot(), body.image, entry.id)

    @router.post("/undo", dependencies=[Depends(require_own_page)])
    def undo(request: Request, body: UndoRequest) -> Decided:
        _check_writable(writable)
        run.log.refresh()
        entry = run.log.undo(_reviewer(request, body.reviewer), body.id)
        return _answer(run.log, run.snapshot(), entry.image, entry.id)

    @router.get("/decisions.csv")
    def table() -> Response:
        run.log.refresh(now=True)
        data = csv_bytes(decision_table(run.log, run.snapshot()))
        headers = {"Content-Disposition": 'attachment; filename="decisions.csv"', "Cache-Control": "no-store"}
        return Response(data, media_type="text/csv; charset=utf-8", headers=headers)

    return router


def decision_table(log: DecisionLog, snapshot: Snapshot) -> pd.DataFrame:
    """Return a row per decided image, in the order of the gallery: decision, reviewer, time, note, and scores."""
    gallery, states = snapshot.gallery, log.states()
    decided = {name: state for name, state in states.items() if state.decision and name in gallery.places}
    places = np.array(sorted(gallery.places[name] for name in decided), np.int64)
    rows = []
    for row in gallery.rows(places):
        state = decided[row.name]
        last = state.verdicts[0]
        verdicts = "; ".join(f"{v.reviewer}: {v.decision}" for v in state.verdicts) if state.conflict else ""
        head: dict[str, str | float | None] = {"name": row.name, "decision": state.decision, "reviewer": last.reviewer}
        head |= {"time": last.time, "note": last.note, "conflict": verdicts, "status": row.status}
        head |= {"flags": "; ".join(row.flags), "reasons": "; ".join(row.reasons)}
        rows.append({**head, **row.values})
    first = ["name", "decision", "reviewer", "time", "note", "conflict", "status", "flags", "reasons"]
    return pd.DataFrame(rows, columns=[*first, *(quantity.key for quantity in gallery.quantities)])


def _answer(log: DecisionLog, snapshot: Snapshot, image: str, entry: str) -> Decided:
    counts = snapshot.gallery.counts(log.states())
    return Decided(id=entry, image=image, state=log.state(image), counts=counts)


def _reviewer(request: Request, given: str) -> str:
    """Return who decides: the name from the server in front, or the one that the person gave."""
    return str(getattr(request.state, "reviewer", "") or given)


def _check_writable(writable: bool) -> None:
    if not writable:
        raise HTTPException(403, f"this page is for looking only; {', '.join(DECISIONS)} are not taken here")
