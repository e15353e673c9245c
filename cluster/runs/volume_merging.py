"""Merges an ensemble's predictions on a volume's planes in three directions into predictions per voxel.

Every map is the mean of the three, every component of the flows the mean of the two that see it, as in Cellpose's
``run_3D``. A task writes some planes of one region::

    OUT/work/volumes/<view>/...                        three runs of their own, one for each direction
    OUT/work/volumes/merged/<image>/<slab>.json        written after the slab's shards: marks it as done
    OUT/images/<image>/...                             the means
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel

from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.volume_views import LETTERS, VIEWS
from chorus.cluster.state.documents import ImageRow
from chorus.cluster.state.ledger import ImageRecord, Ledger
from chorus.pipeline.core.class_labels import predicted_labels
from chorus.pipeline.core.fields import field_of
from chorus.pipeline.errors import DamagedError, ImageError
from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import posterior_axes
from chorus.pipeline.io.outputs.pyramid import write_pyramid
from chorus.pipeline.io.outputs.writer import open_posterior, prepare_image, prepared_files, shards_lost, write_region
from chorus.pipeline.io.storage_failures import failure_sentence, one_line, storage_errors
from chorus.pipeline.io.stored_files import StoredFiles, all_files, stored
from chorus.pipeline.report.thumbnails import write_thumbnail

WORK = ("work", "volumes")
# Maximum number of voxels of a slab (but at least one plane): its maps are in memory at once.
_VOXELS = 1 << 24


def view_url(out: str, view: str) -> str:
    """Return the URL of the output of the run over the planes of a view."""
    return storage.join(out, *WORK, view)


@dataclass(frozen=True)
class MergeJob:
    """What a worker needs to know to merge the views of a volume.

    Attributes
    ----------
    out : of the whole run
    layout : of the volume's results
    views : of the results of each view
    probabilities : names of the channels from which labels are computed
    multilabel : see `chorus.pipeline.core.class_labels.predicted_labels`
    thumbnails : whether to write one for the finished volume
    """

    out: str
    image: PlannedImage
    layout: ImageLayout
    views: dict[str, ImageLayout]
    probabilities: tuple[str, ...]
    multilabel: bool
    thumbnails: bool

    @property
    def slabs(self) -> BlockGrid:
        """Slabs: some planes of one region at one time point."""
        return slab_grid(self.image)

    @property
    def count(self) -> int:
        """Return the number of slabs over all time points."""
        return self.image.planes[0] * self.slabs.count

    def slab(self, index: int) -> tuple[int, Box]:
        """Return the time point and the voxels of a slab."""
        t, position = divmod(index, self.slabs.count)
        return t, self.slabs.box(position)

    def done_url(self, index: int) -> str:
        """Return the URL of the file that marks a slab as written."""
        return storage.join(self.out, *WORK, "merged", self.image.name, f"{index:08d}.json")


def slab_grid(image: PlannedImage) -> BlockGrid:
    """Return how a volume is divided into slabs: each shard of a plane is within one slab."""
    height, width = (min(image.region, length) for length in (image.height, image.width))
    depth = min(image.planes[1], max(1, _VOXELS // (height * width)))
    return BlockGrid((image.planes[1], image.height, image.width), (depth, image.region, image.region))


def merge_slab(job: MergeJob, index: int) -> float:
    """Write the maps and labels of a slab; return the seconds that it took.

    Raises
    ------
    ImageError : the results of the views cannot be read
    OutputError : the means cannot be written
    """
    started = time.perf_counter()
    url = job.done_url(index)
    known = slab_record(job, index)
    if known is not None and not shards_lost(job.layout, known.files or {}):
        return 0.0
    t, box = job.slab(index)
    views = {view: open_posterior(layout.url) for view, layout in job.views.items()}
    names = job.layout.channels
    maps = np.empty((len(names), *box.shape), job.layout.dtype)
    probability = np.empty((len(job.probabilities), *box.shape), np.float32)
    for channel, name in enumerate(names):
        if name not in job.probabilities:
            maps[channel] = _mean(job, views, name, t, box)
    for channel, name in enumerate(job.probabilities):
        probability[channel] = _mean(job, views, name, t, box)
        if name in names:
            maps[names.index(name)] = probability[channel]
    prepare_image(job.layout)
    files: StoredFiles = {}
    for at, z in enumerate(range(box.z.start, box.z.stop)):
        of_plane = torch.from_numpy(np.ascontiguousarray(probability[:, at]))
        labels = predicted_labels(of_plane, multilabel=job.multilabel).numpy()
        files |= write_region(job.layout, t, z, box.window, maps[:, at] if names else None, labels)
    with storage_errors(url):
        storage.write_record(url, SlabRecord(planes=(box.z.start, box.z.stop), files=files).model_dump_json().encode())
    return time.perf_counter() - started


class SlabRecord(BaseModel):
    """The sign that a slab is written.

    Attributes
    ----------
    planes : first, and after the last
    files : shards by path below the image's group; None in records of earlier versions of Chorus
    """

    planes: tuple[int, int]
    files: StoredFiles | None = None


def slab_record(job: MergeJob, index: int) -> SlabRecord | None:
    """Return the record of a slab; None if it is not written, or the record is damaged."""
    url = job.done_url(index)
    with storage_errors(url):
        try:
            return parsed(storage.read_bytes(url), SlabRecord, url, "it is done again")
        except (FileNotFoundError, DamagedError):
            return None


def _mean(job: MergeJob, views: Mapping[str, zarr.Array[Any]], name: str, t: int, box: Box) -> NDArray[np.float32]:
    """Average a channel of the volume, (z, y, x), over the views in their order."""
    seen = seen_by(name)
    total = np.zeros(box.shape, np.float32)
    for view, channel in seen:
        total += _of_view(views[view], job.views[view], view, channel, t, box)
    return total / np.float32(len(seen))


def seen_by(channel: str) -> list[tuple[str, str]]:
    """Return the views that predict a channel of a volume, each with the name of that channel in the view.

    A component of a vector is predicted by the views whose planes contain its axis, everything else by all views.
    """
    field = field_of(channel)
    if field is None or field.symmetry == "scalar":
        return [(view, channel) for view in VIEWS]
    axis = channel.removeprefix(field.channel(""))
    return [(view, field.channel(LETTERS[view][axis])) for view in VIEWS if LETTERS[view][axis] in "yx"]


def _of_view(array: zarr.Array[Any], layout: ImageLayout, view: str, channel: str, t: int, box: Box) -> NDArray[Any]:
    """Read a channel of a view's results, (z, y, x) of the volume."""
    letters, axes = LETTERS[view], posterior_axes(layout)
    spans = {letters["z"]: box.z, letters["y"]: box.y, letters["x"]: box.x}
    at: dict[str, int | slice] = {axis: span.slice for axis, span in spans.items()}
    at |= {"t": t, "c": layout.channels.index(channel)}
    try:
        block = np.asarray(array[tuple(at[axis] for axis in axes)])
    except Exception as error:  # codecs and remote filesystems raise types of many libraries
        damaged = f"{layout.url}: a result cannot be decoded ({one_line(error)}); remove it and run the same again"
        raise ImageError(failure_sentence(error, layout.url) or damaged) from error
    order = [axis for axis in axes if axis in "zyx"]
    return block.transpose([order.index(letters[axis]) for axis in "zyx"])


def finish_volume(job: MergeJob) -> ImageRow:
    """Write the pyramid and the record of a volume whose slabs are all written; return its row of scores.

    The row is that of the acquired planes (view yx), because scores are defined for planes, not for volumes.

    Raises
    ------
    OutputError : storage does not take it
    """
    layout, image, thumbnail = job.layout, job.image, None
    prepare_image(layout)
    slabs = (slab_record(job, index) for index in range(job.count))
    files = [write_pyramid(layout), prepared_files(layout), *(slab.files if slab else None for slab in slabs)]
    if job.thumbnails:
        thumbnail = stored(
            write_thumbnail(job.out, image.name, image.url, layout.labels_url, layout.classes, image.channels[0])
        )
    records: Sequence[ImageRecord] = list(Ledger(view_url(job.out, "yx")).image_records([image.name]))
    of_volume = {"files": all_files(files), "thumbnail": thumbnail}
    Ledger(job.out).record_image(image.name, records[0].model_copy(update=of_volume))
    return records[0].row
