"""The tasks of a worker for objects by stars: as `chorus.cluster.objects.tasks.stages`, after the longest ray is known.

::

    OUT/work/objects/<image name>/
      reach/00000003.json      length of the longest ray of a region's candidates
      longest.json             the same of each plane; written after these
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.cluster.objects.job import ObjectJob
from chorus.cluster.objects.records import write_json
from chorus.cluster.objects.tasks.rows import region_table
from chorus.cluster.planning.planned_image import RegionPlace
from chorus.pipeline.instances.plane_objects import ReadMaps
from chorus.pipeline.instances.stars.candidates import StarSettings
from chorus.pipeline.instances.stars.regions import StarObjects, label_stars
from chorus.pipeline.instances.stars.rows import MEASURES, star_rows
from chorus.pipeline.instances.stars.stored import StoredStars
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.storage_failures import storage_errors

_READERS = 16
_AGAIN = "run the same command again"


class Reach(BaseModel):
    """Length of the longest ray, in pixels: of a region, or of each plane."""

    model_config = ConfigDict(frozen=True)

    longest: list[float]


@dataclass(frozen=True, kw_only=True)
class StarJob(ObjectJob):
    """An `ObjectJob` of objects by stars.

    Attributes
    ----------
    stars : settings of the objects
    """

    stars: StarSettings

    @property
    def measures(self) -> tuple[str, ...]:
        """See `ObjectJob.measures`."""
        return MEASURES

    def reach_url(self, region: int) -> str:
        """Return the URL of the longest ray of a region."""
        return storage.join(self.scratch, "reach", f"{region:08d}.json")

    @property
    def longest_url(self) -> str:
        """URL of the longest ray of each plane."""
        return storage.join(self.scratch, "longest.json")

    def stored(self, location: RegionPlace) -> StoredStars:
        """Return the results of a plane."""
        return StoredStars(self.layout, location.t, location.z, self.stars)

    def tasks(self, stage: str) -> int:
        """Return the number of tasks of a stage."""
        return self.image.regions if stage == "reach" else super().tasks(stage)


def find_reach(job: StarJob, region: int) -> None:
    """Write the length of the longest ray of a region's candidates.

    Raises
    ------
    ImageError
        If results cannot be read.
    OutputError
        If the result cannot be written.
    """
    if not storage.exists(job.reach_url(region)):
        location = job.image.locate(region)
        longest = job.stored(location).candidates(location.window).longest
        write_json(job.reach_url(region), Reach(longest=[longest]))


def find_longest(job: StarJob) -> None:
    """Write the length of the longest ray of each plane, after that of all regions.

    Raises
    ------
    OutputError
        If they cannot be read, or the result not written.
    """
    if storage.exists(job.longest_url):
        return
    urls = [job.reach_url(region) for region in range(job.image.regions)]
    with ThreadPoolExecutor(_READERS) as pool:
        lengths = np.array(list(pool.map(_reach, urls))).reshape(-1, job.image.grid.count)
    write_json(job.longest_url, Reach(longest=lengths.max(axis=1).tolist()))


def _reach(url: str) -> float:
    return _read(url)[0]


def _read(url: str) -> list[float]:
    with storage_errors(url):
        return parsed(storage.read_bytes(url), Reach, url, _AGAIN).longest


def stars_in_region(job: StarJob, location: RegionPlace, region: int) -> StarObjects:
    """Find the objects of a region.

    Raises
    ------
    ImageError
        If results cannot be read.
    """
    # A region that is the whole plane needs no more than its own candidates, whatever their rays.
    alone = job.image.grid.count == 1
    longest = 0.0 if alone else _read(job.longest_url)[region // job.image.grid.count]
    return label_stars(job.stored(location).candidates, location.window, job.plane, longest, job.stars)


def star_table(
    job: StarJob, found: StarObjects, location: RegionPlace, value: int, columns: list[str], maps: ReadMaps
) -> pa.Table:
    """Return the rows of the objects of a class in a region.

    Parameters
    ----------
    columns : names of the last columns: uncertainties, measures, and means of the source's channels
    maps : reads uncertainties and channels
    """
    crop = found.objects.crop
    # Nothing is read where there is nothing to measure.
    nothing: NDArray[np.float64] = np.broadcast_to(np.float64(0), crop.shape)
    values = maps(crop) if found.objects.around.any() else [nothing] * (len(columns) - len(MEASURES))
    uncertainties = len(job.uncertainties)
    rows = star_rows(found, value, location.window, job.plane, list(values), uncertainties, job.spacing)
    return region_table(rows, value, columns)


def every_region(job: StarJob) -> None:
    """Write what must be known of all regions before the first of them, in this process."""
    for region in range(job.image.regions):
        find_reach(job, region)
    find_longest(job)
