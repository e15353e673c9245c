"""Objects as a part of ``chorus predict``: which maps must be saved for them, and their making after all images."""

from __future__ import annotations

from dataclasses import replace

from chorus.cluster.objects.inputs import Results, check_class_names
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.run import make_objects
from chorus.cluster.planning.requests import PlanReporter, PredictRequest
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.outcome import failures_of
from chorus.cluster.state.run_record import RunRecord
from chorus.pipeline.core.fields import FLOW, PROBABILITY, RAY, RAY_VARIATION, in_order
from chorus.pipeline.core.outputs import FLOWS, RAYS
from chorus.pipeline.core.run_document import ObjectCounts
from chorus.pipeline.ensembles.ensemble import Ensemble, require_planes
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.instances.maps.stored import MapSources, fields_of
from chorus.pipeline.instances.methods import MAP_METHODS, VOLUME_METHODS, ObjectsMethod


def with_objects(request: PredictRequest, ensemble: Ensemble) -> PredictRequest:
    """Return the request with its method resolved, and the maps that this method needs among those to save.

    ``auto`` is flows or stars if the ensemble predicts flows or rays, else what its distances, affinities or boundaries
    allow; no objects of an ensemble that gives classes alone, and where nothing is saved outside of the source images.

    Raises
    ------
    RefusedError
        If objects are asked for that cannot be made.
    """
    settings, method, sources = request.settings, request.objects, MapSources.of(ensemble.outputs)
    if method == "auto":
        method = _possible(ensemble) if settings.save and not settings.in_place else "none"
    if method == "none":
        return request.model_copy(update={"objects": method})
    if method not in VOLUME_METHODS:
        require_planes(ensemble, f"--objects {method}")
    if settings.in_place:
        raise RefusedError(f"--objects {method}: objects are not written into source images; leave --in-place out")
    if method == "flows" and FLOWS not in ensemble.outputs:
        raise RefusedError(f"{ensemble.url}: its members give no flows; choose --objects watershed or components")
    if method == "stars" and RAYS not in ensemble.outputs:
        raise RefusedError(f"{ensemble.url}: its members give no rays; choose --objects watershed or components")
    if method == "stars" and ensemble.multilabel:
        raise RefusedError(
            f"{ensemble.url}: a pixel may be of several classes, and an object by stars is of one; choose --objects "
            "watershed or components"
        )
    check_class_names(ensemble)
    maps = {"flows": [FLOW], "stars": [RAY, RAY_VARIATION, PROBABILITY]}.get(method, [])
    needed = {*settings.save, *(field.name for field in maps), *([PROBABILITY.name] * ensemble.multilabel)}
    if method in MAP_METHODS:
        if lacks := sources.lacks(method):
            raise RefusedError(f"{ensemble.url}: its members give no {lacks}; choose another way to make --objects")
        needed |= fields_of(method)
    kept = settings.model_copy(update={"save": in_order(needed)})
    return request.model_copy(update={"objects": method, "settings": kept})


def _possible(ensemble: Ensemble) -> ObjectsMethod:
    """Return the method that an ensemble's outputs are made for."""
    if ensemble.spec.input.axes == "zyx":
        return MapSources.of(ensemble.outputs).method or "none"
    if FLOWS in ensemble.outputs:
        return "flows"
    if RAYS in ensemble.outputs and not ensemble.multilabel:
        return "stars"
    return MapSources.of(ensemble.outputs).method or "none"


def add_objects(
    request: PredictRequest, outcome: PredictOutcome, record: RunRecord, reporter: PlanReporter
) -> PredictOutcome:
    """Make the objects of a run that is done; return its outcome with theirs, which is written to ``run.json``, too.

    Complete objects that `chorus objects` has made of this run with other settings are kept.
    """
    reporter.phase(f"making objects ({request.objects})")
    run = request.run
    results = Results(
        ObjectsRequest(
            out=request.out,
            method=request.objects,  # type: ignore[arg-type]
            executor=run.executor,
            address=run.address,
            verify=run.verify,
        )
    )
    made = make_objects(results, reporter, keep_other=True)
    failed = failures_of(outcome.rows)
    missed = [row.message for row in made.rows if row.status == "failed" and row.name not in failed]
    counts = ObjectCounts(method=made.summary.method, counts=made.summary.objects, failed=len(missed))
    whole = replace(outcome, summary=outcome.summary.model_copy(update={"objects": counts}))
    if made.state == "interrupted":
        whole = replace(whole, state=made.state, message=made.message)
    elif missed:
        whole = replace(whole, state="failures", message=missed[0])
    record.end(whole.state, whole.summary)
    record.write(request.out)
    return whole
