"""The end of an image: its pyramid, scores, thumbnails and features, and its record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chorus.cluster.planning.image_statistics import image_statistics
from chorus.cluster.planning.plan import RunContext, layout_of
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.runs.image_diameters import Estimate, stored_estimate
from chorus.cluster.state.documents import ImageRow
from chorus.cluster.state.ledger import ImageRecord, Ledger, RegionRecord
from chorus.cluster.telemetry.logs import about
from chorus.cluster.telemetry.metrics import WorkMetrics, run_label
from chorus.cluster.telemetry.timeline import keep, noted, span
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.inference.feature_records import FeatureTotal
from chorus.pipeline.io.fences import cover
from chorus.pipeline.io.outputs.peer_check import check_image
from chorus.pipeline.io.outputs.pyramid import write_pyramid
from chorus.pipeline.io.outputs.writer import prepare_image, prepared_files
from chorus.pipeline.io.stored_files import StoredFiles, all_files, stored
from chorus.pipeline.preprocessing.preparation import Statistics, spread_message
from chorus.pipeline.report.thumbnails import write_thumbnail
from chorus.pipeline.scores.image_quality import Appearance, appearance_columns
from chorus.pipeline.scores.image_scores import RegionSums, image_scores
from chorus.pipeline.scores.region_scores import UNCERTAINTY
from chorus.pipeline.scores.registry import score_columns


def finish_image(context: RunContext, image: PlannedImage, ensemble: Ensemble, *, prepare: bool = False) -> ImageRow:
    """Write the pyramid and the record of an image whose regions are all recorded; return its row of scores.

    With `prepare` its metadata are written, too, where they are missing or damaged: no region does it in this session.
    """
    with about(run=run_label(context.out), image=image.name):
        with noted() as spans:
            row = _finish(context, image, ensemble, prepare)
        WorkMetrics(context.out, context.ensemble_name).stages(spans)
        keep(spans)
        return row


def _finish(context: RunContext, image: PlannedImage, ensemble: Ensemble, prepare: bool) -> ImageRow:
    ledger = Ledger(context.out)
    with span("image scores"):
        files: list[StoredFiles | None] = []
        records = _noting_files(ledger.region_records(image.name, image.regions), files)
        estimate = stored_estimate(context.diameter_url(image.name)) if context.settings.diameter == "auto" else None
        finished = image_record(image, ensemble, image_statistics(context, image, ensemble), records, estimate)
    layout = layout_of(image, ensemble, context.settings, context.out)
    cover(layout.labels_url, context.out)
    with span("pyramid"):
        if prepare:
            prepare_image(layout)
        of_pyramid = write_pyramid(layout)
        if context.settings.strict:
            for url in dict.fromkeys((layout.url, layout.labels_url)):
                check_image(url)
    if context.thumbnails:
        with span("thumbnail"):
            thumbnail = stored(
                write_thumbnail(
                    context.out, image.name, image.url, layout.labels_url, layout.classes, image.channels[0]
                )
            )
            finished = finished.model_copy(update={"thumbnail": thumbnail})
    with span("image record"):
        whole = all_files([*files, of_pyramid, prepared_files(layout)])
        ledger.record_image(image.name, finished.model_copy(update={"files": whole}))
    return finished.row


def _noting_files(records: Iterable[RegionRecord], files: list[StoredFiles | None]) -> Iterator[RegionRecord]:
    for record in records:
        files.append(record.files)
        yield record


def image_record(
    image: PlannedImage,
    ensemble: Ensemble,
    statistics: Statistics,
    records: Iterable[RegionRecord],
    estimate: Estimate | None = None,
) -> ImageRecord:
    """Combine the records of an image's regions into its row of ``scores.parquet`` and its features.

    Parameters
    ----------
    statistics : that were taken of the image before
    records : of all its regions
    estimate : of the diameter of its objects, where it was not given
    """
    sums: list[RegionSums] = []
    looks: list[Appearance] = []
    features, tiles, seconds, samples, counted = FeatureTotal(), 0, 0.0, 0, 0
    for record in records:
        sums.append(record.sums)
        looks.append(record.appearance)
        features.add(record.features)
        tiles, seconds = tiles + record.tiles, seconds + record.seconds
        if record.samples is not None:
            samples, counted = samples + record.samples, counted + record.features.tiles
    names = _foreground(ensemble)
    measured = image_scores(sums, names) | appearance_columns(looks, ensemble.spec.input.channels, names)
    row = ImageRow(
        image=image.path,
        source=image.root,
        name=image.name,
        status="done" if measured[UNCERTAINTY.name] is not None else "empty",
        message="; ".join(note for note in (spread_message(statistics), image.note) if note),
        scores=_no_scores(ensemble) | measured,
        regions=len(sums),
        tiles=tiles,
        seconds=round(seconds, 3),
        samples=samples / counted if counted else None,
        diameter_px=None if estimate is None else round(estimate.diameter_px, 2),
    )
    return ImageRecord(row=row, features=features.mean())


def failed_row(path: str, root: str, name: str, ensemble: Ensemble, message: str) -> ImageRow:
    """Return the row of an image that failed: all scores of the ensemble without a value."""
    return ImageRow(image=path, source=root, name=name, status="failed", message=message, scores=_no_scores(ensemble))


def _no_scores(ensemble: Ensemble) -> dict[str, float | None]:
    columns = score_columns(_foreground(ensemble), ensemble.spec.input.channels)
    return dict.fromkeys(column.key for column in columns)


def _foreground(ensemble: Ensemble) -> list[str]:
    """Return the names of the foreground classes."""
    return [entry.name for entry in ensemble.spec.classes[1:]]
