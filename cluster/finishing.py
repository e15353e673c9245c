"""The end of an image: its pyramid, its scores, its record."""

from __future__ import annotations

from typing import Any

from cluster.images import PlannedImage
from cluster.ledger import ImageRecord, Ledger
from cluster.plan import RunContext, layout_of
from cluster.statistics import image_statistics
from pipeline.ensemble import Ensemble
from pipeline.preparation import without_spread
from pipeline.pyramid import write_pyramid
from pipeline.scores import image_scores

SCORE_FIELDS = ("uncertainty", "epistemic", "aleatoric", "pairwise_dice")


def finish_image(context: RunContext, image: PlannedImage, ensemble: Ensemble) -> dict[str, Any]:
    """Write the pyramid and the record of an image whose regions are all recorded; returns its row of scores."""
    ledger = Ledger(context.out)
    records = ledger.region_records(image.name, image.regions)
    write_pyramid(layout_of(image, ensemble, context.settings, context.out))
    scores = image_scores([record.sums for record in records])
    row: dict[str, Any] = base_row(image.path, image.root, image.name, ensemble)
    row |= scores.model_dump(include=set(SCORE_FIELDS))
    row["status"] = "done" if scores.uncertainty is not None else "empty"
    if without_spread(image_statistics(context, image, ensemble)):
        row["message"] = "a channel has the same value in every pixel; it was taken as zero"
    names = [entry.name for entry in ensemble.spec.classes[1:]]
    for name, dice, fraction in zip(names, scores.pairwise_dice_per_class, scores.foreground_fraction, strict=True):
        row[f"pairwise_dice:{name}"] = dice
        row[f"foreground_fraction:{name}"] = fraction
    row["regions"] = len(records)
    row["tiles"] = sum(record.tiles for record in records)
    row["seconds"] = round(sum(record.seconds for record in records), 3)
    ledger.record_image(image.name, ImageRecord(row=row))
    return row


def base_row(path: str, root: str, name: str, ensemble: Ensemble) -> dict[str, Any]:
    """A row of ``scores.parquet`` of which nothing is known yet but the image."""
    row: dict[str, Any] = {"image": path, "source": root, "name": name, "status": "failed", "message": ""}
    row |= dict.fromkeys(SCORE_FIELDS)
    for entry in ensemble.spec.classes[1:]:
        row |= {f"pairwise_dice:{entry.name}": None, f"foreground_fraction:{entry.name}": None}
    return row | {"regions": 0, "tiles": 0, "seconds": 0.0}
