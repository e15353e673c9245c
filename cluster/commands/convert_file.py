"""The ledger of ``chorus convert``, readable with ``ls``, and the task that adds a record to it.

::

    OUT/<name>.ome.zarr               image, or collection of the images of one file
    OUT/ledger/<name>.ome.zarr.json   written after them: the only sign of completion
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict

from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.io import storage
from chorus.pipeline.io.files.conversion import ConvertSettings, convert_file
from chorus.pipeline.io.files.raster_files import RasterFile
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.outputs.peer_check import check_image
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors


class ConvertedFile(BaseModel):
    """A finished file.

    Attributes
    ----------
    name, source, stamp : see `chorus.pipeline.io.files.raster_files.RasterFile`
    images, pixels : number of images in it, and of their pixels
    part_of : the file of the same set that has its planes; such a file is not recorded
    note : what of the file was left out
    """

    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    stamp: str
    images: int
    pixels: int
    seconds: float
    part_of: str = ""
    note: str = ""


def convert_and_record(out: str, file: RasterFile, settings: ConvertSettings, *, strict: bool = False) -> ConvertedFile:
    """Convert a file and record it; first remove what an earlier attempt left.

    Parameters
    ----------
    strict : read each image back by ome-zarr before it is recorded

    Raises
    ------
    ImageError
        If the file is at fault.
    OutputError
        If the result cannot be written.
    """
    started = time.perf_counter()
    target = inside(out, file.name)
    with storage_errors(target):
        remove_folder(target)
    made = convert_file(file.url, target, settings)
    if strict and not made.part_of:
        for image in [target] if made.images == 1 else [storage.join(target, str(i)) for i in range(made.images)]:
            check_image(image)
    seconds = round(time.perf_counter() - started, 3)
    record = ConvertedFile(
        name=file.name,
        source=file.url,
        stamp=file.stamp,
        images=made.images,
        pixels=made.pixels,
        seconds=seconds,
        part_of=made.part_of,
        note=made.note,
    )
    if not made.part_of:
        ledger_of(out).record(file.name, record)
    return record


def ledger_of(out: str) -> ItemLedger[ConvertedFile]:
    """Return the ledger of an output."""
    return ItemLedger(storage.join(out, "ledger"), ConvertedFile)


def read_converted(out: str) -> dict[str, ConvertedFile]:
    """Return what is finished in `out`, by the URL of the source."""
    return {record.source: record for record in ledger_of(out).read().values()}
