"""The ledger of finished work, readable with ``ls``: one small JSON record per region and per image, grouped by image.

::

    OUT/ledger/<image name>/region-00000003.json    its sums; written after its shards: the only sign of completion
    OUT/ledger/<image name>/image.json              its scores; written after the pyramid
    OUT/ledger/<image name>/objects.json            its objects; written after their label images
    OUT/attempts/<session>/<region>                 where it was begun and has not ended; removed when a run ends
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from pydantic import BaseModel, ConfigDict

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.state.documents import ImageRow
from chorus.pipeline.errors import DamagedError, ImageError, OutputError
from chorus.pipeline.inference.feature_records import FeatureSums, ImageFeatures
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.listings import Listed, visit
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import failure_sentence, storage_errors
from chorus.pipeline.io.stored_files import Stored, StoredFiles
from chorus.pipeline.scores.image_quality import Appearance
from chorus.pipeline.scores.image_scores import RegionSums

_REGION = re.compile(r"region-(\d{8,})\.json")
# Records in memory at once while many are read: with features they are tens of kilobytes each.
_AT_ONCE = 256
_RUN_AGAIN = "run the same `chorus predict` again, which finishes this image anew"


class RegionRecord(BaseModel):
    """The record of a finished region.

    Attributes
    ----------
    sums : partial sums of the image's scores
    appearance : partial sums of image quality
    features : sums of encoder features
    tiles, seconds : number of tiles, and the time that they took
    samples : with adaptive effort, number of samples over all tiles that count in `features`
    files : its shards, by path below the image's group; None in records of earlier versions of Chorus
    """

    model_config = ConfigDict(frozen=True)

    region: int
    sums: RegionSums
    appearance: Appearance
    features: FeatureSums
    tiles: int
    seconds: float
    samples: int | None = None
    files: StoredFiles | None = None


class ImageRecord(BaseModel):
    """The record of a finished image: its row of ``scores.parquet``, and its features for ``features.parquet``.

    Images that were finished by an earlier version of Chorus have no features.

    Attributes
    ----------
    files : all that is stored of it, by path below its group; None in records of earlier versions of Chorus
    thumbnail : None where there is none
    """

    model_config = ConfigDict(frozen=True)

    row: ImageRow
    features: ImageFeatures = ImageFeatures()
    files: StoredFiles | None = None
    thumbnail: Stored | None = None


class Ledger:
    """The records below an output's URL. Every method is one request or one listing; nothing is cached."""

    def __init__(self, out: str) -> None:
        self._url = storage.join(out, "ledger")

    def record_region(self, image: str, record: RegionRecord) -> None:
        """Record that a region is done; its shards must have been written before."""
        _write(storage.join(inside(self._url, image), f"region-{record.region:08d}.json"), record)

    def has_region(self, image: str, region: int) -> bool:
        """Return whether a region is recorded."""
        return storage.exists(self._region_url(image, region))

    def record_image(self, image: str, record: ImageRecord) -> None:
        """Record that an image is done: all regions, and its pyramid."""
        _write(storage.join(inside(self._url, image), "image.json"), record)

    def region_records(self, image: str, count: int) -> Iterator[RegionRecord]:
        """Yield the records of an image's `count` regions, in order.

        Records that cannot be used are removed, so that the next run does their regions anew.

        Raises
        ------
        ImageError
            If one is damaged, or was written by an earlier version of Chorus and lacks a sum that is needed now.
        """
        urls = [self._region_url(image, index) for index in range(count)]
        reasons: dict[str, DamagedError] = {}
        for url, data in zip(urls, _contents(urls), strict=True):
            try:
                record = parsed(data, RegionRecord, url, "run the same command again, which does this region anew")
            except DamagedError as error:
                reasons[url] = error
                continue
            if not reasons:
                yield record
        for url in reasons:
            _remove(url)
        for reason in reasons.values():
            raise ImageError(str(reason)) from reason

    def image_records(self, images: list[str]) -> Iterator[ImageRecord]:
        """Yield the records of finished images.

        Raises
        ------
        DamagedError
            If one is cut, or does not hold what it should.
        """
        urls = [self._image_url(image) for image in images]
        for url, data in zip(urls, _contents(urls), strict=True):
            yield parsed(data, ImageRecord, url, _RUN_AGAIN)

    def image_record(self, image: str) -> ImageRecord | None:
        """Return the record of a finished image; None where it is damaged, so that the image is not finished."""
        url = self._image_url(image)
        try:
            return parsed(_content(url), ImageRecord, url, _RUN_AGAIN)
        except DamagedError:
            return None

    def each_region(self, image: str, regions: Iterable[int]) -> Iterator[tuple[int, RegionRecord | None]]:
        """Yield the records of these regions with their numbers, in order; None for one that is damaged."""
        numbers = list(regions)
        urls = [self._region_url(image, region) for region in numbers]
        for region, url, data in zip(numbers, urls, _contents(urls), strict=True):
            try:
                yield region, parsed(data, RegionRecord, url, _RUN_AGAIN)
            except DamagedError:
                yield region, None

    def objects_url(self, image: str) -> str:
        """Return the URL of the record of an image's objects, see `chorus.cluster.objects.records`."""
        return storage.join(inside(self._url, image), "objects.json")

    def forget_image(self, image: str) -> None:
        """Remove the record of an image."""
        _remove(self._image_url(image))

    def forget_region(self, image: str, region: int) -> None:
        """Remove the record of a region."""
        _remove(self._region_url(image, region))

    def _region_url(self, image: str, region: int) -> str:
        return storage.join(self._url, image, f"region-{region:08d}.json")

    def _image_url(self, image: str) -> str:
        return storage.join(self._url, image, "image.json")

    def scan(self, table: ImageTable) -> Finished:
        """Return what is finished of the images of `table`, from one listing.

        Records of other images, and of regions that an image does not have, count for nothing.
        """
        fs, path = storage.filesystem(self._url)
        index_of = {name: index for index, name in enumerate(table.names)}
        regions, images = np.zeros(table.regions, dtype=bool), np.zeros(len(table), dtype=bool)
        counts = table.region_counts

        def note(page: list[Listed]) -> None:
            for file in page:
                image, _, leaf = file.name.rpartition("/")
                index = index_of.get(image)
                if index is None:
                    continue
                if leaf == "image.json":
                    images[index] = True
                elif (match := _REGION.fullmatch(leaf)) and int(match[1]) < counts[index]:
                    regions[table.first_region(index) + int(match[1])] = True

        visit(fs, path, note, table.names)
        return Finished(regions, images)


class Finished:
    """Which regions and which images are recorded.

    Parameters
    ----------
    regions : (regions of the run,) bool
    images : (images of the run,) bool

    Attributes
    ----------
    regions, images : as given
    """

    def __init__(self, regions: np.ndarray, images: np.ndarray) -> None:
        self.regions = regions
        self.images = images

    def todo(self, table: ImageTable) -> np.ndarray:
        """Return regions without a record; none of an image that is finished.

        Returns
        -------
        (open regions,) int64, ascending numbers of regions in the run
        """
        open_regions = ~self.regions & ~np.repeat(self.images, table.region_counts)
        return np.flatnonzero(open_regions)

    def remaining(self, table: ImageTable) -> np.ndarray:
        """Count the regions without a record per image.

        Returns
        -------
        (images,) int64
        """
        ends = np.cumsum(table.region_counts)
        done = np.concatenate([[0], np.cumsum(self.regions)])
        return np.asarray(table.region_counts - (done[ends] - done[ends - table.region_counts]))


class Attempts:
    """Regions that were begun in this session, recorded before the device is touched.

    Without it, a region that kills its actor would be retried forever; `chorus.cluster.regions.retry` sets the limit.

    Parameters
    ----------
    node : the node of this process
    """

    def __init__(self, out: str, session: str, node: str = "") -> None:
        self._url = storage.join(out, "attempts", session)
        self._node = node

    def unended(self, region: int) -> list[str]:
        """Return the nodes on which `region` was begun and did not end, one entry per attempt."""
        with storage_errors(self._url):
            try:
                return storage.read_bytes(self._place(region)).decode().splitlines()
            except FileNotFoundError:
                return []

    def begin(self, region: int, unended: Sequence[str]) -> None:
        """Record that `region` is begun on this node, after the `unended` attempts before."""
        with storage_errors(self._url):
            nodes = "".join(f"{node}\n" for node in (*unended, self._node)).encode()
            storage.write_bytes(self._place(region), nodes, lasting=False)

    def end(self, region: int) -> None:
        """Record that `region` ended, successfully or not."""
        with storage_errors(self._url):
            fs, path = storage.filesystem(self._place(region))
            with suppress(FileNotFoundError):  # removed by a first attempt whose answer was lost
                fs.rm_file(path)

    def _place(self, region: int) -> str:
        return storage.join(self._url, str(region))


def unended_regions(out: str) -> set[int]:
    """Return regions that earlier sessions began and did not end, such as those of a driver that was killed."""
    url = storage.join(out, "attempts")
    with storage_errors(url):
        leaves = (storage.basename(file.name) for file in storage.files_below(url))
        return {int(leaf) for leaf in leaves if leaf.isdecimal()}


def clear_attempts(out: str) -> None:
    """Remove the attempts of earlier sessions: a new run tries every open region again."""
    remove_folder(storage.join(out, "attempts"))


def _contents(urls: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of these files, in order; some are read at once."""
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(urls), _AT_ONCE):
            yield from pool.map(_content, urls[start : start + _AT_ONCE])


def _content(url: str) -> bytes:
    with storage_errors(url):
        return storage.read_bytes(url)


def _remove(url: str) -> None:
    with storage_errors(url):
        storage.remove_file(url)


def _write(url: str, record: BaseModel) -> None:
    try:
        storage.write_record(url, record.model_dump_json().encode())
    except OSError as error:
        raise OutputError(failure_sentence(error, url) or f"{url}: {error}") from error
