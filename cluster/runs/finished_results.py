"""What of a run is finished, and still as it was written.

A record says which files it vouches for, with their sizes and checksums. An output that is opened again is compared
with its records: files that are missing or of another size are seen in a listing of each image; a run that verifies
reads them all. What is damaged is open again: its records go first, so that it is not taken for finished, however the
run ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext, layout_of
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.regions.executor import Executor
from chorus.cluster.state.documents import ImageRow
from chorus.cluster.state.ledger import Finished, ImageRecord, Ledger
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import OutputError
from chorus.pipeline.io import storage
from chorus.pipeline.io.fences import cover
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.writer import damaged_results, result_sizes
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.io.stored_files import Stored, stored
from chorus.pipeline.report.thumbnails import thumbnail_url

log = logging.getLogger("chorus")

_AT_ONCE, _BATCH = 16, 1024


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger has of an image: whether it is done, and numbers of regions."""

    done: bool
    regions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What of it is as it was written.

    Attributes
    ----------
    row : of an image that is finished; None if it is not
    lost : recorded regions that must be done again
    reason : why an image is finished anew; empty if it is not
    """

    row: ImageRow | None
    lost: tuple[int, ...] = ()
    reason: str = ""


def keep_finished(
    context: RunContext, table: ImageTable, ensemble: Ensemble, finished: Finished, executor: Executor, *, verify: bool
) -> dict[int, ImageRow]:
    """Return the rows of finished images by index; images and regions that are damaged are taken out of `finished`.

    Parameters
    ----------
    verify : read all files, on all that the executor has, instead of comparing sizes here

    Raises
    ------
    OutputError : storage does not give what is to be checked
    """
    rows: dict[int, ImageRow] = {}
    for index, checked in _each(context, table, ensemble, finished, executor, verify=verify):
        if checked.row is not None:
            rows[index] = checked.row
            continue
        if checked.reason:
            log.warning("image %s is finished anew: %s", table.names[index], checked.reason)
        finished.images[index] = False
        first = table.first_region(index)
        finished.regions[[first + region for region in checked.lost]] = False
        if checked.lost:
            log.warning("image %s: %d of its regions are done anew", table.names[index], len(checked.lost))
    return rows


def _each(
    context: RunContext, table: ImageTable, ensemble: Ensemble, finished: Finished, executor: Executor, *, verify: bool
) -> Iterator[tuple[int, Checked]]:
    ends = np.cumsum(table.region_counts)
    recorded: dict[int, Recorded] = {}
    for index in range(len(table)):
        regions = np.flatnonzero(finished.regions[ends[index] - table.region_counts[index] : ends[index]])
        if finished.images[index] or len(regions):
            recorded[index] = Recorded(bool(finished.images[index]), tuple(regions.tolist()))
    if verify:
        for index, known in recorded.items():
            executor.submit(index, check_image, context, table.image(index), ensemble, known, True)
        for result in executor.results(wait=True):
            if result.error is not None:
                raise OutputError(result.error)
            yield result.key, result.value
        return

    def check(index: int) -> Checked:
        return check_image(context, table.image(index), ensemble, recorded[index], False)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        indices = list(recorded)
        for start in range(0, len(indices), _BATCH):
            some = indices[start : start + _BATCH]
            yield from zip(some, pool.map(check, some), strict=True)


def check_image(
    context: RunContext, image: PlannedImage, ensemble: Ensemble, recorded: Recorded, verify: bool
) -> Checked:
    """Compare an image with its records; remove the records of what is damaged."""
    ledger = Ledger(context.out)
    layout = layout_of(image, ensemble, context.settings, context.out)
    cover(layout.labels_url, context.out)
    sizes = result_sizes(layout)
    reason = ""
    if recorded.done:
        record = ledger.image_record(image.name)
        reason = "its record is damaged" if record is None else _damage(context, layout, image, record, sizes, verify)
        if record is not None and not reason:
            return Checked(record.row)
        ledger.forget_image(image.name)
    lost = []
    for region, of_region in ledger.each_region(image.name, recorded.regions):
        files = {} if of_region is None else of_region.files or {}
        if of_region is None or damaged_results(layout, files, sizes, contents=verify):
            ledger.forget_region(image.name, region)
            lost.append(region)
    return Checked(None, tuple(lost), reason)


def _damage(
    context: RunContext,
    layout: ImageLayout,
    image: PlannedImage,
    record: ImageRecord,
    sizes: Mapping[str, int],
    verify: bool,
) -> str:
    """Return, as a part of a sentence, what is wrong with the files of a finished image; empty if nothing is."""
    if record.files is None:
        return ""
    if damaged := damaged_results(layout, record.files, sizes, contents=verify):
        more = f" and {len(damaged) - 1} more of its files are" if len(damaged) > 1 else " is"
        return f"{damaged[0]}{more} missing, cut or changed"
    if context.thumbnails and record.thumbnail is not None and not _same_thumbnail(context, image, record.thumbnail):
        return "its thumbnail is missing, cut or changed"
    return ""


def _same_thumbnail(context: RunContext, image: PlannedImage, known: Stored) -> bool:
    url = thumbnail_url(context.out, image.name)
    with storage_errors(url):
        try:
            return stored(storage.read_bytes(url)) == known
        except FileNotFoundError:
            return False
