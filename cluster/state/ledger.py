"""What is finished, readable with ``ls``: one small JSON record per region, one per image, grouped by image.

::

    OUT/ledger/<image name>/region-00000003.json    its sums; written after its shards: the only sign of completion
    OUT/ledger/<image name>/image.json              its scores; written after the pyramid
    OUT/attempts/<session>/<region>                 where it was begun and did not (yet) end; gone when a run ends
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from chorus.cluster.planning.image_table import ImageTable
from chorus.pipeline.errors import ImageError, OutputError
from chorus.pipeline.inference.encoder_features import FeatureSums, ImageFeatures
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.storage import remove_folder, storage_errors
from chorus.pipeline.scores.image_quality import Appearance
from chorus.pipeline.scores.image_scores import RegionSums

Record = TypeVar("Record", bound=BaseModel)
_REGION = re.compile(r"region-(\d{8,})\.json")
# Records that are held at once while many are read: with features they are tens of kilobytes each.
_AT_ONCE = 256


class RegionRecord(BaseModel):
    """A finished region: its sums, its looks, its features, how many tiles it took and the seconds that they took.

    `samples` are those that the tiles got of which the features are, where effort was adaptive.
    """

    model_config = ConfigDict(frozen=True)

    region: int
    sums: RegionSums
    appearance: Appearance
    features: FeatureSums
    tiles: int
    seconds: float
    samples: int | None = None


class ImageRecord(BaseModel):
    """A finished image: the row that it gets in ``scores.parquet``, and its features for ``features.parquet``.

    Images that an earlier Chorus finished have no features.
    """

    model_config = ConfigDict(frozen=True)

    row: dict[str, Any]
    features: ImageFeatures = ImageFeatures()


class Ledger:
    """The records below an output's URL. Every method is one request or one listing; nothing is cached."""

    def __init__(self, out: str) -> None:
        self._url = storage.join(out, "ledger")

    def record_region(self, image: str, record: RegionRecord) -> None:
        """Say that a region is done; its shards must have been written before."""
        _write(storage.join(inside(self._url, image), f"region-{record.region:08d}.json"), record)

    def has_region(self, image: str, region: int) -> bool:
        return storage.exists(storage.join(self._url, image, f"region-{region:08d}.json"))

    def record_image(self, image: str, record: ImageRecord) -> None:
        """Say that an image is done: all regions, and its pyramid."""
        _write(storage.join(inside(self._url, image), "image.json"), record)

    def region_records(self, image: str, count: int) -> Iterator[RegionRecord]:
        """The records of an image's `count` regions, in order.

        Raises
        ------
        ImageError
            Where one was written by an earlier Chorus and lacks what is summed now.
        """
        folder = storage.join(self._url, image)
        urls = [storage.join(folder, f"region-{index:08d}.json") for index in range(count)]
        for url, data in zip(urls, _contents(urls), strict=True):
            try:
                yield RegionRecord.model_validate_json(data)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(str(part) for part in first["loc"]) or "content"
                raise ImageError(
                    f"{url}: not a record of this version of Chorus (field {field}: {first['msg']}); remove {folder} "
                    f"and run the same command again, which does this image anew"
                ) from error

    def image_records(self, images: list[str]) -> Iterator[ImageRecord]:
        """The records of finished images."""
        for data in _contents([storage.join(self._url, image, "image.json") for image in images]):
            yield ImageRecord.model_validate_json(data)

    def scan(self, table: ImageTable) -> Finished:
        """What is finished of the images of `table`, from one listing."""
        fs, path = storage.filesystem(self._url)
        index_of = {name: index for index, name in enumerate(table.names)}
        regions, images = np.zeros(table.regions, dtype=bool), np.zeros(len(table), dtype=bool)
        for file in fs.find(path):
            image, _, leaf = file[len(path) :].strip("/").rpartition("/")
            index = index_of.get(image)
            if index is None:
                continue
            if leaf == "image.json":
                images[index] = True
            elif match := _REGION.fullmatch(leaf):
                regions[table.first_region(index) + int(match[1])] = True
        return Finished(regions, images)


class Finished:
    """Which regions and which images are recorded.

    Attributes
    ----------
    regions : (regions of the run,) bool
    images : (images of the run,) bool
    """

    def __init__(self, regions: np.ndarray, images: np.ndarray) -> None:
        self.regions = regions
        self.images = images

    def todo(self, table: ImageTable) -> np.ndarray:
        """Regions without a record, in order, int64; none of an image that is finished."""
        open_regions = ~self.regions & ~np.repeat(self.images, table.region_counts)
        return np.flatnonzero(open_regions)

    def remaining(self, table: ImageTable) -> np.ndarray:
        """Regions without a record per image, int64."""
        ends = np.cumsum(table.region_counts)
        done = np.concatenate([[0], np.cumsum(self.regions)])
        return np.asarray(table.region_counts - (done[ends] - done[ends - table.region_counts]))


class Attempts:
    """Which regions were begun in this session, written down before the device is touched.

    A region that kills its actor would be handed to the next one for ever; `chorus.cluster.regions.retry` ends that.

    Parameters
    ----------
    node : where this process is
    """

    def __init__(self, out: str, session: str, node: str = "") -> None:
        self._url = storage.join(out, "attempts", session)
        self._node = node

    def unended(self, region: int) -> list[str]:
        """The nodes on which `region` was begun and did not come to an end, one for each time."""
        with storage_errors(self._url):
            try:
                return storage.read_bytes(self._place(region)).decode().splitlines()
            except FileNotFoundError:
                return []

    def begin(self, region: int, unended: Sequence[str]) -> None:
        """Note that `region`, which was begun `unended` before, is begun here."""
        with storage_errors(self._url):
            storage.write_bytes(self._place(region), "".join(f"{node}\n" for node in (*unended, self._node)).encode())

    def end(self, region: int) -> None:
        """Note that `region` came to an end, good or bad."""
        with storage_errors(self._url):
            fs, path = storage.filesystem(self._place(region))
            with suppress(FileNotFoundError):  # removed, and asked again since the answer was lost
                fs.rm_file(path)

    def _place(self, region: int) -> str:
        return storage.join(self._url, str(region))


def unended_regions(out: str) -> set[int]:
    """Regions that earlier sessions began and did not end, as of a driver that was killed."""
    url = storage.join(out, "attempts")
    with storage_errors(url):
        fs, path = storage.filesystem(url)
        return {int(leaf) for leaf in map(storage.basename, fs.find(path)) if leaf.isdecimal()}


def clear_attempts(out: str) -> None:
    """Forget the attempts of earlier sessions: a new run tries every open region again."""
    remove_folder(storage.join(out, "attempts"))


def _contents(urls: Sequence[str]) -> Iterator[bytes]:
    """What is in these files, in order; some are read at once."""
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(urls), _AT_ONCE):
            yield from pool.map(storage.read_bytes, urls[start : start + _AT_ONCE])


def record_file(out: str, name: str, record: BaseModel) -> None:
    """Say that `name` is done, of a command whose results are independent files; they must have been written before."""
    _write(storage.join(out, "ledger", name + ".json"), record)


def recorded_files(out: str, kind: type[Record]) -> list[Record]:
    """What `record_file` has recorded in `out`."""
    ledger = storage.join(out, "ledger")
    with storage_errors(ledger), ThreadPoolExecutor(16) as pool:
        fs, path = storage.filesystem(ledger)
        files = [name for name in fs.find(path) if name.endswith(".json")]
        return [kind.model_validate_json(data) for data in pool.map(fs.cat_file, files)]


def _write(url: str, record: BaseModel) -> None:
    try:
        storage.write_bytes(url, record.model_dump_json().encode())
    except OSError as error:
        raise OutputError(storage.explain(error, url) or f"{url}: {error}") from error
